"""Keys and values of the tokens seen so far, so that no token is computed twice."""

import numpy as np


class KVCache:
    """One growing buffer of keys and one of values per layer.

    The buffers are (G, capacity, K): each head's keys lie together, as attention multiplies
    them. `length` counts the tokens that every layer has; a pass that fails half-way leaves it,
    and so the cache, as it was.
    """

    def __init__(self, config, dtype=np.float32, capacity=64):
        """Room for `capacity` tokens at first; it doubles as needed."""
        shape = (config.kv_heads, min(capacity, config.context), config.head_width)
        self.length = 0
        self.keys = [np.empty(shape, dtype=dtype) for _ in range(config.layers)]
        self.values = [np.empty(shape, dtype=dtype) for _ in range(config.layers)]

    @property
    def nbytes(self):
        """DRAM that the buffers take, in bytes."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))

    def append(self, layer, k, v):
        """Put this call's keys and values after the cached ones of one layer.

        k, v : (G, T, K)
        returns: keys, values, each (G, S, K), views of the buffers; `length` is left for
                 `advance`, once all layers have theirs
        """
        end = self.length + k.shape[1]
        self.keys[layer] = written(self.keys[layer], self.length, k)
        self.values[layer] = written(self.values[layer], self.length, v)
        return self.keys[layer][:, :end], self.values[layer][:, :end]

    def advance(self, tokens):
        """Count `tokens` more tokens as cached: every layer has appended theirs."""
        self.length += tokens

    def truncate(self, length):
        """Forget all tokens from number `length` on.

        raises: ValueError if fewer than `length` tokens are cached
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"The cache holds {self.length} tokens, so it cannot keep {length}.")
        self.length = length

    def keep(self, start, offsets):
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
        for buffer in (*self.keys, *self.values):
            buffer[:, start : start + len(offsets)] = buffer[:, start + offsets]
        self.length = start + len(offsets)


def written(buffer, start, new):
    """The buffer with `new` written from token `start` on, enlarged first where it must be.

    buffer : (G, capacity, K);  new : (G, T, K)
    """
    G, capacity, K = buffer.shape
    end = start + new.shape[1]
    if end > capacity:
        larger = np.empty((G, max(end, 2 * capacity), K), dtype=buffer.dtype)
        larger[:, :start] = buffer[:, :start]
        buffer = larger
    buffer[:, start:end] = new
    return buffer
