"""Perplexity and multiple choice against sums of logarithms written out one by one."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_models import GPT2_CONFIG, OPT_CONFIG, TOKENIZER_TEXT, write_model

import tinyflash
from tinyflash import evaluate
from tinyflash.evaluate import (
    choice_score,
    multiple_choice,
    perplexity,
    read_questions,
    token_log_probabilities,
)
from tinyflash.matrices.half import HalfMatrix


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """OPT begins its texts with a token of its own, GPT-2 does not."""
    directory = tmp_path_factory.mktemp("models")
    return {
        name: tinyflash.load(write_model(directory / name, hf_config, seed=8), dtype="float64")
        for name, hf_config in (("opt", OPT_CONFIG), ("gpt2", GPT2_CONFIG))
    }


def log_softmaxed(logits, token):
    """One log-probability, with Python numbers."""
    logits = logits.tolist()
    top = max(logits)
    return logits[token] - top - math.log(math.fsum(math.exp(value - top) for value in logits))


def log_probability(model, before, token):
    """log p(token | before), from a pass that has seen nothing else."""
    return log_softmaxed(model.logits(before)[-1], token)


@pytest.mark.parametrize("first", [1, 2, 9])
def test_token_log_probabilities(models, first, monkeypatch):
    monkeypatch.setattr(evaluate, "PREFILL", 4)
    ids = models["opt"].encode("The river knew every stone.")
    exact = [log_probability(models["opt"], ids[:t], ids[t]) for t in range(first, len(ids))]
    found = token_log_probabilities(models["opt"], ids, first)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, exact, rtol=1e-10)


# Perplexity.


@pytest.mark.parametrize("name", ["opt", "gpt2"])
@pytest.mark.parametrize("letters, how_many", [(150, 1), (10_000, 4)])
def test_perplexity_is_the_mean_over_every_window(models, name, letters, how_many, monkeypatch):
    monkeypatch.setattr(evaluate, "PREFILL", 37)
    model, text = models[name], (TOKENIZER_TEXT * 3)[:letters]
    begin = {"opt": [2], "gpt2": []}[name]
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    width = 96 - len(begin)
    windows = [begin + ids[start : start + width] for start in range(0, len(ids), width)]
    assert len(windows) == how_many and len(windows[-1]) < 96
    losses = []
    for window in windows:
        logits = model.logits(window)  # uncached, all at once
        losses += [-log_softmaxed(logits[t - 1], window[t]) for t in range(1, len(window))]
    measured = perplexity(model, text)
    assert measured.nats == pytest.approx(math.fsum(losses) / len(losses), rel=1e-10)
    assert measured.perplexity == pytest.approx(math.exp(measured.nats), rel=1e-12)
    # With a token that begins them, all tokens of a text are predicted.
    assert measured.tokens == len(losses) == len(ids) - (len(windows) if name == "gpt2" else 0)
    assert measured.context == 96 and "96 tokens" in measured.rule


def test_a_window_of_one_token_predicts_nothing(models):
    """97 tokens without a beginning: one window of 96, and a token that is left alone."""
    model = models["gpt2"]
    text = model.tokenizer.decode(model.encode(TOKENIZER_TEXT * 3)[:97])
    assert len(model.encode(text)) == 97
    assert perplexity(model, text).tokens == 95


@pytest.mark.parametrize("name, text", [("opt", ""), ("gpt2", ""), ("gpt2", "!")])
def test_a_text_with_nothing_to_predict_is_refused(models, name, text):
    with pytest.raises(ValueError, match="no token to predict"):
        perplexity(models[name], text)


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_a_model_that_knows_nothing_has_perplexity_v(models, name):
    V, E = models[name].weights["embed.weight"].shape
    nothing = HalfMatrix(np.zeros((V, E), dtype=np.float16))
    ignorant = replace(models[name], weights={**models[name].weights, "embed.weight": nothing})
    assert perplexity(ignorant, TOKENIZER_TEXT).perplexity == pytest.approx(V, rel=1e-12)
    assert perplexity(models[name], TOKENIZER_TEXT).perplexity != pytest.approx(V, rel=0.01)


def test_progress_counts_the_text(models):
    seen = []
    perplexity(models["opt"], TOKENIZER_TEXT * 3, lambda *numbers: seen.append(numbers))
    total = len(models["opt"].encode(TOKENIZER_TEXT * 3)) - 1
    assert seen == [(95, total), (190, total), (285, total), (total, total)]


# Multiple choice.


class Bigrams:
    """A model whose next byte depends on the last one alone; a token is a byte."""

    def __init__(self, likely):
        """likely: dict pair of bytes -> probability; the rest of 1 is shared by all others."""
        self.config = SimpleNamespace(context=20)
        self.p = np.full((256, 256), np.nan, dtype=np.float64)
        for first in range(256):
            known = {pair[1]: p for pair, p in likely.items() if pair[0] == first}
            self.p[first] = (1 - sum(known.values())) / (256 - len(known))
            self.p[first, list(known)] = list(known.values())

    def encode(self, text):
        return list(text.encode())

    def new_cache(self, tokens):
        return SimpleNamespace()

    def logits(self, ids, cache):
        return np.log(self.p[ids]) + 5


def test_the_likeliest_choice_wins_and_per_byte_the_likeliest_letters():
    # After a: "b" with 0.2; "cdcd" with 0.4 · 0.6 · 0.6 · 0.6 = 0.086, but 0.54 a letter.
    model = Bigrams({b"ab": 0.2, b"ac": 0.4, b"cd": 0.6, b"dc": 0.6})
    assert choice_score(model, "a", "b") == pytest.approx(math.log(0.2))
    assert choice_score(model, "xa", "cdcd") == pytest.approx(math.log(0.4 * 0.6**3))
    questions = [
        {"context": "xa", "choices": ["b", "cdcd"], "answer": 0},
        {"context": "xa", "choices": ["cdcd", "b"], "answer": 1},
        {"context": "xa", "choices": ["cdcd", "b", "zz"], "answer": 0},
        {"context": "xa", "choices": ["b", "cdcd", "zz"], "answer": 2},
    ]
    seen = []
    result = multiple_choice(model, questions, lambda *numbers: seen.append(numbers))
    assert result.questions == 4
    assert result.accuracy == 2 / 4  # "b"
    assert result.normalized_accuracy == 1 / 4  # "cdcd"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bytes_are_counted_and_not_letters():
    # é is two bytes: log(0.2 · 0.9) / 2 = -0.86 a byte, against log 0.3 = -1.2.
    model = Bigrams({b"ab": 0.3, b"a\xc3": 0.2, b"\xc3\xa9": 0.9})
    result = multiple_choice(model, [{"context": "a", "choices": ["b", "é"], "answer": 1}])
    assert (result.accuracy, result.normalized_accuracy) == (0, 1)


@pytest.mark.parametrize(
    "context, choice, judged",
    [
        ("The river", " came", 1),
        ("The river", " knew every stone", 3),
        ("The riv", "er", 1),  # together they make one token, which is the choice's
        ("", "The river", 2),
    ],
)
def test_choice_score_judges_the_tokens_that_the_choice_brings(models, context, choice, judged):
    model = models["opt"]
    ids = model.encode(context + choice)
    exact = sum(log_probability(model, ids[:t], ids[t]) for t in range(len(ids) - judged, len(ids)))
    assert choice_score(model, context, choice) == pytest.approx(exact, rel=1e-10)


def test_without_a_beginning_the_first_token_is_not_judged(models):
    model = models["gpt2"]
    ids = model.encode("The river")
    exact = log_probability(model, ids[:1], ids[1])
    assert choice_score(model, "", "The river") == pytest.approx(exact, rel=1e-10)
    with pytest.raises(ValueError, match="Nothing stands before the choice 'The'"):
        choice_score(model, "", "The")


def test_a_question_fills_the_context_exactly():
    model = Bigrams({})
    for length in (20, 21):  # the last token is predicted, never read
        assert choice_score(model, "a", "b" * (length - 1)) < 0
    with pytest.raises(ValueError, match="22 tokens does not fit the model's context of 20"):
        choice_score(model, "a", "b" * 21)


def test_a_choice_that_adds_nothing_is_refused():
    with pytest.raises(ValueError, match="'' adds no token"):
        choice_score(Bigrams({}), "a", "")


# Question files.

GOOD = {"context": "The river", "choices": [" ran", " sang"], "answer": 1}


def test_read_questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n  \n" + json.dumps(GOOD | {"answer": 0, "id": 7}))
    assert read_questions(path) == [GOOD, GOOD | {"answer": 0, "id": 7}]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        '"text"',
        "null",
        json.dumps({"context": "a", "choices": ["b"]}),
        json.dumps(GOOD | {"context": 3}),
        json.dumps(GOOD | {"choices": [" ran", 3]}),
        json.dumps(GOOD | {"choices": " ran"}),
        json.dumps(GOOD | {"choices": []}),
        json.dumps(GOOD | {"choices": 3}),
        json.dumps(GOOD | {"answer": 2}),
        json.dumps(GOOD | {"answer": -1}),
        json.dumps(GOOD | {"answer": "1"}),
        json.dumps(GOOD | {"answer": None}),
    ],
)
def test_the_first_bad_line_is_named(tmp_path, line):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 3: each line must be") as refused:
        read_questions(path)
    assert "\n" not in str(refused.value)


def test_no_question_is_an_error(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(path)
    with pytest.raises(FileNotFoundError):
        read_questions(tmp_path / "elsewhere.jsonl")
