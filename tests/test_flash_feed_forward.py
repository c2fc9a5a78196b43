"""Flash computes what the dense layer computes, reads what it must, and holds what it may."""

import itertools
from collections import Counter
from functools import cache

import numpy as np
import pytest
from helpers_flash import (
    Given,
    config_of,
    dense,
    feed_forward_of,
    in_mode,
    on_flash,
    random_layer,
    random_trace,
    stored,
    union,
)
from helpers_goldens import largest_relative
from helpers_models import CONFIGS, write_model

import tinyflash
from tinyflash.flash import feed_forward, windowed
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.layer import Layer, biases_of
from tinyflash.flash.neuron_cache import NeuronCache
from tinyflash.flash.neuron_sum import Rows, sum_of_neurons, sum_plainly
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store, resident_weights
from tinyflash.flash.window import Window
from tinyflash.kv_cache import KVCache
from tinyflash.ops import relu
from tinyflash.transformer import forward

# OpenBLAS computes with the garbage beside odd-sized rows too, and its flag makes NumPy warn now
# and then; the whole numbers below show that none of it gets into a result.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")

EXACT = 1e-12
WAYS = (  # mode, source of activity
    ("naive", "resident"),
    ("hybrid", "resident"),
    ("predictor", "resident"),
    ("window", "resident"),
    ("all", "resident"),
    ("all", "read"),
)
BUNDLINGS = ("row-column", "plain")


