"""Keys and values of the tokens seen so far, so that no token is computed twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tinyflash.config import ModelConfig
from tinyflash.matrices.half import decode
from tinyflash.workers import pool

PREFILL = 256  # tokens of a text computed at once: bounds the (H, T, S) scores


class KVCache:
    """One growing buffer of keys and one of values per layer.

    The buffers are (G, capacity, K): each head's keys lie together, as attention multiplies
    them. `length` counts the tokens that every layer has; a pass that fails half-way leaves it,
    and so the cache, as it was.

    In float16 it takes half of the DRAM; what attention is given is decoded for each call.

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> cache = model.new_cache()
    >>> at_once = model.logits([5, 6, 7])[-1]
    >>> for id in (5, 6, 7):
    ...     one_by_one = model.logits([id], cache)[-1]
    >>> cache.length, bool(np.allclose(one_by_one, at_once, atol=1e-4))
    (3, True)
    """

    def __init__(
        self, config: ModelConfig, dtype: DTypeLike = np.float32, capacity: int = 64
    ) -> None:
        """Room for `capacity` tokens at first; it doubles as needed."""
        shape = (config.kv_heads, min(capacity, config.context), config.head_width)
        self.length = 0
        self.keys = [np.empty(shape, dtype=dtype) for _ in range(config.layers)]
        self.values = [np.empty(shape, dtype=dtype) for _ in range(config.layers)]

    def __repr__(self):
        return f"<KVCache: {self.length} tokens, {self.nbytes / 1e6:.1f} MB>"

    @property
    def nbytes(self) -> int:
        """DRAM that the buffers take, in bytes."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens at once, where doubling would take more."""
        for layer in range(len(self.keys)):
            self.keys[layer] = enlarged(self.keys[layer], self.length, tokens)
            self.values[layer] = enlarged(self.values[layer], self.length, tokens)

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Put this call's keys and values after the cached ones of one layer.

        k, v : (G, T, K)
        returns: keys, values, each (G, S, K), of k's dtype: views of the buffers, or decoded copies
                 where these are float16; `length` is left for `advance`, once all layers have
                 theirs
        raises : ValueError if a number is too large for float16
        """
        end = self.length + k.shape[1]
        self.keys[layer] = written(self.keys[layer], self.length, k)
        self.values[layer] = written(self.values[layer], self.length, v)
        cached = self.keys[layer][:, :end], self.values[layer][:, :end]
        if cached[0].dtype == k.dtype:
            return cached
        return tuple(pool().map(in_float32, cached))

    def advance(self, tokens: int) -> None:
        """Count `tokens` more tokens as cached: every layer has appended theirs."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from number `length` on.

        raises: ValueError if fewer than `length` tokens are cached
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"The cache holds {self.length} tokens, so it cannot keep {length}.")
        self.length = length

    def keep(self, start: int, offsets: ArrayLike) -> None:
        """Keep only some of the tokens from number `start` on: an accepted path of a tree.

        offsets : increasing ints; token start + offsets[j] moves to place start + j
        raises  : ValueError if they do not increase or lie outside the cached tokens
        """
        offsets = np.asarray(offsets, dtype=np.int64)
        inside = start >= 0 and (len(offsets) == 0 or 0 <= offsets[0])
        inside = inside and (len(offsets) == 0 or start + offsets[-1] < self.length)
        if not inside or np.any(np.diff(offsets) <= 0) or start > self.length:
            raise ValueError(
                f"Cannot keep tokens {offsets.tolist()} after token {start} of {self.length}."
            )
        moved = np.flatnonzero(offsets != np.arange(len(offsets), dtype=np.int64))
        if len(moved):
            for buffer in (*self.keys, *self.values):
                buffer[:, start + moved] = buffer[:, start + offsets[moved]]
        self.length = start + len(offsets)


def written(buffer: np.ndarray, start: int, new: np.ndarray) -> np.ndarray:
    """The buffer with `new` written from token `start` on, enlarged first where it must be.

    buffer : (G, capacity, K);  new : (G, T, K)
    raises : ValueError if the buffer is float16 and a number does not fit that

    >>> buffer = np.zeros((1, 2, 1), dtype=np.float32)
    >>> written(buffer, 1, np.ones((1, 3, 1), dtype=np.float32)).shape  # doubled: 4 is enough
    (1, 4, 1)
    """
    end = start + new.shape[1]
    if end > buffer.shape[1]:
        buffer = enlarged(buffer, start, max(end, 2 * buffer.shape[1]))
    if buffer.dtype == np.float16 and not np.abs(new).max() < 65520:  # or not a number
        raise ValueError(
            "A key or value is beyond what float16 holds, so it cannot be cached in 16 bits; "
            "load the model without a memory budget, or in float64."
        )
    buffer[:, start:end] = new
    return buffer


def enlarged(buffer: np.ndarray, length: int, tokens: int) -> np.ndarray:
    """The buffer with room for `tokens` tokens, its first `length` kept: (G, ≥ tokens, K).

    >>> enlarged(np.ones((1, 2, 3), dtype=np.float16), length=1, tokens=5).shape
    (1, 5, 3)
    """
    G, capacity, K = buffer.shape
    if tokens <= capacity:
        return buffer
    larger = np.empty((G, tokens, K), dtype=buffer.dtype)
    larger[:, :length] = buffer[:, :length]
    return larger


def common_length(a: Sequence, b: Sequence) -> int:
    """Number of equal items at the beginning of two lists: what a cache of one has of the other.

    >>> common_length([1, 2, 3, 4], [1, 2, 9])
    2
    """
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def in_float32(half: np.ndarray) -> np.ndarray:
    """A view of a float16 buffer, decoded: bits are moved, see matrices.decode.

    >>> in_float32(np.array([0.5, -2], dtype=np.float16)).tolist()
    [0.5, -2.0]
    """
    return decode(half.view(np.uint16), "float16")
