"""Perplexity against sums of logarithms written out one by one."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers_models import GPT2_CONFIG, OPT_CONFIG, TOKENIZER_TEXT, write_model
from tokenizers import processors

import tinyflash
from tinyflash import evaluate
from tinyflash.choices import choice_score
from tinyflash.evaluate import Perplexity, perplexity, token_log_probabilities
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


@pytest.mark.parametrize("put", ["$A </s>", "</s> $A </s>", "</s> pad $A", "$A"])
def test_only_what_the_tokenizer_puts_before_a_text_begins_it(models, put):
    """An end token behind the text is no beginning, and two tokens before it are both given."""
    model = copy.copy(models["opt"])  # of its mapped weights there is no copy
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.backend.post_processor = processors.TemplateProcessing(
        single=put.replace("pad", "<pad>"), special_tokens=[("</s>", 2), ("<pad>", 1)]
    )
    text = TOKENIZER_TEXT[:150]
    plain = model.tokenizer.encode(text, add_special_tokens=False)
    before = {"$A </s>": [], "</s> $A </s>": [2], "</s> pad $A": [2, 1], "$A": []}[put]
    exact = [
        -log_probability(model, (before + plain)[:t], (before + plain)[t])
        for t in range(max(1, len(before)), len(before + plain))
    ]
    measured = perplexity(model, text)
    assert measured.tokens == len(exact) == len(plain) - (not before)
    assert measured.nats == pytest.approx(math.fsum(exact) / len(exact), rel=1e-10)
    context, choice = "The river", " came"
    both = [*before, *model.tokenizer.encode(context + choice, add_special_tokens=False)]
    exact = log_probability(model, both[:-1], both[-1])
    assert choice_score(model, context, choice) == pytest.approx(exact, rel=1e-10)


def test_a_special_token_that_the_text_spells_is_of_the_text(models):
    assert models["opt"].tokenizer.framed("</s>a") == ([2], [2, *words(models, "a")], [])
    assert models["gpt2"].tokenizer.framed("</s>a") == ([], [2, *words(models, "a")], [])


def words(models, text):
    return models["opt"].tokenizer.encode(text, add_special_tokens=False)


def test_a_context_without_room_for_a_text_is_refused(models):
    model = replace(models["opt"], config=replace(models["opt"].config, context=1))
    with pytest.raises(ValueError, match="no place for the text"):
        perplexity(model, "The river")


def test_a_perplexity_beyond_all_numbers_is_infinite(models):
    assert Perplexity(709.0, 1, 96).perplexity < math.inf
    for nats in (710.0, 1e300, math.inf):
        assert Perplexity(nats, 1, 96).perplexity == math.inf
    W = models["gpt2"].weights["embed.weight"]
    loud = replace(
        models["gpt2"],
        weights=models["gpt2"].weights | {"embed.weight": W.dense().astype(np.float64) * 1e4},
    )
    measured = perplexity(loud, TOKENIZER_TEXT)
    assert measured.perplexity == math.inf and 1000 < measured.nats < math.inf