# Through the whole model, with real files and the real reader.


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A function (family, bundling) -> (dense model in float64, Store, FlashReader)."""
    place = tmp_path_factory.mktemp("converted")
    readers = []

    @cache
    def model(family):
        path = write_model(place / family, CONFIGS[family], seed=3, tokenizer=False)
        return path, tinyflash.load(path, dtype="float64")

    @cache
    def store(family, bundling):
        path, whole = model(family)
        store = open_store(convert(path, place / f"{family}.{bundling}", bundling=bundling))
        readers.append(FlashReader(store.ffn_path, threads=2))
        return whole, store, readers[-1]

    yield store
    for reader in readers:
        reader.close()


def flash_feed_forwards(store, reader, weights, **settings):
    """One feed-forward on flash a layer, with the biases that are resident."""
    return [
        in_mode(Layer(store, i, reader, biases_of(weights, f"layers.{i}.ffn")), **settings)
        for i in range(store.config.layers)
    ]


@pytest.mark.parametrize("mode, activity", WAYS)
@pytest.mark.parametrize(
    "family, bundling",
    [*((family, "row-column") for family in CONFIGS), ("opt", "plain"), ("llama", "plain")],
)
def test_flash_equals_dense_through_the_model(family, bundling, mode, activity, converted):
    model, store, reader = converted(family, bundling)
    weights, F = resident_weights(store, np.float64), store.config.ffn_width
    ids = np.random.default_rng(0).integers(0, store.config.vocab_size, 10)
    expected = model.logits(ids)
    for rows, k in ((1, 2), (7, 1), (F // 2, 3), (F + 9, 100)):
        settings = {"rows": rows, "k": k, "mode": mode, "activity": activity}
        layers = flash_feed_forwards(store, reader, weights, **settings)
        cache = KVCache(store.config, np.dtype(np.float64))
        pieces = [
            forward(weights, store.config, ids[first:last], cache, feed_forwards=layers)
            for first, last in ((0, 5), (5, 6), (6, 9), (9, 10))
        ]
        assert largest_relative(expected, np.concatenate(pieces)) <= EXACT


def test_the_notes_say_where_every_neuron_counts_as_active(converted):
    for family, words in (("opt", ""), ("gpt2", "gelu_new is zero"), ("llama", "silu is zero")):
        _, store, reader = converted(family, "row-column")
        weights = resident_weights(store, np.float64)
        layer = flash_feed_forwards(store, reader, weights, rows=5, mode="window")[0]
        assert layer.exact_note.startswith(words) and bool(layer.exact_note) == bool(words)


# One layer, on a flash made of memory.


def both(weights, x, activation="relu", bundling="row-column", dtype="float32", **settings):
    """(dense, flash) outputs of calls in turn, and the feed-forward. x: a list of (T, D)."""
    store, reader = on_flash(weights, activation, bundling, dtype)
    flash = feed_forward_of(weights, store, reader, x[0].dtype, **settings)
    pairs = [(dense(weights, store.config, inputs), flash(inputs)) for inputs in x]
    return pairs, flash


@pytest.mark.parametrize("mode, activity", WAYS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("gated", [False, True])
def test_whole_numbers_come_out_bit_for_bit(gated, dtype, mode, activity):
    rng = np.random.default_rng(0)
    for trial in range(12):
        F, D, rows, k = rng.integers(1, (30, 7, 32, 6)).tolist()
        weights = random_layer(rng, F, D, gated, whole=True, biases=trial % 3 > 0)
        x = [rng.integers(-3, 4, (T, D)).astype(np.float32) for T in (4, 1, 1, 2, 1, 1)]
        settings = {"dtype": dtype, "mode": mode, "activity": activity, "rows": rows, "k": k}
        for bundling in BUNDLINGS:
            pairs, _ = both(weights, x, bundling=bundling, **settings)
            config = config_of(F, D, gated=gated)
            for inputs, (expected, computed) in zip(x, pairs, strict=True):
                assert computed.dtype == expected.dtype == np.float32
                np.testing.assert_array_equal(computed, expected)
                np.testing.assert_array_equal(
                    computed, dense(weights, config, inputs.astype(np.int64))
                )


@pytest.mark.parametrize("mode, activity", WAYS)
@pytest.mark.parametrize("gated", [False, True])
def test_plain_and_row_column_stores_give_the_same_bits(gated, mode, activity):
    rng = np.random.default_rng(1)
    weights = random_layer(rng, 40, 6, gated)
    x = [rng.standard_normal((T, 6)).astype(np.float32) for T in (5, 1, 1, 2)]
    for rows in (1, 9, 40):
        settings = {"rows": rows, "mode": mode, "activity": activity, "dtype": "float16"}
        results = [both(weights, x, bundling=bundling, **settings) for bundling in BUNDLINGS]
        (bundled, flash), (plain, flash_plain) = results
        for (_, a), (_, b) in zip(bundled, plain, strict=True):
            np.testing.assert_array_equal(a, b)
        ours, theirs = flash.take_counters(), flash_plain.take_counters()
        assert ours.bytes_wanted == theirs.bytes_wanted
        assert ours.loaded == theirs.loaded
        if activity != "read":  # in a plain store the projection is one block
            assert ours.reads <= theirs.reads


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_new"])
@pytest.mark.parametrize("gated", [False, True])
def test_any_source_of_activity_that_misses_nothing_gives_the_dense_result(gated, activation):
    """Whole rows, both products computed from them: as it will be with a predictor."""
    rng = np.random.default_rng(2)
    weights = random_layer(rng, 23, 5, gated)
    x = [rng.standard_normal((T, 5)) for T in (3, 1, 1, 1, 2, 1)]
    for rows in (1, 4, 11, 23):
        active = []
        for inputs in x:  # what is active, and as much again for nothing
            part = "gate" if gated else "up"
            pre = inputs @ weights[f"ffn.{part}.weight"].T + weights[f"ffn.{part}.bias"]
            wrongly = rng.random(pre.shape) < 0.3
            active.append(wrongly | ((pre > 0) if activation == "relu" else True))
        settings = {"mode": "window", "rows": rows, "k": 2, "activity": Given(active)}
        pairs, flash = both(weights, x, activation, **settings)
        assert flash.fetched.parts == (("up", "gate", "down") if gated else ("up", "down"))
        for expected, computed in pairs:
            np.testing.assert_allclose(
                computed, expected, rtol=0, atol=1e-13 * np.abs(expected).max()
            )


def play_traces(traces, seed=0, rows_of=lambda rng, F: rng.integers(1, F + 2)):
    """Given activity, call by call: what the window holds, what moved, what came out."""
    rng = np.random.default_rng(seed)
    sliced = 0
    for _ in range(traces):
        F, tokens, k = rng.integers(1, (10, 10, 6))
        D, rows = 2, rows_of(rng, F)
        weights = random_layer(rng, F, D, whole=True)
        trace = random_trace(rng, F, tokens)
        lengths, left = [], tokens
        while left:
            lengths.append(min(left, rng.choice((1, 1, 1, 1, 2, 4))))
            left -= lengths[-1]
        calls = np.split(trace, np.cumsum(lengths)[:-1])
        store, reader = on_flash(weights)
        tapped = {}
        flash = feed_forward_of(
            weights, store, reader, rows=rows, k=k, mode="window", activity=Given(calls),
            tap=tapped.__setitem__,
        )  # fmt: skip
        sets, held, all_fitted = [], set(), True
        for active in calls:
            x = rng.integers(-3, 4, (len(active), D)).astype(np.float32)
            y = flash(x)
            sets += [set(np.flatnonzero(row).tolist()) for row in active]
            needed = union(sets, len(active))

            # what the neurons given for each token come to
            for t, mask in enumerate(active):
                chosen = weights | {"ffn.down.weight": weights["ffn.down.weight"] * mask}
                np.testing.assert_array_equal(y[t], dense(chosen, store.config, x[t]))

            # what moved: every neuron once at most, none that was there, none twice
            loaded, evicted = (tapped[f"layers.0.ffn.{n}"].tolist() for n in ("loaded", "evicted"))
            assert sorted(loaded) == sorted(needed - held)
            now = set(flash.cache.neurons.tolist())
            assert sorted(evicted) == sorted([*(held | needed) - now])
            assert flash.counters.loaded == len(loaded)
            spent = flash.take_counters()
            assert spent.bytes_wanted == len(loaded) * flash.fetched.row_bytes
            assert (spent.wanted, spent.evicted) == (len(needed), len(evicted))

            # what stays: of what was there, the longest window that fits
            assert len(now) <= rows
            lengths_that_fit = [j for j in range(1, k + 1) if len(union(sets, j)) <= rows]
            length = max(lengths_that_fit, default=1)
            if len(needed) <= rows:
                assert now == (held | needed) & union(sets, length)
                assert now == union(sets, length) or not all_fitted
                assert spent.slices == (len(needed) > 0)
            else:
                sliced += 1
                all_fitted = False
                assert now <= union(sets, length)
                if not held and lengths_that_fit:  # the most recently used came last
                    assert now == union(sets, length)
                assert spent.slices > 1
                if len(active) == 1:
                    assert len(now) == min(rows, len(needed - held))
            for neuron, row in zip(flash.cache.neurons, flash.cache.matrix, strict=False):
                expected = [weights["ffn.up.weight"][neuron], weights["ffn.down.weight"][:, neuron]]
                np.testing.assert_array_equal(row, np.concatenate(expected))
            held = now
    return sliced


def test_the_cache_holds_what_brute_force_says_after_every_call():
    assert play_traces(500) > 100


def test_a_share_of_one_row_is_enough():
    assert play_traces(60, seed=1, rows_of=lambda rng, F: 1) > 20


class SkipsWhenFull(NeuronCache):
    """Silently leaves out a neuron when there is no row to spare."""

    def append(self, neurons, rows, bias=None):
        n = len(self.free) - 1 if len(neurons) == len(self.free) else len(neurons)
        super().append(neurons[:n], rows[:n], bias[:n])


class ForgetsTheBias(NeuronCache):
    def drop(self, stale):
        before = self.bias.copy()
        super().drop(stale)
        self.bias[: self.num_used] = before[: self.num_used]


class KeepsStaleRows(NeuronCache):
    def drop(self, stale):
        rows = self.find(stale)
        super().drop(stale)
        self.row_of[stale] = rows


class NeverDrops(NeuronCache):
    """Counts neurons as gone, but goes on finding them where new ones are."""

    def drop(self, stale):
        self.num_used -= len(stale)


class WindowOffByOne(Window):
    def used_within(self, length):
        return self.age <= length


class WindowTooShort(Window):
    def longest_that_fits(self, rows, most):
        return max(1, super().longest_that_fits(rows, most) - 1)


@pytest.mark.parametrize(
    "faulty",
    [SkipsWhenFull, ForgetsTheBias, KeepsStaleRows, NeverDrops, WindowOffByOne, WindowTooShort],
)
def test_planted_faults_are_seen(faulty, monkeypatch):
    kind = "NeuronCache" if issubclass(faulty, NeuronCache) else "Window"
    monkeypatch.setattr(windowed, kind, faulty)
    with pytest.raises((AssertionError, ValueError)):
        play_traces(60)


@pytest.mark.parametrize("faulty", [ForgetsTheBias, KeepsStaleRows])
def test_a_faulty_cache_gives_another_result(faulty, monkeypatch):
    """The two worst ones: nothing but the numbers is wrong."""
    rng = np.random.default_rng(0)
    weights = random_layer(rng, 30, 5, whole=True)
    x = [rng.integers(-3, 4, (1, 5)).astype(np.float32) for _ in range(20)]
    calls = [inputs @ weights["ffn.up.weight"].T + weights["ffn.up.bias"] > 0 for inputs in x]
    settings = {"mode": "window", "rows": 30, "k": 2}
    pairs, _ = both(weights, x, activity=Given(calls), **settings)
    assert all(np.array_equal(a, b) for a, b in pairs)
    monkeypatch.setattr(windowed, "NeuronCache", faulty)
    pairs, _ = both(weights, x, activity=Given(calls), **settings)
    assert not all(np.array_equal(a, b) for a, b in pairs)


def test_a_prompt_reads_the_union_once():
    rng = np.random.default_rng(3)
    weights = random_layer(rng, 60, 6, shift=-4.0)
    prompt = rng.standard_normal((20, 6)).astype(np.float32)
    fires = prompt @ weights["ffn.up.weight"].T + weights["ffn.up.bias"] > 0
    union_size = np.count_nonzero(fires.any(axis=0))
    assert 4 < union_size < 40 and union_size < np.count_nonzero(fires)
    for rows in (60, union_size, 5, 1):
        _, flash = both(weights, [prompt], mode="window", rows=rows, k=2)
        spent = flash.take_counters()
        assert spent.wanted == spent.loaded == union_size
        assert spent.bytes_wanted == union_size * flash.fetched.row_bytes
        assert spent.slices == -(-union_size // rows)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bundling", BUNDLINGS)
def test_what_the_source_knows_is_not_fetched(bundling, gated):
    rng = np.random.default_rng(4)
    weights = random_layer(rng, 30, 8, gated)
    x = [rng.standard_normal((1, 8)).astype(np.float32) for _ in range(3)]
    settings = {"bundling": bundling, "mode": "window", "rows": 30, "k": 3, "dtype": "float16"}
    for activity in ("resident", "read"):
        _, flash = both(weights, x, activity=activity, **settings)
        assert flash.fetched.parts == (("up", "down") if gated else ("down",))
        spent = flash.take_counters()
        projection = 30 * 8 * 2
        scanned = 3 * projection if activity == "read" else 0
        assert spent.bytes_wanted == scanned + spent.loaded * flash.fetched.row_bytes
        assert 0 < spent.loaded < 30
        rows = 30 * flash.fetched.row_bytes
        assert flash.cache.matrix.nbytes == rows
        assert flash.nbytes == rows + projection  # here the buffer for reading is as large


@pytest.mark.parametrize("rows", [1, 2, 9, 20, 39, 40, 50])
@pytest.mark.parametrize("mode", ["naive", "hybrid", "window"])
def test_no_more_rows_than_allowed(mode, rows):
    weights = random_layer(np.random.default_rng(5), 40, 6)
    store, reader = on_flash(weights)
    flash = feed_forward_of(weights, store, reader, rows=rows, mode=mode, activity="read")
    beside = flash.activity.nbytes if mode == "window" else 0
    assert flash.nbytes <= rows * store.row_bytes
    assert beside <= rows * 6 * 4
    assert mode != "hybrid" or len(flash.resident) >= min(40, rows) // 2


def test_hybrid_keeps_seven_eighths_of_many_rows():
    weights = random_layer(np.random.default_rng(6), 1000, 6)
    x = np.ones((1, 6), dtype=np.float32)
    _, flash = both(weights, [x], mode="hybrid", rows=800)
    assert (len(flash.resident), len(flash.slice)) == (700, 100)


def test_hybrid_reads_what_is_not_resident():
    weights = random_layer(np.random.default_rng(6), 40, 6)
    x = np.ones((1, 6), dtype=np.float32)
    for rows, resident in ((1, 0), (2, 1), (20, 10), (39, 20), (40, 40)):
        _, flash = both(weights, [x, x, x], mode="hybrid", rows=rows)
        spent = flash.take_counters()
        assert len(flash.resident) == resident
        assert spent.loaded == spent.evicted == 3 * (40 - resident)
        assert spent.bytes_wanted == spent.loaded * flash.fetched.row_bytes
        assert spent.wanted == 3 * 40


def test_only_active_rows_are_decoded_and_the_second_part_only_of_those_that_fire(monkeypatch):
    decoded = Counter()
    original = Rows.part

    def spy(rows, name, *some):
        part = original(rows, name, *some)
        decoded[name] += len(part)
        return part

    monkeypatch.setattr(Rows, "part", spy)
    rng = np.random.default_rng(7)
    weights = random_layer(rng, 40, 6, shift=-1.0)
    calls = [rng.random((T, 40)) < 0.4 for T in (1, 1, 1, 3, 1)]
    x = [rng.standard_normal((len(active), 6)).astype(np.float32) for active in calls]
    active = sum(given.any(axis=0).sum() for given in calls)
    pre = [each @ weights["ffn.up.weight"].T + weights["ffn.up.bias"] for each in x]
    fired = sum(((p > 0) & given).any(axis=0).sum() for p, given in zip(pre, calls, strict=True))
    assert 0 < fired < active
    for rows in (40, 20, 3, 1):
        decoded.clear()
        _, flash = both(
            weights, x, dtype="float16", mode="window", rows=rows, k=4, activity=Given(calls)
        )
        assert decoded == {"up": active, "down": fired}
        assert flash.take_counters().wanted == active


def test_large_activations_do_not_overflow_on_the_way():
    """Activations are multiplied by 2^112 in the place of float16's tiles, if they are small."""
    weights = random_layer(np.random.default_rng(3), 30, 6)
    for size in (1.0, 2.0**13, 2.0**16, 2.0**20):  # of x; activations are a few times larger
        x = [np.full((T, 6), size, dtype=np.float32) for T in (1, 2)]
        pairs, _ = both(weights, x, dtype="float16", mode="all", rows=30)
        for expected, computed in pairs:
            np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=size * 1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("tile_bytes", [4 * 6 * 7, 1 << 20])
