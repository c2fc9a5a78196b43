"""Penalties: what each does, and that speculation with them stays exact at every node of a tree."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from helpers_models import CONFIGS, write_model
from test_speculative_generate import PROMPT, Table, drafter_named
from test_verify import assert_another_law, differ

import tinyflash
from tinyflash.generate import Generation
from tinyflash.penalties import (
    completing_ngrams,
    less_frequent,
    less_repeated,
    penalized,
    without,
)
from tinyflash.sampling import distribution
from tinyflash.settings import Sampling
from tinyflash.speculative.draft_model import DraftModel
from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.tree import Tree

SETTINGS = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"presence_penalty": 2.0, "frequency_penalty": 0.5},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2},
    {"suppress_tokens": (60, 70, 3)},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "no_repeat_ngram": 3, "top_k": 20},
]


def one_by_one(logits, prompt, new, settings):
    """What `penalized` computes, with Python's numbers: its specification."""
    text, values = [*prompt, *new], [float(value) for value in logits]
    for token in set(text) & set(range(len(values))):
        factor = settings.get("repetition_penalty", 1)
        values[token] = values[token] * factor if values[token] < 0 else values[token] / factor
    for token, count in Counter(new).items():
        if token < len(values):
            values[token] -= settings.get("presence_penalty", 0)
            values[token] -= settings.get("frequency_penalty", 0) * count
    n = settings.get("no_repeat_ngram", 0)
    for start in range(len(text) - n + 1 if n else 0):
        if text[start : start + n - 1] == text[len(text) - n + 1 :] and text[start + n - 1] < len(
            values
        ):
            values[text[start + n - 1]] = -math.inf
    for token in settings.get("suppress_tokens", ()):
        if token < len(values):
            values[token] = -math.inf
    return values


# Each by itself.


def test_repetition_divides_what_is_positive_and_multiplies_the_rest():
    logits = np.array([4, -4, 3, -3, 0], dtype=np.float64)
    assert less_repeated(logits, [0, 1, 1, 4], 2.0).tolist() == [2, -8, 3, -3, 0]
    assert logits.tolist() == [4, -4, 3, -3, 0]


def test_presence_counts_once_and_frequency_each_time():
    logits = np.zeros(4, dtype=np.float64)
    assert less_frequent(logits, [2, 2, 2, 0], 1.0, 0.25).tolist() == [-1.25, 0, -1.75, 0]
    assert less_frequent(logits, [], 1.0, 0.25).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "text, n, tokens",
    [
        ([5, 6, 7, 5, 6], 3, {7}),
        ([5, 6, 7, 5, 6], 2, {7}),
        ([5, 6, 5, 7, 5], 2, {6, 7}),
        ([5, 6, 7], 1, {5, 6, 7}),
        ([5, 5, 5], 2, {5}),
        ([5, 5, 5], 4, set()),
        ([5, 6, 7, 8], 2, set()),
        ([], 1, set()),
        ([5], 10**9, set()),
    ],
)
def test_completing_ngrams(text, n, tokens):
    assert set(completing_ngrams(np.array(text, dtype=np.int64), n).tolist()) == tokens


def test_tokens_that_a_smaller_vocabulary_has_not_are_passed_over():
    logits = np.ones(3, dtype=np.float64)
    assert without(logits, [1, 7]).tolist() == [1, -math.inf, 1]
    assert less_repeated(logits, [2, 7], 2.0).tolist() == [1, 1, 0.5]
    assert less_frequent(logits, [2, 7], 1.0, 0.0).tolist() == [1, 1, 0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_together_they_do_what_is_written_out_one_by_one(settings):
    rng = np.random.default_rng(0)
    for _ in range(30):
        logits = rng.standard_normal(90).astype(np.float32) * 3
        text = rng.integers(50, 95, rng.integers(1, 40)).tolist()
        cut = int(rng.integers(0, len(text)))
        found = penalized(logits, Sampling(**settings), text[:cut], text[cut:])
        expected = one_by_one(logits, text[:cut], text[cut:], settings)
        np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_without_penalties_nothing_is_computed():
    logits = np.ones(4, dtype=np.float32)
    assert penalized(logits, Sampling(1.0, 2, 0.5, 0.1), [1], [2]) is logits


def test_where_no_token_is_left_it_is_said():
    with pytest.raises(ValueError, match="No token is left to say"):
        penalized(np.ones(3, dtype=np.float32), Sampling(no_repeat_ngram=1), [0, 1], [2])


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_a_penalty_out_of_all_measure_still_leaves_a_distribution(penalty):
    logits = np.array([1e30, -1e30, 1, 0], dtype=np.float32)
    for token in range(4):
        settings = Sampling(repetition_penalty=penalty, frequency_penalty=1e308)
        p = distribution(penalized(logits, settings, [token], [token, token]))
        assert np.isfinite(p).all() and p.sum() == pytest.approx(1)


# Under speculation. A node's distribution hangs on the tokens on its own path.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return {
        name: tinyflash.load(write_model(directory / name, CONFIGS[name], seed=4), dtype="float64")
        for name in ("opt", "llama")
    }


def plainly(model, settings, count):
    """The likeliest tokens one by one, from passes and penalties that know nothing of a cache."""
    new = []
    while len(new) < count:
        logits = one_by_one(model.logits(PROMPT + new)[-1], PROMPT, new, settings)
        new.append(int(np.argmax(logits)))
        if new[-1] in model.eos_ids:
            return new[:-1]
    return new


