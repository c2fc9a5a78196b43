"""The three trainings as Python functions: what they refuse at once, and the phases they show."""

import json
from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
from helpers_models import OPT_CONFIG, TOKENIZER_TEXT, write_model

from tinyflash.cli import main
from tinyflash.flash.training import run as predictors
from tinyflash.speculative.training import run as drafters
from tinyflash.training import run as language_models
from tinyflash.training.loop import Recipe, descend
from tinyflash.training.optimizers import adamw_init
from tinyflash.training.refusals import refuse_below, refuse_no_rate, refuse_short
from tinyflash.training.texts import read_texts
from tinyflash.training.vocabulary import DOCUMENT_BREAK

SMALL = OPT_CONFIG | {"vocab_size": 280, "max_position_embeddings": 32}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with models and texts, which is the current one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "opt", OPT_CONFIG, seed=4)
    write_model(tmp_path / "mute", OPT_CONFIG, tokenizer=False)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "text").write_text(20 * TOKENIZER_TEXT)
    (tmp_path / "short").write_text("Once")
    (tmp_path / "empty").write_text("")
    return tmp_path


def shown_by(train, *arguments, **settings):
    """The result of a training, and what it showed: (what, unit, last report) of each phase."""
    phases = []

    @contextmanager
    def progress(what, unit=None):
        last = []
        yield lambda done, total, **numbers: last.append((done, total, *numbers))
        phases.append((what, unit, last[-1] if last else None))

    return train(*arguments, progress=progress, **settings), phases


def test_a_language_model_is_trained_from_python(here):
    settings = {"steps": 3, "batch": 2, "heldout": "text"}
    result, phases = shown_by(language_models.train_lm, "config.json", ["text"], "out", **settings)
    assert result["steps"] == 3 and result["heldout_loss"] > 0
    assert phases == [
        ("Learning the vocabulary", None, None),
        ("Training", "steps", (3, 3, "loss", "active")),
    ]
    assert (here / "out" / "model.safetensors").exists()


def test_a_drafter_is_trained_from_python_and_the_last_phase_is_shown(here):
    settings = {"steps": 3, "batch": 4, "tokens": 500, "distill": True}
    result, phases = shown_by(drafters.train_drafter, "opt", ["text"], "out", **settings)
    assert result["steps"] == 3 and result["loss_on"] == "model"
    assert [phase[:2] for phase in phases] == [
        ("Recording what the model says", "examples"),
        ("Drafter", "steps"),
        ("Measuring on text held out", None),
    ]
    assert phases[0][2][:2] == (result["examples"], result["examples"])
    assert phases[1][2] == (3, 3, "loss")


def test_predictors_are_trained_from_python(here):
    settings = {"ranks": "4", "epochs": 1, "sparsity": 0.8}
    result, phases = shown_by(predictors.train_predictor, "opt", ["text"], **settings)
    assert len(result["layers"]) == 2
    assert [(what, unit) for what, unit, _ in phases] == [
        ("Converting opt for flash", "bytes"),
        ("Checking what was written", "bytes"),
        ("Thresholds", "layers"),
        ("Predictors", "layers"),
    ]
    assert phases[-1][2] == (2, 2, "missed", "needless")