def test_the_tiled_sum_is_the_plain_one(gated, dtype, tile_bytes, monkeypatch):
    """Whole numbers, so bit for bit: rows in any order or as they lie, known parts, used or not."""
    monkeypatch.setattr("tinyflash.matrices.half.TILE_BYTES", tile_bytes)
    rng = np.random.default_rng(17)
    weights = random_layer(rng, 150, 6, gated, whole=True)
    tells = "gate" if gated else "up"
    for n, whole, known, one_by_one in itertools.product((0, 1, 40, 100), *[(False, True)] * 3):
        parts = [part for part in ("up", "gate", "down") if f"ffn.{part}.weight" in weights]
        parts = tuple(part for part in parts if not (known and part == tells))
        columns = [weights[f"ffn.{part}.weight"] for part in parts[:-1]]
        matrix = np.concatenate([*columns, weights["ffn.down.weight"].T], axis=1)
        matrix = stored(matrix, dtype)
        neurons = rng.permutation(150)[:n]
        x = rng.integers(-3, 4, (3, 6)).astype(np.float32)
        used = rng.random((3, n)) < 0.7 if one_by_one else None
        biases = {p: weights[f"ffn.{p}.bias"][neurons] for p in parts if p != "down"}
        pre = {tells: rng.integers(-9, 9, (3, n)).astype(np.float32)} if known else {}
        where = (matrix[neurons], None) if whole else (matrix, neurons)
        rows = Rows(*where, parts, dtype, biases, pre, used)
        expected = sum_plainly(x, rows, relu, gated)
        computed, fired = sum_of_neurons(x, rows, relu, gated)
        np.testing.assert_array_equal(computed, expected)
        assert computed.dtype == np.float32 and computed.shape == (3, 6)
        assert bool(fired) >= expected.any() and fired <= 3 * n


