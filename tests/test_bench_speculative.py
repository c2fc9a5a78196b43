"""The benchmark of drafters: its figures are those of the texts that it made."""

import json

import numpy as np
import pytest
from helpers_models import CONFIGS, TOKENIZER_TEXT, write_model
from test_redrafter import random_drafter

import tinyflash
from tinyflash.bench.speculative import Fed, parting
from tinyflash.cli import main
from tinyflash.generate import Generation, greedy
from tinyflash.speculative.drafter_files import DrafterConfig, save_drafter
from tinyflash.speculative.replay import expected_tokens


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench")
    model = write_model(directory / "model", CONFIGS["opt"])
    config = DrafterConfig(307, 24, 9, 1)
    save_drafter(directory / "drafter", random_drafter(config))
    (directory / "text.txt").write_text(TOKENIZER_TEXT * 3)
    return {"model": model, "drafter": directory / "drafter", "text": directory / "text.txt"}


def bench(places, *more):
    words = ["bench", "speculative", places["model"], "--text", places["text"], "--prompts", 2]
    words += ["--prompt", 6, "--tokens", 13, *more]
    return main([str(word) for word in words])


def test_every_drafter_is_measured(places, capsys):
    drafters = f"ngram,replay,{places['model']},{places['drafter']}"
    assert bench(places, "--drafters", drafters, "--widths", "1,3", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    runs = result["runs"]
    names = [run["drafter"] for run in runs]
    assert names[:3] == ["none", "ngram", str(places["model"])] and names[5] == "none"
    assert [run["fed"] for run in runs] == [False] * 5 + [True] * 6
    for run in runs:
        assert (
            run["tokens"] == 2 * 12 == run["steps"] + run["accepted"]
        )  # the first is the prompt's
        assert run["passes"] == run["steps"] + 2 and run["accepted"] <= run["drafted"]
        assert run["seconds_per_token"] * run["tokens"] == pytest.approx(run["seconds"])
        assert 0 <= run["draft_seconds"] < run["seconds"] and run["flash_bytes_per_token"] == 0
        plain = runs[5] if run["fed"] else runs[0]
        assert run["speedup"] == pytest.approx(plain["seconds"] / run["seconds"])
    assert runs[0]["drafted"] == 0 and runs[2]["accepted"] == runs[2]["drafted"] > 0
    assert [run["width"] for run in runs[3:5]] == [1, 3]
    assert [run["alpha"] for run in runs[6:]] == [0, 0.25, 0.5, 0.75, 1]
    assert runs[6]["accepted"] == 0 and runs[10]["accepted"] == runs[10]["drafted"] == 2 * 9
    assert runs[7]["tokens_per_step_expected"] == pytest.approx(expected_tokens(0.25, 4))
    assert not result["synthetic"]


def test_with_flash_bytes_are_counted_by_token(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    more = ("--drafters", "replay", "--alphas", "0,1", "--length", "3", "--prompts", "1")
    assert bench(places, *more, "--memory", "100%", "--mode", "naive", "--json") == 0
    plain, wrong, right = json.loads(capsys.readouterr().out)["runs"]
    assert plain["flash_bytes_per_token"] == wrong["flash_bytes_per_token"] > 0
    assert right["flash_bytes_per_token"] == plain["flash_bytes_per_token"] / 4


def test_the_table_for_people(places, capsys):
    assert bench(places, "--drafters", "ngram") == 0
    told = capsys.readouterr().out
    assert "tokens a step" in told and "ngram" in told and "fed a text" not in told


def test_a_fed_model_says_what_it_is_fed(places):
    model = tinyflash.load(places["model"])
    text = [2, 5, 9, 30, 31, 32, 33]
    made = Generation(Fed(model, text), text[:3], max_new_tokens=4)
    assert list(made) and made.ids == text[3:]


def test_where_texts_part(places):
    model = tinyflash.load(places["model"], dtype="float64")
    ids = greedy(model, [5, 6], 4)
    others = [*ids[:2], ids[2] + 1, 0]
    parted = parting(model, 7, [5, 6], ids, others)
    row = np.sort(model.logits([5, 6, *ids[:2]])[-1])
    assert parted == {"prompt": 7, "token": 2, "top_2_margin": float(row[-1] - row[-2])}


@pytest.mark.parametrize(
    "more, words",
    [
        (["--tokens", "1"], "2 new tokens"),
        (["--prompts", "0"], "at least 1 prompt"),
        (["--tokens", "95"], "do not fit the model's context of 96"),
        (["--widths", "two"], "--widths takes numbers"),
        (["--alphas", "0,2", "--drafters", "replay"], "between 0 and 1"),
        (["--drafters", "redrafter"], "ReDrafter"),
        (["--drafters", "DRAFTER", "--widths", "0"], "at least 1 beam"),
        (["--drafters", "ngram,nix"], "There is no 'nix'"),
        (["--text", "nix.txt"], "nix.txt"),
    ],
)
def test_bad_input_is_one_sentence(places, monkeypatch, capsys, more, words):
    monkeypatch.setattr(tinyflash.speculative.drafters, "EMBEDDED", "nothing-of-this-name")
    more = [str(places["drafter"]) if word == "DRAFTER" else word for word in more]
    assert bench(places, *more) == 2
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and told.out == ""
