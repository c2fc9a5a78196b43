"""Invariants of the neuron cache after any sequence of changes, and faults that must be seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.neuron_cache import measure
from tinyflash.flash.neuron_cache import NaiveNeuronCache, NeuronCache

F, WIDTH = 12, 3
FILE = (100 * np.arange(F)[:, None] + np.arange(WIDTH)).astype(np.float16)  # row j is neuron j's
BIAS = np.arange(F, dtype=np.float32) + 0.5
NEURONS = st.lists(st.integers(0, F - 1), unique=True)


def check(cache, held, rows):
    """What must hold at any time. held: the set of neurons that ought to be there."""
    n = cache.num_used
    assert n == len(held) <= rows
    pointer = cache.pointer[:n].tolist()
    assert set(pointer) == held and len(set(pointer)) == n  # a bijection of the contents
    assert cache.neurons.tolist() == pointer
    np.testing.assert_array_equal(cache.matrix[:n], FILE[pointer])
    np.testing.assert_array_equal(cache.bias[:n], BIAS[pointer])
    everyone = cache.find(np.arange(F, dtype=np.int64))
    for j in range(F):
        assert (everyone[j] >= 0) == (j in held)  # no stale rows
        assert j not in held or cache.pointer[everyone[j]] == j
    np.testing.assert_array_equal(cache.pointer[n:], -1)
    np.testing.assert_array_equal(cache.bias[n:], 0)


def play(cache, rows, moves):
    """Drop and append as told, what is possible of it, and check after every move."""
    held = set()
    check(cache, held, rows)
    for drop, append in moves:
        stale = np.array([j for j in drop if j in held], dtype=np.int64)
        cache.drop(stale)
        held -= set(stale.tolist())
        check(cache, held, rows)
        new = [j for j in append if j not in held][: rows - len(held)]
        new = np.array(new, dtype=np.int64)
        cache.append(new, FILE[new], BIAS[new])
        held |= set(new.tolist())
        check(cache, held, rows)


@pytest.mark.parametrize("kind", [NeuronCache, NaiveNeuronCache])
@settings(max_examples=150, deadline=None)
@given(rows=st.integers(1, F + 2), moves=st.lists(st.tuples(NEURONS, NEURONS), max_size=6))
def test_any_sequence_of_changes_keeps_the_invariants(kind, rows, moves):
    play(kind(rows, WIDTH, F, np.float16), rows, moves)


class SkipsWhenFull(NeuronCache):
    """What a replication of the paper does: neurons that do not fit are left out, silently."""

    def append(self, neurons, rows, bias=None):
        n = len(self.free) - 1
        super().append(neurons[:n], rows[:n], bias[:n])


class ForgetsTheBias(NeuronCache):
    def drop(self, stale):
        before = self.bias.copy()
        super().drop(stale)
        self.bias[: self.num_used] = before[: self.num_used]


class ForgetsTheMatrix(NeuronCache):
    def drop(self, stale):
        before = self.matrix.copy()
        super().drop(stale)
        self.matrix[:] = before


class KeepsStaleRows(NeuronCache):
    def drop(self, stale):
        rows = self.find(stale)
        super().drop(stale)
        self.row_of[stale] = rows


class LosesTheMoved(NeuronCache):
    """The neuron that moves into a hole is still looked for where it was."""

    def drop(self, stale):
        before = self.row_of.copy()
        super().drop(stale)
        self.row_of[self.neurons] = before[self.neurons]


class KeepsTheCount(NeuronCache):
    def drop(self, stale):
        before = self.num_used
        super().drop(stale)
        self.num_used = before


FAULTS = [
    SkipsWhenFull,
    ForgetsTheBias,
    ForgetsTheMatrix,
    KeepsStaleRows,
    LosesTheMoved,
    KeepsTheCount,
]


@pytest.mark.parametrize("faulty", FAULTS)
def test_planted_faults_are_seen(faulty):
    moves = [([], [0, 1, 2, 3]), ([1], [4, 5]), ([0, 5, 2], [7, 0, 8])]
    play(NeuronCache(5, WIDTH, F, np.float16), 5, moves)  # sound moves
    with pytest.raises(AssertionError):
        play(faulty(5, WIDTH, F, np.float16), 5, moves)


def filled(neurons, rows=6):
    cache = NeuronCache(rows, WIDTH, F, np.float16)
    neurons = np.array(neurons, dtype=np.int64)
    cache.append(neurons, FILE[neurons], BIAS[neurons])
    return cache


def test_rows_from_the_end_move_into_the_holes():
    cache = filled([3, 1, 4, 5, 9, 2])
    cache.drop(np.array([1, 9, 3], dtype=np.int64))
    assert sorted(cache.neurons.tolist()) == [2, 4, 5]
    assert cache.pointer[2] == 4  # did not move, because it was no hole and not at the end
    assert cache.num_used == 3


def test_no_more_rows_are_written_than_holes_filled():
    cache = filled([3, 1, 4, 5, 9, 2])
    before = cache.matrix.copy()
    cache.drop(np.array([1, 9], dtype=np.int64))
    assert (
        np.count_nonzero((cache.matrix != before).any(axis=1)) == 1
    )  # 1 is a hole, 9 was at the end


def test_the_matrix_is_allocated_once():
    cache, naive = filled([3, 1, 4]), NaiveNeuronCache(6, WIDTH, F, np.float16)
    naive.append(np.array([3, 1, 4], dtype=np.int64), FILE[[3, 1, 4]], BIAS[[3, 1, 4]])
    places = [(c, c.matrix.ctypes.data, c.matrix) for c in (cache, naive)]
    for c, _, _ in places:
        c.drop(np.array([3], dtype=np.int64))
        c.append(np.array([8], dtype=np.int64), FILE[[8]], BIAS[[8]])
    assert [c.matrix.ctypes.data == place for c, place, _ in places] == [True, False]


def test_rows_may_be_read_where_they_will_stay():
    cache = filled([3, 1])
    new = np.array([7, 8], dtype=np.int64)
    room = cache.free[:2]
    assert np.shares_memory(room, cache.matrix)
    room[:] = FILE[new]
    cache.append(new, room, BIAS[new])
    check(cache, {3, 1, 7, 8}, 6)


def test_a_layer_without_bias_has_zeros():
    cache = filled([3, 1])
    cache.append(np.array([7], dtype=np.int64), FILE[[7]])
    assert cache.bias[:3].tolist() == [3.5, 1.5, 0]


@pytest.mark.parametrize("kind", [NeuronCache, NaiveNeuronCache])
def test_a_full_cache_says_so_and_stays_as_it_is(kind):
    cache = kind(4, WIDTH, F, np.float16)
    few, many = np.array([3, 1, 4], dtype=np.int64), np.array([5, 6], dtype=np.int64)
    cache.append(few, FILE[few], BIAS[few])
    with pytest.raises(ValueError, match="2 neurons"):
        cache.append(many, FILE[many], BIAS[many])
    check(cache, {3, 1, 4}, 4)


def test_what_cannot_be_meant_is_refused():
    cache = filled([3, 1])
    with pytest.raises(ValueError, match="Neuron 7 is not in the cache"):
        cache.drop(np.array([1, 7], dtype=np.int64))
    with pytest.raises(ValueError, match="in the cache already"):
        cache.append(np.array([3], dtype=np.int64), FILE[[3]], BIAS[[3]])
    check(cache, {3, 1}, 6)
    with pytest.raises(ValueError, match="at least 1 row"):
        NeuronCache(0, WIDTH, F, np.float16)


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.float32])
def test_rows_stay_undecoded(dtype):
    cache = NeuronCache(2, WIDTH, F, dtype)
    assert cache.matrix.dtype == dtype and cache.bias.dtype == np.float32


def test_both_caches_are_measured_on_the_same_changes():
    ms = measure(tokens=3, F=200, D=4)
    assert set(ms) == {"preallocated", "reallocated"} and min(ms.values()) > 0
