"""Every verb that reports: progress on a terminal and none in a pipe, one JSON line with --json."""

import functools
import io
import json

import pytest
from helpers_models import OPT_CONFIG, TOKENIZER_TEXT, write_model
from rich.console import Console

from tinyflash import terminal
from tinyflash.bench import disk
from tinyflash.cli import main
from tinyflash.oracle.record import read_recording

SMALL = {
    "model_type": "opt",
    "vocab_size": 270,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 12,
    "max_position_embeddings": 16,
    "eos_token_id": 2,
    "bos_token_id": 2,
}
TRAIN = ["--text", "text", "--tokens"]
# Each verb as it may be called in a directory of examples, and what its progress is called.
VERBS = {
    "generate": (["generate", "The", "--model", "opt", "--max-new-tokens", "3"], "Reading 2"),
    "evaluate": (["evaluate", "opt", "--text", "short"], "Perplexity"),
    "choices": (["evaluate", "opt", "--choices", "choices"], "Choices"),
    "convert": (["convert", "opt", "OUT"], "Converting"),
    "check": (["convert", "flash", "--check"], "Checking"),
    "train lm": (
        ["train", "lm", "--config", "config.json", "--text", "text", "--out", "OUT"]
        + ["--steps", "2", "--batch", "2", "--workers", "1"],
        "Training",
    ),
    "train predictor": (
        ["train", "predictor", "flash", *TRAIN, "2400", "--ranks", "2", "--epochs", "1"],
        "Predictors",
    ),
    "train drafter": (
        ["train", "drafter", "opt", *TRAIN, "1500", "--out", "OUT", "--steps", "2"]
        + ["--batch", "32", "--layers", "1", "--exit-width", "16"],
        "Drafter",
    ),
    "bench disk": (["bench", "disk", ".", "--seconds", "0.02"], "Disk"),
    "bench flash": (
        ["bench", "flash", "opt", "--memory", "120%", "--tokens", "1", "--prompt", "4"]
        + ["--text", "text", "--modes", "naive"],
        "Flash",
    ),
    "bench speculative": (
        ["bench", "speculative", "opt", "--drafters", "ngram", "--prompts", "1"]
        + ["--prompt", "4", "--tokens", "2", "--text", "text"],
        "Speculation",
    ),
    "record": (["record", "opt", "--ids", "5,6", "--out", "a.safetensors"], "Recording 2"),
    "diff": (["diff", "a.safetensors", "a.safetensors"], "Comparing"),
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A directory with all that the verbs ask for."""
    directory = tmp_path_factory.mktemp("examples")
    write_model(directory / "opt", OPT_CONFIG, seed=4)
    (directory / "config.json").write_text(json.dumps(SMALL))
    (directory / "text").write_text(TOKENIZER_TEXT * 30)
    (directory / "short").write_text(TOKENIZER_TEXT[:200])
    question = {"context": "The river", "choices": [" ran", " sang"], "answer": 1}
    (directory / "choices").write_text(json.dumps(question) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(["convert", "opt", "flash"]) == 0
        assert main(["record", "opt", "--ids", "5,6", "--out", "a.safetensors"]) == 0
        assert read_recording("a.safetensors")
    return directory


@pytest.fixture
def place(examples, monkeypatch):
    monkeypatch.chdir(examples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(examples / "cache"))
    sizes = {"file_bytes": 1 << 20, "chunks": (4096, 16384), "threads": (1, 3)}
    monkeypatch.setattr(disk, "measure_disk", functools.partial(disk.measure_disk, **sizes))
    return examples


@pytest.mark.parametrize("verb", VERBS)
def test_progress_on_a_terminal_and_none_in_a_pipe(place, tmp_path, monkeypatch, capsys, verb):
    arguments, words = VERBS[verb]
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=200)
    with monkeypatch.context() as at_a_terminal:
        at_a_terminal.setattr(terminal, "ERRORS", console)
        assert main([a.replace("OUT", str(tmp_path / "out")) for a in arguments]) == 0
    assert words in drawn.getvalue()
    assert capsys.readouterr().out

    arguments = [a.replace("OUT", str(tmp_path / "more")) for a in arguments]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and isinstance(json.loads(out), dict)
    assert not {"\r", "\x1b", "━"} & set(err) and words not in err


def test_json_of_a_slow_text_has_a_bar(place, monkeypatch, capsys):
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=200)
    monkeypatch.setattr(terminal, "ERRORS", console)
    assert main([*VERBS["generate"][0], "--json"]) == 0
    assert "Generating" in drawn.getvalue() and "3/3" in drawn.getvalue()


def test_numbers_that_json_lacks_become_null(capsys):
    terminal.json_line({"a": float("inf"), "b": [float("nan"), 1.5], "c": ("x", None)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": ["x", None]}
