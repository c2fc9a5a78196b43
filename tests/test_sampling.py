"""From logits to tokens: which are left, how likely each is, and that they are drawn so."""

import math

import numpy as np
import pytest

from tinyflash.sampling import distribution, draw
from tinyflash.settings import Sampling

# Eighths and sixteenths: cumulated sums are exact.
P = np.array([1 / 16, 1 / 2, 1 / 16, 1 / 4, 1 / 8], dtype=np.float64)
LOGITS = np.log(P)


def test_without_settings_it_is_the_softmax():
    p = distribution(LOGITS.astype(np.float32) + 7)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, P, rtol=1e-6)


def test_temperature_0_takes_the_first_of_the_likeliest():
    assert distribution(np.array([1, 3, 3, 2], dtype=np.float32), 0).tolist() == [0, 1, 0, 0]
    # top-k and top-p change nothing then
    logits = np.array([1, 3, 2], dtype=np.float32)
    assert distribution(logits, 0, top_k=2, top_p=0.1).tolist() == [0, 1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature):
    weights = [p ** (1 / temperature) for p in P]
    exact = [w / sum(weights) for w in weights]
    np.testing.assert_allclose(distribution(LOGITS, temperature), exact, rtol=1e-12)


def test_a_very_low_temperature_is_nearly_0_and_a_very_high_one_uniform():
    logits = np.array([-5, 1000, 999, -1000], dtype=np.float32)
    for temperature in (1e-3, 1e-30, 5e-324):
        assert distribution(logits, temperature).tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(distribution(logits, 1e30), 0.25, rtol=1e-12)


def kept(p):
    return np.flatnonzero(p).tolist()


@pytest.mark.parametrize(
    "top_k, tokens", [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [0, 1, 2, 3, 4]), (9, range(5))]
)
def test_top_k_keeps_the_k_likeliest_and_ties_with_the_last(top_k, tokens):
    p = distribution(LOGITS, top_k=top_k)
    assert kept(p) == list(tokens)  # of the two at 1/16 neither is likelier
    np.testing.assert_allclose(p[kept(p)], P[kept(p)] / P[kept(p)].sum(), rtol=1e-12)