@pytest.mark.parametrize("drafter", ["none", "ngram", "itself", "redrafter", "beams", "twins"])
@pytest.mark.parametrize("settings", [*SETTINGS[:5], "suppress"], ids=str)
def test_greedy_with_penalties_is_the_penalized_likeliest(models, settings, drafter):
    model = models["opt"]
    plain = plainly(model, {}, 20)
    settings = {"suppress_tokens": plain[:3:2]} if settings == "suppress" else settings
    expected = plainly(model, settings, 20)
    proposing = None
    if drafter != "none":
        proposing = drafter_named(drafter, model, model, PROMPT + expected)
    made = Generation(model, PROMPT, Sampling(**settings), max_new_tokens=20, drafter=proposing)
    list(made)
    assert made.ids == expected != plain
    assert drafter not in ("itself", "beams", "twins") or made.counts.accepted > 0


@pytest.mark.parametrize("drafter", ["ngram", "beams"])
def test_one_seed_says_the_same_with_a_drafter_without_chance(models, drafter):
    model = models["opt"]
    for settings in SETTINGS:
        sampling = Sampling(**{"temperature": 0.9, "seed": 5} | settings)
        plain = Generation(model, PROMPT, sampling, max_new_tokens=20)
        list(plain)
        proposing = drafter_named(drafter, model, model, PROMPT + plain.ids)
        made = Generation(model, PROMPT, sampling, max_new_tokens=20, drafter=proposing)
        list(made)
        assert made.ids == plain.ids


def joint(table, settings, prompt, new):
    """Probability of every text of `new` tokens, by the specification."""
    cuts = {name: settings[name] for name in settings if name in ("temperature", "min_p")}
    texts = {(): 1.0}
    for _ in range(new):
        longer = {}
        for text, probability in texts.items():
            row = table.table[(*prompt, *text)[-1]]
            p = distribution(np.array(one_by_one(row, prompt, text, settings)), **cuts)
            longer |= {(*text, token): probability * p[token] for token in range(len(p))}
        texts = longer
    return texts


def drawn(table, drafter, settings, count, kind=Generation):
    """How often `count` texts of three tokens were said."""
    counts = Counter()
    for seed in range(count):
        sampling = Sampling(seed=seed, **settings)
        made = kind(table, [1, 2, 1], sampling, max_new_tokens=3, drafter=drafter)
        list(made)
        counts[tuple(made.ids)] += 1
    return counts


DRAWN = [
    {"temperature": 1.0, "repetition_penalty": 2.0, "presence_penalty": 0.5},
    {"temperature": 1.3, "frequency_penalty": 1.0, "min_p": 0.1, "suppress_tokens": (3,)},
]


def tables():
    rng = np.random.default_rng(7)
    return [Table(1.5 * rng.standard_normal((4, 4))) for _ in range(2)]


@pytest.mark.parametrize("settings", DRAWN, ids=str)
def test_a_draft_model_changes_no_penalized_probability(settings):
    table, other = tables()
    counts = drawn(table, DraftModel(table, other, 2), settings, 2500)
    z, variation = differ(counts, joint(table, settings, (1, 2, 1), 3))
    assert z < 4 and variation < 0.08, (z, variation)


class All(Drafter):
    """Proposes every token of the table, so that all steps but the first yield two."""

    spare_nodes = 3

    def propose(self, ids, hidden=None):
        tokens = np.array([ids[-1], 0, 1, 2, 3], dtype=np.int64)
        return Tree(tokens, np.array([-1, 0, 0, 0, 0], dtype=np.int64))


class Forgetful(Generation):
    """A planted fault: penalties look at the text before a step, not at the path within it."""

    def choose(self, logits, step):
        return super().choose(logits, [])


def test_penalties_that_forget_the_path_would_be_seen():
    table, _ = tables()
    settings = {"temperature": 1.0, "presence_penalty": 2.0}
    expected = joint(table, settings, (1, 2, 1), 3)
    z, variation = differ(drawn(table, All(), settings, 2500), expected)
    assert z < 4 and variation < 0.08, (z, variation)
    assert_another_law(drawn(table, All(), settings, 2500, kind=Forgetful), expected)


# min_p, and all cuts together.


def test_min_p_keeps_those_as_likely_as_a_share_of_the_likeliest():
    p = np.array([1 / 16, 1 / 2, 1 / 16, 1 / 4, 1 / 8], dtype=np.float64)
    for min_p, kept in ((0.0, 5), (0.1, 5), (0.2, 3), (0.3, 2), (0.6, 1), (1.0, 1)):
        cut = distribution(np.log(p), min_p=min_p)
        assert np.count_nonzero(cut) == kept and cut.sum() == pytest.approx(1)
    assert np.count_nonzero(distribution(np.log(np.full(4, 0.25)), min_p=1.0)) == 4


def test_min_p_looks_at_what_temperature_left():
    logits = np.log(np.array([0.6, 0.3, 0.1], dtype=np.float64))
    survivors = [
        np.count_nonzero(distribution(logits, temperature, min_p=0.4))
        for temperature in (0.5, 1.0, 3.0)
    ]
    assert survivors == [1, 2, 3]


def test_a_top_k_of_0_keeps_all():
    logits = np.arange(7, dtype=np.float32)
    for cuts in itertools.product([None, 0.9], [None, 0.1]):
        assert np.array_equal(
            distribution(logits, 1.0, 0, *cuts), distribution(logits, 1.0, None, *cuts)
        )