def test_rows_that_follow_one_another_are_not_gathered():
    matrix = np.arange(12, dtype=np.float32).reshape(6, 2)
    for chosen, gathers in (([2, 3, 4], False), ([2, 4, 3], True), ([], True), ([5], False)):
        rows = Rows(matrix, np.array(chosen, dtype=np.int64), ("up", "down"), "float32", {}, {})
        assert (rows.together().chosen is not None) == gathers and len(rows) == len(chosen)
        for part, array in rows.together().decoded(np.float32).items():
            np.testing.assert_array_equal(array, rows.decoded(np.float32)[part])


def test_many_tiles_give_the_same_as_one(monkeypatch):
    rng = np.random.default_rng(8)
    weights = random_layer(rng, 40, 6, whole=True)
    x = [rng.integers(-3, 4, (T, 6)).astype(np.float32) for T in (3, 1, 1)]
    for tile_bytes in (1, 4 * 12 * 7, 1 << 20):
        monkeypatch.setattr("tinyflash.matrices.half.TILE_BYTES", tile_bytes)
        for mode in ("hybrid", "window"):
            pairs, _ = both(weights, x, dtype="float16", mode=mode, rows=30)
            for expected, computed in pairs:
                np.testing.assert_array_equal(computed, expected)


@pytest.mark.parametrize("mode, activity", WAYS)
def test_float32_stays_float32(mode, activity, monkeypatch):
    seen = set()
    original = feed_forward.sum_of_neurons

    def watched(x, rows, *rest):
        y, fired = original(x, rows, *rest)
        seen.update(a.dtype for a in (x, y, *rows.biases.values(), *rows.known.values()))
        return y, fired

    monkeypatch.setattr(feed_forward, "sum_of_neurons", watched)
    rng = np.random.default_rng(9)
    for gated in (False, True):
        weights = random_layer(rng, 20, 6, gated)
        for dtype in (np.float32, np.float64):
            seen.clear()
            x = [rng.standard_normal((T, 6)).astype(dtype) for T in (3, 1)]
            pairs, _ = both(weights, x, dtype="bfloat16", mode=mode, activity=activity, rows=7)
            assert {y.dtype for _, y in pairs} | seen == {np.dtype(dtype)}