@pytest.mark.parametrize(
    "top_p, tokens",
    [
        (0.01, [1]),
        (0.5, [1]),  # exactly reached
        (0.500001, [1, 3]),
        (0.75, [1, 3]),
        (0.8, [1, 3, 4]),
        (0.875, [1, 3, 4]),
        (0.9, [0, 1, 3, 4]),  # of equals the first
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_p(top_p, tokens):
    p = distribution(LOGITS, top_p=top_p)
    assert kept(p) == tokens
    np.testing.assert_allclose(p[tokens], P[tokens] / P[tokens].sum(), rtol=1e-12)


def test_top_p_is_minimal_on_random_logits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        logits, top_p = 3 * rng.standard_normal(50), rng.uniform(0.05, 0.95)
        plain = distribution(logits)
        tokens = kept(distribution(logits, top_p=top_p))
        inside = plain[tokens]
        assert inside.sum() >= top_p - 1e-12  # enough
        assert inside.sum() - inside.min() < top_p + 1e-12  # and none too many
        assert inside.min() >= np.delete(plain, tokens).max(initial=0)  # and the likeliest


def test_top_k_comes_before_top_p():
    # Of {1/2, 1/4} rescaled to {2/3, 1/3}, two thirds are reached by one token; before, by two.
    assert kept(distribution(LOGITS, top_k=2, top_p=0.66)) == [1]
    assert kept(distribution(LOGITS, top_p=0.66)) == [1, 3]


def test_temperature_comes_before_top_p():
    assert kept(distribution(LOGITS, temperature=0.25, top_p=0.9)) == [1]
    assert kept(distribution(LOGITS, temperature=1e9, top_p=0.9)) == [0, 1, 2, 3, 4]


def test_every_distribution_sums_to_one():
    rng = np.random.default_rng(1)
    for _ in range(100):
        logits = rng.uniform(0.1, 30) * rng.standard_normal(97).astype(np.float32)
        p = distribution(
            logits,
            rng.choice([0, 0.3, 1, 5]),
            rng.choice([None, 1, 7, 500]),
            rng.choice([None, 0.4]),
        )
        assert p.dtype == np.float64 and p.shape == (97,)
        assert np.all(p >= 0) and p.sum() == pytest.approx(1, abs=1e-12)


def test_the_logits_stay_as_they_were():
    logits = np.array([1, 3, 3, 2], dtype=np.float64)
    distribution(logits, 0.5, top_k=2, top_p=0.5)
    assert logits.tolist() == [1, 3, 3, 2]


# Draws.


def chi_square(draws, p):
    """Pearson's statistic of draws against p, and a bound that one in a million fair runs exceeds.

    The bound is Wilson and Hilferty's: the cube root of χ²/k is nearly normal.
    """
    counts = np.bincount(draws, minlength=len(p))
    possible = p > 0
    assert counts[~possible].sum() == 0
    expected = p[possible] * len(draws)
    statistic = np.sum((counts[possible] - expected) ** 2 / expected)
    freedom = possible.sum() - 1
    one_in_a_million = 4.75
    bound = freedom * (1 - 2 / (9 * freedom) + one_in_a_million * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic, bound


DRAWS = 100_000
SKEWED = distribution(2 * np.random.default_rng(5).standard_normal(40), top_k=25)


def test_draws_follow_the_distribution():
    rng = np.random.default_rng(0)
    statistic, bound = chi_square([draw(SKEWED, rng) for _ in range(DRAWS)], SKEWED)
    assert statistic < bound


def test_biased_draws_are_caught():
    """The negative control: draws from a distribution that is a little flatter."""
    flatter = SKEWED**0.95
    rng = np.random.default_rng(0)
    statistic, bound = chi_square([draw(flatter, rng) for _ in range(DRAWS)], SKEWED)
    assert statistic > bound


def test_a_token_of_probability_0_is_never_drawn():
    class Extremes:
        """The ends of what random() can return."""

        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    p = np.array([0, 0, 0.3, 0, 0.7, 0, 0], dtype=np.float64)
    assert draw(p, Extremes(0.0)) == 2
    assert draw(p, Extremes(1 - 2**-53)) == 4
    thirds = np.full(3, 1 / 3, dtype=np.float64)
    assert draw(np.append(thirds, 0), Extremes(1 - 2**-53)) == 2
    # sums that are not exactly 1 change nothing
    for scale in (1 - 1e-15, 1 + 1e-15, 3.0):
        assert draw(scale * p, Extremes(1 - 2**-53)) == 4


def test_seeds_reproduce_and_differ():
    def tokens(seed):
        rng = np.random.default_rng(seed)
        return [draw(SKEWED, rng) for _ in range(50)]

    assert tokens(7) == tokens(7) != tokens(8)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("temperature", -0.1, "temperature must be 0"),
        ("temperature", math.inf, "temperature must be 0"),
        ("temperature", 10**400, "temperature must be 0"),
        ("temperature", math.nan, "temperature must be 0"),
        ("temperature", "hot", "temperature must be a number, not 'hot'"),
        ("temperature", True, "temperature must be a number, not True"),
        ("top_k", -1, "top-k"),
        ("top_k", 2.5, "top_k must be a whole number, not 2.5"),
        ("top_k", math.nan, "top_k must be a whole number"),
        ("top_k", math.inf, "top_k must be a whole number"),
        ("top_k", "50", "top_k must be a number, not '50'"),
        ("top_k", False, "top_k must be a number, not False"),
        ("top_k", [20], "top_k must be a number"),
        ("top_p", 0.0, "top-p"),
        ("top_p", 1.5, "top-p"),
        ("top_p", math.nan, "top-p"),
        ("min_p", -0.1, "min-p"),
        ("min_p", 1.1, "min-p"),
        ("min_p", math.nan, "min-p"),
        ("repetition_penalty", 0, "repetition penalty"),
        ("repetition_penalty", -1.2, "repetition penalty"),
        ("repetition_penalty", math.inf, "repetition penalty"),
        ("repetition_penalty", math.nan, "repetition penalty"),
        ("repetition_penalty", None, "repetition penalty"),
        ("presence_penalty", math.inf, "presence penalty"),
        ("frequency_penalty", math.nan, "frequency penalty"),
        ("no_repeat_ngram", -1, "no-repeat-ngram"),
        ("no_repeat_ngram", 1.5, "no_repeat_ngram must be a whole number"),
        ("suppress_tokens", 5, "suppress_tokens must be a list"),
        ("suppress_tokens", "5", "suppress_tokens must be a list"),
        ("suppress_tokens", [5, -1], "suppress_tokens must be a list"),
        ("suppress_tokens", [5, 1.0], "suppress_tokens must be a list"),
        ("suppress_tokens", [True], "suppress_tokens must be a list"),
        ("suppress_tokens", [[5]], "suppress_tokens must be a list"),
        ("seed", -1, "seed must be 0"),
        ("seed", 0.5, "seed must be a whole number"),
    ],
)
def test_settings_that_describe_no_distribution_are_refused(name, value, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        Sampling(**{name: value})
    assert "\n" not in str(refused.value)


def test_odd_but_meaningful_settings_pass():
    Sampling(1e-9, 1, 1.0, 1.0, 1e-300, -1e300, 1e300, 10**30, (0, 10**20), 2**100)
    odd = Sampling(np.float32(0.5), top_k=20.0, no_repeat_ngram=np.int64(3), suppress_tokens=[1, 2])
    assert (odd.temperature, odd.top_k, odd.no_repeat_ngram) == (0.5, 20, 3)
    assert all(type(value) is int for value in (odd.top_k, odd.no_repeat_ngram))
    assert odd.suppress_tokens == (1, 2) and hash(odd)
    assert Sampling(top_k=None, top_p=None, seed=None) == Sampling()