@pytest.mark.parametrize(
    "settings",
    [
        *({name: 0} for name in ("steps", "batch", "length", "workers", "learning_rate")),
        *({"seed": -1}, {"active_share": 1.0}, {"length": 33}, {"learning_rate": float("inf")}),
        *({"heldout": text} for text in ("short", "empty", "nowhere")),
        *({"text": [text]} for text in ("short", "empty", "nowhere")),
        *({"config": config} for config in ("nowhere", "text")),
        *({"out": out} for out in ("opt", "text")),
        *({"start": start} for start in ("nowhere", "mute")),
        {"steps": 9},  # another recipe than that of the run which began
    ],
    ids=str,
)
def test_a_language_model_is_refused_before_anything_is_learned(here, settings, monkeypatch):
    given = {"config": "config.json", "text": ["text"], "out": "out", "steps": 4}

    def die(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(language_models, "refuse_foreign_model", first_pass_only())
        language_models.train_lm(**given)
    before = contents(here)
    for name in ("train_tokenizer", "tokenizer_for", "train"):
        monkeypatch.setattr(language_models, name, too_late)
    with pytest.raises((ValueError, OSError)):
        language_models.train_lm(**given | settings)
    assert contents(here) == before


def first_pass_only():
    """Passes once, and is Ctrl-C then: what is called before and after the training."""
    calls = []

    def check(out):
        calls.append(out)
        if len(calls) > 1:
            raise KeyboardInterrupt

    return check


def too_late(*arguments, **settings):
    raise AssertionError("the work had begun before it was refused")


def contents(directory):
    return sorted(path for path in directory.rglob("*"))


@pytest.mark.parametrize(
    "settings",
    [
        *({name: 0} for name in ("tokens", "steps", "batch", "exit_width", "learning_rate")),
        *({"seed": -1}, {"layers": -1}, {"layers": 10**8}, {"steps": 2.5}, {"batch": True}),
        *({"heldout": text} for text in ("short", "empty", "nowhere")),
        *({"text": [text]} for text in ("short", "empty", "nowhere")),
        *({"model": model} for model in ("nowhere", "mute", "text")),
        *({"out": out} for out in ("opt", "text")),
    ],
    ids=str,
)
def test_a_drafter_is_refused_before_the_model_is_asked(here, settings, monkeypatch):
    before = contents(here)
    for name in ("record_examples", "learn", "digest_of"):
        monkeypatch.setattr(drafters, name, too_late)
    given = {"model": "opt", "text": ["text"], "out": "out"}
    with pytest.raises((ValueError, OSError)):
        drafters.train_drafter(**given | settings)
    assert contents(here) == before


@pytest.mark.parametrize(
    "verb, settings",
    [
        ("train lm", language_models.Settings),
        ("train predictor", predictors.Settings),
        ("train drafter", drafters.Settings),
    ],
)
def test_the_commands_defaults_are_those_of_python(verb, settings, monkeypatch):
    from tinyflash import commands

    seen = {}
    for module, name in (
        (language_models, "train_lm"),
        (predictors, "train_predictor"),
        (drafters, "train_drafter"),
    ):
        monkeypatch.setattr(module, name, lambda *a, **given: seen.update(given) or 1 / 0)
    needs = {"train lm": ["--config", "c", "--out", "o"], "train drafter": ["m", "--out", "o"]}
    assert main([*verb.split(), *needs.get(verb, ["m"]), "--text", "t"]) == 70
    assert commands  # it was asked through the command
    assert {field.name: seen[field.name] for field in fields(settings)} == vars(settings())


def test_texts_are_read_document_by_document(here):
    from tinyflash.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(here / "opt")
    (here / "two").write_text(f"Once upon{DOCUMENT_BREAK}the river\n")
    ids = read_texts(tokenizer, ["two", "short"])
    parts = ("Once upon", "the river\n", "Once")
    assert ids.tolist() == [id for part in parts for id in tokenizer.encode(part)]
    assert ids.dtype == np.int64
    with pytest.raises(ValueError, match="There is no text in empty"):
        read_texts(tokenizer, ["empty"])


def test_what_is_refused_names_the_option():
    with pytest.raises(ValueError, match="^--exit-width must be at least 1, not 0.$"):
        refuse_below(1, steps=1, exit_width=0)
    for value in (0, -1.0, float("nan"), float("inf"), None, "fast"):
        with pytest.raises(ValueError, match="--learning-rate must be above 0"):
            refuse_no_rate(learning_rate=value)
    refuse_short("a", "abcdef", 7)
    with pytest.raises(ValueError, match="a has at most 8 tokens, fewer than one .* of 9"):
        refuse_short("a", "abcdef", 8)


def test_descending_is_adamw_along_the_schedule():
    weights = {"w": np.full((2, 2), 3, dtype=np.float64)}
    recipe = Recipe(steps=40, peak=0.5, weight_decay=0.0, clip=None)
    assert recipe.rate(0) == 0.125 and recipe.rate(4) == 0.5 and recipe.rate(39) < 0.01

    def gradients_of(step):
        return {"loss": float(np.sum(weights["w"] ** 2))}, {"w": 2 * weights["w"]}

    rows = list(descend(weights, adamw_init(weights), recipe, gradients_of))
    assert [row["step"] for row in rows] == list(range(1, 41)) and "gradient_norm" not in rows[0]
    assert rows[-1]["loss"] < 0.05 * rows[0]["loss"]
    clipped = Recipe(steps=1, warmup=0, clip=1e-3)
    (row,) = descend(weights, adamw_init(weights), clipped, gradients_of)
    assert row["gradient_norm"] > 0 and row["learning_rate"] == clipped.peak