def test_counters_of_layers_and_tokens_add_up():
    rng = np.random.default_rng(10)
    weights = random_layer(rng, 20, 6)
    x = [rng.standard_normal((1, 6)).astype(np.float32) for _ in range(4)]
    _, whole = both(weights, x, mode="window", rows=9, k=2)
    store, reader = on_flash(weights)
    single = feed_forward_of(weights, store, reader, rows=9, k=2, mode="window")
    reader.read_block(0, 3, np.empty(3, dtype=np.uint8))  # somebody else's
    parts = []
    for inputs in x:
        single(inputs)
        parts.append(single.take_counters())
        assert parts[-1].calls == 1 and parts[-1].io_ms > 0 and parts[-1].compute_ms > 0
    total, expected = sum(parts, TokenCounters()), whole.take_counters()
    for name in ("calls", "bytes_wanted", "bytes_read", "reads", "chunk_sizes", "wanted"):
        assert getattr(total, name) == getattr(expected, name), name
    assert (total.loaded, total.evicted, total.slices) == (
        expected.loaded, expected.evicted, expected.slices,
    )  # fmt: skip
    assert sum(size * count for size, count in total.chunk_sizes.items()) == total.bytes_read
    assert whole.take_counters() == TokenCounters()


def test_the_taps_show_what_happened():
    rng = np.random.default_rng(11)
    weights = random_layer(rng, 20, 6)
    store, reader = on_flash(weights)
    for mode in ("naive", "hybrid", "window"):
        tapped = {}
        flash = feed_forward_of(weights, store, reader, rows=9, mode=mode, tap=tapped.__setitem__)
        out = flash(rng.standard_normal((3, 6)).astype(np.float32))
        names = [f"layers.0.ffn.{n}" for n in ("predicted", "loaded", "evicted", "reads", "out")]
        assert list(tapped) == names
        predicted, loaded, evicted, reads, tapped_out = tapped.values()
        assert predicted.shape == (3, 20) and predicted.dtype == bool
        assert loaded.dtype == evicted.dtype == reads.dtype == np.int64
        spent = flash.take_counters()
        assert (len(loaded), len(evicted)) == (spent.loaded, spent.evicted)
        assert reads.shape[1] == 2 and reads[:, 1].sum() == spent.reads
        assert np.array_equal(out, tapped_out)


