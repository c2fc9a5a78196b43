"""Reading ahead: a guess may cost or save a read, and never changes what is computed."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_flash import feed_forward_of, on_flash, random_layer
from helpers_models import CONFIGS, write_model

import tinyflash
from tinyflash.flash import read_ahead
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store


class Told:
    """A source of activity that says what `says` holds."""

    knows = ()
    nbytes = 0

    def find(self, x, spent):
        return self.says, {}


def layer_of(F=40, rows=20, k=4, seed=0):
    """A layer in mode all, its source of activity, its reader, and one that never reads ahead."""
    weights = random_layer(np.random.default_rng(seed), F, 6, whole=True)
    told, made = Told(), []
    for _ in range(2):
        store, reader = on_flash(weights)
        made.append(
            feed_forward_of(weights, store, reader, mode="all", rows=rows, k=k, activity=told)
        )
    return *made, told, made[0].fetched.reader


def look_ahead(layer, x):
    """Begin, and let the other thread come to its end, as what is told changes afterwards."""
    layer.look_ahead(x)
    layer.ahead.job.exception()


def test_guesses_change_nothing_but_what_is_read_when():
    """Whole numbers, so that not even the order of a sum shows."""
    rng = np.random.default_rng(1)
    for trial in range(40):
        F, k = int(rng.integers(1, 50)), int(rng.integers(1, 6))
        ahead, plain, told, _ = layer_of(F, int(rng.integers(1, 60)), k, trial)
        ahead.next = SimpleNamespace(look_ahead=lambda x: None)
        before = set()
        for _ in range(8):
            T = int(rng.integers(1, 4))
            x = rng.integers(-3, 4, (T, 6)).astype(np.float32)
            active = rng.random((T, F)) < rng.random()
            told.says = np.where(rng.random((T, F)) < rng.random(), ~active, active)
            if rng.random() < 0.8:
                look_ahead(ahead, x)
            if rng.random() < 0.2:
                look_ahead(ahead, x)  # what is under way already is not asked for again
            told.says = active
            seen = []
            ahead.tap = lambda name, tensor, seen=seen: seen.append((name, tensor))
            assert np.array_equal(ahead(x), plain(x))
            held = set(ahead.cache.neurons.tolist())
            assert len(held) == ahead.cache.num_used <= len(ahead.cache.matrix)
            assert held <= set(np.flatnonzero(ahead.window.last_k_active).tolist())
            loaded = dict(seen)["layers.0.ffn.loaded"]
            evicted = dict(seen)["layers.0.ffn.evicted"]
            assert len(loaded) - len(evicted) == len(held) - len(before)
            before = held
        spent = ahead.take_counters()
        assert spent.ahead_used <= spent.ahead <= spent.loaded


def test_a_right_guess_leaves_nothing_to_read():
    ahead, plain, told, reader = layer_of()
    told.says = np.arange(40)[None] % 4 == 1
    look_ahead(ahead, np.ones((1, 6), dtype=np.float32))
    reader.fail_after = 0  # whoever reads now fails
    ahead(np.ones((1, 6), dtype=np.float32))
    spent = ahead.take_counters()
    assert spent.ahead == spent.ahead_used == spent.loaded == 10
    assert spent.bytes_read == 10 * ahead.fetched.row_bytes


def test_a_layer_whose_guesses_are_mostly_wrong_stops_guessing(monkeypatch):
    monkeypatch.setattr(read_ahead, "TRIED", 30)
    ahead, _, told, _ = layer_of(k=1)
    x = np.ones((1, 6), dtype=np.float32)
    loaded = []
    for t in range(12):
        told.says = np.arange(40)[None] % 4 == t % 4  # of these ten neurons nine are not wanted
        ahead.look_ahead(x)
        if ahead.ahead.job:
            ahead.ahead.job.result()
        told.says = np.arange(40)[None] == t % 4
        ahead(x)
        loaded.append(ahead.take_counters().ahead)
    assert loaded[0] == 10 and sum(loaded) < 60 and loaded[-1] == 0
    assert not ahead.ahead.pays


def test_a_guess_that_does_not_fit_is_left():
    ahead, plain, told, _ = layer_of(rows=20)
    told.says = np.arange(40)[None] < 21
    x = np.ones((1, 6), dtype=np.float32)
    look_ahead(ahead, x)
    assert len(ahead.ahead.job.result().neurons) == 0
    told.says = np.arange(40)[None] < 20
    assert np.array_equal(ahead(x), plain(x))
    told.says = np.arange(40)[None] >= 20
    look_ahead(ahead, x)
    assert len(ahead.ahead.job.result().neurons) == 20


def test_a_read_that_fails_is_told_by_the_call_and_the_next_one_goes_on():
    ahead, plain, told, reader = layer_of()
    x = np.arange(6, dtype=np.float32)[None]
    told.says = np.arange(40)[None] % 3 == 0
    reader.fail_after = 5
    look_ahead(ahead, x)
    with pytest.raises(OSError, match="the flash is gone"):
        ahead(x)
    reader.fail_after = None
    assert np.array_equal(ahead(x), plain(x))


@pytest.mark.parametrize("family", ["opt", "llama", "mobilellm"])
def test_a_model_that_reads_ahead_computes_the_same(family, tmp_path):
    from test_flash_model import with_predictors

    config = dict(CONFIGS[family], layer_sharing=True) if family == "mobilellm" else CONFIGS[family]
    config = config if family == "opt" else dict(config, hidden_act="relu")
    write_model(tmp_path / "model", config)
    store = with_predictors(open_store(convert(tmp_path / "model", tmp_path / "flash")))
    settings = {"memory": "150%", "mode": "all", "k": 2, "dtype": "float64"}
    ahead, plain = (tinyflash.load(store.path, **settings) for _ in range(2))
    for layer in plain.flash.feed_forwards:
        layer.next = None
    caches, early = (ahead.new_cache(32), plain.new_cache(32)), 0
    ids = np.random.default_rng(0).integers(0, ahead.config.vocab_size, 24)
    for part in ([*ids[:5]], *([i] for i in ids[5:])):
        ours, theirs = (m.logits(part, c) for m, c in zip((ahead, plain), caches, strict=True))
        assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()
        early += ahead.flash.last_cost.ahead
        assert plain.flash.last_cost.ahead == 0
    assert early > 0


def test_what_was_begun_before_a_cache_was_cleared_writes_nothing(monkeypatch):
    """As after an interruption: it waits in the queue of the other thread still."""
    layer, _, told, _ = layer_of()
    begun = []
    later = SimpleNamespace(submit=lambda do: begun.append(do) or SimpleNamespace(result=None))
    monkeypatch.setattr(read_ahead, "background", lambda: later)
    told.says = np.arange(40)[None] % 4 == 1
    layer.look_ahead(np.ones((1, 6), dtype=np.float32))
    layer._begin_reading(np.arange(5, dtype=np.int64), layer.cache.free[:5], TokenCounters())
    layer.forget()
    assert [do() for do in begun] == [None, None]
    assert not layer.cache.matrix.any() and layer.cache.num_used == 0
    layer._begin_reading(np.arange(5, dtype=np.int64), layer.cache.free[:5], TokenCounters())
    assert begun[-1]() is not None and layer.cache.matrix[:5].any()


def test_what_is_being_read_into_a_cache_is_waited_for(monkeypatch):
    layer, _, _, reader = layer_of()
    begun, order, real = threading.Event(), [], reader.read_extents

    def slowly(*given):
        begun.set()
        time.sleep(0.1)
        order.append("read")
        return real(*given)

    monkeypatch.setattr(reader, "read_extents", slowly)
    layer._begin_reading(np.arange(5, dtype=np.int64), layer.cache.free[:5], TokenCounters())
    begun.wait()
    layer.forget()
    assert order == ["read"]
