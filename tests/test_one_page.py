"""The page against the textbook's formula, and the engine against the page."""

import ast
from pathlib import Path

import numpy as np
import pytest
from helpers_flash import Given, MemoryReader, config_of, random_trace

from tinyflash import one_page
from tinyflash.flash import windowed
from tinyflash.flash.layer import Layer
from tinyflash.flash.neuron_cache import NeuronCache
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.windowed import Windowed
from tinyflash.one_page import Flash, FlashLayer, active_neurons, dense

# OpenBLAS computes with the garbage beside odd-sized rows too, and its flag makes NumPy warn now
# and then; the whole numbers below show that none of it gets into a result.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")

PAGE = Path(one_page.__file__)


def random_layer(rng, F, D):
    """Whole numbers, of which every sum is exact: up, b, down."""
    up, down = rng.integers(-4, 5, (2, F, D)).astype(np.float32)
    return up, rng.integers(-12, 4, F).astype(np.float32), down.T


def written(path, up, down, bundled):
    return Flash(path, up.astype(np.float16), down.astype(np.float16), bundled)


@pytest.mark.parametrize("bundled", [True, False])
def test_the_page_equals_the_textbook_bit_for_bit(bundled, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(40):
        F, D, rows, k = rng.integers(1, (30, 6, 32, 5)).tolist()
        up, b, down = random_layer(rng, F, D)
        layer = FlashLayer(written(tmp_path / "neurons", up, down, bundled), b, rows, k)
        for _ in range(6):
            x = rng.integers(-3, 4, D).astype(np.float32)
            y = layer(x, active_neurons(x, up, b))
            assert y.dtype == np.float32
            exact = dense(*(array.astype(np.int64) for array in (x, up, b, down)))
            np.testing.assert_array_equal(y, exact)
        layer.flash.file.close()


def compare_engine_and_page(path, bundled, traces, seed=0):
    """Given activity, token by token: same output, same rows, same moves, same reads."""
    rng = np.random.default_rng(seed)
    for _ in range(traces):
        F, D, k, tokens = rng.integers(1, (14, 5, 6, 10)).tolist()
        rows = rng.integers(1, F + 2)
        up, b, down = random_layer(rng, F, D)
        page = FlashLayer(written(path, up, down, bundled), b, min(rows, F), k)
        reader = MemoryReader(np.fromfile(path, dtype=np.uint8))
        trace = random_trace(rng, F, tokens)
        engine = engine_over(reader, F, D, bundled, b, rows, k, trace)
        for active in trace:
            x = rng.integers(-3, 4, D).astype(np.float32)
            before = page.cost.copy(), page.flash.cost.copy()
            expected = page(x, np.flatnonzero(active))
            np.testing.assert_array_equal(engine(x[None])[0], expected)
            np.testing.assert_array_equal(engine.cache.neurons, page.held)
            np.testing.assert_array_equal(
                engine.cache.matrix[: page.num_used], page.matrix[: page.num_used]
            )
            spent = engine.take_counters()
            moved, read = page.cost - before[0], page.flash.cost - before[1]
            for count in ("wanted", "loaded", "evicted"):
                assert getattr(spent, count) == moved[count], count
            assert (spent.bytes_wanted, spent.reads) == (read["bytes"], read["reads"])
        page.flash.file.close()


def engine_over(reader, F, D, bundled, b, rows, k, trace):
    """The engine over the page's file."""

    class Store:
        config = config_of(F, D)
        dtype, numpy_dtype = "float16", np.float16
        bundling = "row-column" if bundled else "plain"
        parts = ("up", "down")
        regions = [{"bundle": 0} if bundled else {"up": 0, "down": F * D * 2}]
        row_bytes = 4 * D

    return Windowed(Layer(Store, 0, reader, {"up": b}), rows, "all", Given(trace[:, None]), k)


@pytest.mark.parametrize("bundled", [True, False])
def test_the_engine_equals_the_page(bundled, tmp_path):
    compare_engine_and_page(tmp_path / "neurons", bundled, 120)


def test_the_engine_equals_the_page_through_the_real_reader(tmp_path):
    rng = np.random.default_rng(1)
    F, D, rows, k = 60, 16, 20, 3
    up, b, down = random_layer(rng, F, D)
    page = FlashLayer(written(tmp_path / "neurons", up, down, True), b, rows, k)
    xs = rng.integers(-1, 2, (20, D)).astype(np.float32)
    trace = np.array([up @ x + b > 0 for x in xs], dtype=bool)
    with FlashReader(tmp_path / "neurons", threads=2) as reader:
        engine = engine_over(reader, F, D, True, b, rows, k, trace)
        for x, active in zip(xs, trace, strict=True):
            expected = page(x, np.flatnonzero(active))
            np.testing.assert_array_equal(expected, dense(x, up, b, down))
            np.testing.assert_array_equal(engine(x[None])[0], expected)
            np.testing.assert_array_equal(engine.cache.neurons, page.held)


def test_a_difference_would_be_seen(tmp_path, monkeypatch):
    class TakesTheFirstInsteadOfTheLast(NeuronCache):
        """Closes holes by moving all rows up: the same neurons, in another order."""

        def drop(self, stale):
            stay = self.neurons[~np.isin(self.neurons, stale)]
            rows, bias = self.matrix[self.find(stay)], self.bias[self.find(stay)]
            super().drop(self.neurons.copy())
            self.append(stay, rows, bias)

    monkeypatch.setattr(windowed, "NeuronCache", TakesTheFirstInsteadOfTheLast)
    with pytest.raises(AssertionError):
        compare_engine_and_page(tmp_path / "neurons", True, 40)


def test_it_runs_and_the_ladder_goes_down(capsys):
    results = one_page.main(F=256, D=16, tokens=45, rows=64, k=5)
    costs = [cost for cost, _ in results.values()]
    for cost, worse in zip(costs[1:], costs, strict=False):
        assert cost["bytes"] <= worse["bytes"]
    assert costs[0]["bytes"] == 45 * 256 * 2 * 16 * 2
    assert costs[1]["bytes"] > costs[2]["bytes"] == costs[3]["bytes"]
    assert costs[2]["reads"] == 2 * costs[3]["reads"]
    assert max(error for _, error in results.values()) < 1e-5
    printed = capsys.readouterr().out
    assert "token  42" in printed and all(step in printed for step in one_page.LADDER)


def test_a_file_cut_short_is_an_error(tmp_path):
    up, b, down = random_layer(np.random.default_rng(2), 8, 3)
    flash = written(tmp_path / "neurons", up, down, True)
    with open(tmp_path / "neurons", "r+b") as file:
        file.truncate(7 * 12)
    layer = FlashLayer(flash, b, 8, 2)
    with pytest.raises(OSError, match="ends too early"):
        layer(np.ones(3, dtype=np.float32), np.array([7], dtype=np.int64))


def test_it_is_one_page_of_numpy():
    source = PAGE.read_text()
    assert len(source.splitlines()) <= 235
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    assert modules == {"numpy", "tempfile", "time", "collections", "pathlib"}