@pytest.mark.parametrize("mode, activity", WAYS)
def test_after_a_failed_read_the_next_call_is_right(mode, activity):
    rng = np.random.default_rng(12)
    weights = random_layer(rng, 20, 6, whole=True)
    x = [rng.integers(-3, 4, (1, 6)).astype(np.float32) for _ in range(12)]
    for rows in (4, 12):
        store, reader = on_flash(weights)
        flash = feed_forward_of(
            weights, store, reader, rows=rows, k=2, mode=mode, activity=activity
        )
        failed = 0
        for i, inputs in enumerate(x):
            expected = dense(weights, store.config, inputs)
            reader.fail_after = i % 4
            try:
                np.testing.assert_array_equal(flash(inputs), expected)
            except OSError:
                failed += 1
                reader.fail_after = None
                np.testing.assert_array_equal(flash(inputs), expected)
        assert failed


@pytest.mark.parametrize("mode, activity", WAYS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_inf_on_flash_is_refused(dtype, mode, activity):
    weights = random_layer(np.random.default_rng(13), 20, 6, shift=5.0)
    weights["ffn.down.weight"][2, 17] = np.inf
    x = np.ones((1, 6), dtype=np.float32)
    store, reader = on_flash(weights, dtype=dtype)
    flash = feed_forward_of(weights, store, reader, rows=6, mode=mode, activity=activity)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"layers\.0\.ffn .* holds Inf or NaN"):
            flash(x)


def test_what_cannot_be_meant_is_refused():
    weights = random_layer(np.random.default_rng(14), 20, 6)
    store, reader = on_flash(weights)
    for wrong, words in (
        ({"rows": 0}, "No neuron of layer 0 fits"),
        ({"rows": 5, "mode": "lazy"}, "predictor, window, all, not 'lazy'"),
        ({"rows": 5, "mode": "window", "k": 0}, "at least 1 token"),
        ({"rows": 5, "mode": "window", "activity": "guessed"}, '"resident" or "read"'),
    ):
        with pytest.raises(ValueError, match=words):
            feed_forward_of(weights, store, reader, **wrong)


def test_the_helper_makes_layers_that_rest():
    """Otherwise the tests above would say little."""
    weights = random_layer(np.random.default_rng(15), 200, 8)
    x = np.random.default_rng(16).standard_normal((50, 8)).astype(np.float32)
    pre = x @ weights["ffn.up.weight"].T + weights["ffn.up.bias"]
    assert 0.2 < np.mean(pre > 0) < 0.6
    assert config_of(3, 2).activation == "relu"
