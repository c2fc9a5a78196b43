"""The window against brute force over thousands of random traces, and faults that must be seen."""

import numpy as np
import pytest
from helpers_flash import random_trace, union

from tinyflash.flash.window import Window

TRACES = 2000


def longest(sets, rows, most):
    """The largest j up to `most` for which the last j sets fit together, by trying."""
    fitting = [j for j in range(1, min(most, len(sets)) + 1) if len(union(sets, j)) <= rows]
    return max(fitting, default=0)


def check_against_brute_force(make, traces, seed=0):
    """Everything that a window says after every call, compared with sets of neurons."""
    rng = np.random.default_rng(seed)
    for _ in range(traces):
        F, tokens, k = rng.integers(1, (12, 14, 7))
        active = random_trace(rng, F, tokens)
        window, sets = make(F, k), []
        while len(sets) < tokens:
            T = min(rng.choice((1, 1, 1, 2, 3, 9)), tokens - len(sets))
            new = active[len(sets) : len(sets) + T]
            window.use(new)
            sets += [set(np.flatnonzero(row).tolist()) for row in new]

            assert set(np.flatnonzero(window.last_k_active).tolist()) == union(sets, k)
            length, rows, most = rng.integers((0, 0, 1), (9, F + 2, 9))
            assert set(np.flatnonzero(window.used_within(length)).tolist()) == union(sets, length)
            assert window.longest_that_fits(rows, most) == longest(sets, rows, most)
            for j, age in enumerate(window.age.tolist()):
                assert age >= len(sets) or j in sets[-1 - age]
                assert all(j not in later for later in sets[len(sets) - min(age, len(sets)) :])


def test_the_window_is_the_union_of_the_last_k_tokens():
    check_against_brute_force(Window, TRACES)


class OneTokenTooLong(Window):
    def used_within(self, length):
        return self.age <= length


class OneTokenTooShort(Window):
    def used_within(self, length):
        return self.age < length - 1


class PromptForgetsItsLastToken(Window):
    def use(self, active):
        super().use(active)
        if len(active) > 1:
            self.last_used[active[-1]] -= 1


class FirstUseCounts(Window):
    """Of a prompt's tokens the first that used a neuron instead of the last."""

    def use(self, active):
        used = active.any(axis=0)
        self.last_used[used] = self.tokens + active.argmax(axis=0)[used]
        self.tokens += len(active)


class NeverShrinks(Window):
    def longest_that_fits(self, rows, most):
        return min(most, self.tokens)


class ShrinksTooMuch(Window):
    def longest_that_fits(self, rows, most):
        return super().longest_that_fits(rows - 1, most)


class CountsTwice(Window):
    """Adds sizes instead of forming the union."""

    def __init__(self, F, k):
        super().__init__(F, k)
        self.sizes = []

    def use(self, active):
        super().use(active)
        self.sizes += active.sum(axis=1).tolist()

    def longest_that_fits(self, rows, most):
        sums = np.cumsum(self.sizes[::-1][:most])
        return int(np.searchsorted(sums, rows, side="right"))


@pytest.mark.parametrize(
    "faulty",
    [
        OneTokenTooLong,
        OneTokenTooShort,
        PromptForgetsItsLastToken,
        FirstUseCounts,
        NeverShrinks,
        ShrinksTooMuch,
        CountsTwice,
    ],
)
def test_planted_faults_are_seen(faulty):
    with pytest.raises(AssertionError):
        check_against_brute_force(faulty, 200)


def test_a_prompt_is_its_tokens_one_by_one():
    rng = np.random.default_rng(1)
    for _ in range(200):
        active = random_trace(rng, 9, 8)
        whole, single = Window(9, 3), Window(9, 3)
        whole.use(active)
        for row in active:
            single.use(row[None])
        np.testing.assert_array_equal(whole.last_used, single.last_used)
        assert whole.tokens == single.tokens == 8


def test_nothing_was_used_before_the_first_token():
    window = Window(5, 1000)
    assert not window.last_k_active.any()
    assert window.longest_that_fits(0, 1000) == 0
    window.use(np.zeros((1, 5), dtype=bool))
    assert not window.last_k_active.any()
    assert window.longest_that_fits(0, 1000) == 1  # a token that uses nothing fits no rows


@pytest.mark.parametrize("k", [0, -1])
def test_a_window_has_at_least_one_token(k):
    with pytest.raises(ValueError, match="at least 1 token"):
        Window(5, k)
