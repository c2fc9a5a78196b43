"""One feed-forward layer on a flash made of memory, for tests that need thousands of them.

weights = random_layer(rng, F=12, D=5, gated=False)
store, reader = on_flash(weights, "relu", "row-column", "float32")
"""

from types import SimpleNamespace

import numpy as np

from tinyflash.config import ModelConfig
from tinyflash.flash.activity import exact_activity
from tinyflash.flash.counters import ReadCounters
from tinyflash.flash.feed_forward import STREAMED_MODES
from tinyflash.flash.layer import Layer, biases_of
from tinyflash.flash.streamed import Streamed
from tinyflash.flash.windowed import Windowed
from tinyflash.transformer import dense_feed_forward

NUMPY_DTYPES = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}


def config_of(F, D, activation="relu", gated=False):
    """A ModelConfig whose feed-forward has F neurons of width D."""
    return ModelConfig(
        family="opt", vocab_size=3, width=D, layers=1, heads=1, kv_heads=1, head_width=D,
        ffn_width=F, context=8, embed_width=D, activation=activation, gated=gated,
    )  # fmt: skip


def random_layer(rng, F, D, gated=False, whole=False, biases=True, shift=-0.3):
    """Weights of one feed-forward under the names of a layer; numbers that bfloat16 has.

    whole: small whole numbers, so that every sum is exact in float32
    shift: added to the biases that activity hangs on; below zero makes neurons rest
    """
    draw = (lambda *n: rng.integers(-4, 5, n)) if whole else (lambda *n: rng.standard_normal(n))
    weights = {"ffn.up.weight": draw(F, D), "ffn.down.weight": draw(D, F)}
    if gated:
        weights["ffn.gate.weight"] = draw(F, D)
    if biases:
        for part in ("up", "gate") if gated else ("up",):
            weights[f"ffn.{part}.bias"] = draw(F) + (round(10 * shift) if whole else shift)
        weights["ffn.down.bias"] = draw(D)
    return {name: in_bfloat16(array) for name, array in weights.items()}


def in_bfloat16(array):
    """Float32 numbers cut to what bfloat16 has of them; float16 has them too unless tiny."""
    bits = array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return np.where(np.abs(array) < 2**-6, np.float32(0), bits.view(np.float32))


def stored(array, dtype):
    """Numbers as a store of `dtype` has them."""
    if dtype == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return array.astype(NUMPY_DTYPES[dtype])


class MemoryReader:
    """A FlashReader of bytes in memory: every piece asked for is one read."""

    def __init__(self, flash):
        self.flash = flash
        self.fail_after = None  # so many more reads succeed

    def read_extents(self, begins, ends, places, out):
        assert out.dtype == np.uint8 and out.flags.c_contiguous
        assert len(set(begins.tolist())) == len(begins)
        flat, counted = out.reshape(-1), ReadCounters()
        for begin, end, place in zip(begins, ends, places, strict=True):
            piece = flat[place : place + end - begin]
            counted = counted + self.read_block(begin, int(end - begin), piece)
        return counted

    def read_block(self, offset, nbytes, out):
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise OSError("the flash is gone")
        assert out.nbytes == nbytes and offset + nbytes <= len(self.flash)
        out.reshape(-1)[:] = self.flash[offset : offset + nbytes]
        return ReadCounters.of(nbytes, [nbytes] if nbytes else [], 0.0)


def on_flash(weights, activation="relu", bundling="row-column", dtype="float32"):
    """(store, reader) of one layer."""
    F, D = weights["ffn.up.weight"].shape
    gated = "ffn.gate.weight" in weights
    parts = ("up", "gate", "down") if gated else ("up", "down")
    matrices = {part: weights[f"ffn.{part}.weight"] for part in parts}
    matrices["down"] = matrices["down"].T
    matrices = {part: stored(matrix, dtype) for part, matrix in matrices.items()}
    if bundling == "row-column":
        regions = {"bundle": np.concatenate([matrices[part] for part in parts], axis=1)}
    else:
        regions = matrices
    flash, offsets = b"header", {}
    for name, region in regions.items():
        offsets[name] = len(flash)
        flash += region.tobytes() + b"pad"
    store = SimpleNamespace(
        config=config_of(F, D, activation, gated),
        dtype=dtype,
        numpy_dtype=NUMPY_DTYPES[dtype],
        bundling=bundling,
        parts=parts,
        regions=[offsets],
        row_bytes=len(parts) * D * np.dtype(NUMPY_DTYPES[dtype]).itemsize,
    )
    return store, MemoryReader(np.frombuffer(flash, dtype=np.uint8))


def feed_forward_of(weights, store, reader, x_dtype=np.float32, threshold=None, **settings):
    """A feed-forward on flash over a layer's weights and biases; settings as for `in_mode`."""
    biases = {part: b.astype(x_dtype) for part, b in biases_of(weights, "ffn").items()}
    return in_mode(Layer(store, 0, reader, biases, threshold), **settings)


def in_mode(layer, rows, mode="hybrid", activity="resident", k=None, **settings):
    """Streamed or Windowed, as the mode asks for; `activity`: a source, or a word for one."""
    if mode in STREAMED_MODES:
        return Streamed(layer, rows, mode, **settings)
    if isinstance(activity, str):
        activity = exact_activity(layer, activity, rows)
    return Windowed(layer, rows, mode, activity, k, **settings)


def dense(weights, config, x):
    """What the transformer computes with all neurons, in x's dtype."""
    layer = {name: array.astype(x.dtype) for name, array in weights.items()}
    return dense_feed_forward(layer.get, config, x, lambda name, tensor: None)


class Given:
    """A source of activity that says what it was told: the i-th call uses rows[i]."""

    knows = ()
    nbytes = elements = 0

    def __init__(self, active):
        self.active = list(active)  # of bool (T, F)

    def find(self, x, spent):
        return self.active.pop(0), {}


def random_trace(rng, F, tokens):
    """Neighboring tokens use similar neurons, sometimes none, sometimes all: bool (tokens, F)."""
    share, keep = rng.random(2)
    active = rng.random((tokens, F)) < share
    for t in range(1, tokens):
        same = rng.random(F) < keep
        active[t, same] = active[t - 1, same]
    return active


def union(sets, length):
    """The neurons of the last `length` sets."""
    return set().union(*sets[max(0, len(sets) - length) :]) if length else set()
