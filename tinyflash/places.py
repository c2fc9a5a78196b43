"""Where the tokens of one pass stand, and whom each of them may look at.

In a text each token follows the one before it. A drafter may propose a tree of tokens instead: then
each follows its parent. This file knows the difference, and the layers do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyflash.kv_cache import KVCache


@dataclass(frozen=True)
class Places:
    """Where the T tokens of one pass stand, and the S tokens that they may look at.

    positions : int (T,), how many tokens stand before each
    keys      : int (S,), the same of the S: the cached ones, then these T
    seen      : for each length of window that a layer has (None: no window), which of the S each
                token may look at, bool (T, S)
    cache     : KVCache of the tokens before these, to which each layer adds these; or None
    """

    positions: np.ndarray
    keys: np.ndarray
    seen: dict[int | None, np.ndarray]
    cache: KVCache | None = None


def places_of(config, T, cache=None, tree=None) -> Places:
    """The Places of a pass over T tokens; cache, tree: see `forward`."""
    start = 0 if cache is None else cache.length
    S = start + T
    positions = positions_of(T, start, tree)
    keys = np.arange(S, dtype=np.int64) if tree is None else key_positions(tree, start)
    seen = {}
    for window in {config.window_of(i) for i in range(config.layers)}:
        if not config.causal:
            seen[window] = np.ones((T, S), dtype=np.bool_)
        elif tree is None:
            seen[window] = visible(start, T, S, window)
        else:
            seen[window] = in_sight(tree, start, window)
    return Places(positions, keys, seen, cache)


def positions_of(T, start, tree=None):
    """How many tokens stand before each of T tokens, of which the first is number `start`."""
    return start + (np.arange(T, dtype=np.int64) if tree is None else tree.depths)


def visible(start, T, S, window=None):
    """Which of S tokens each of the T tokens from `start` on may look at.

    returns: bool (T, S); token t sees s ≤ t and, with a window, s > t - window
    """
    t = np.arange(start, start + T, dtype=np.int64)[:, None]
    s = np.arange(S, dtype=np.int64)
    return (s <= t) if window is None else (s <= t) & (s > t - window)


def in_sight(tree, start, window=None):
    """`visible` for the tokens of a tree: each sees the start tokens before it and its ancestors.

    A window is counted in positions, not in places in the cache.    (Tree attention, SpecInfer,
    arXiv 2305.09781, §4)

    returns: bool (T, start + T)
    """
    T = len(tree.depths)
    seen = np.concatenate([np.ones((T, start), dtype=np.bool_), tree.ancestors], axis=1)
    t = positions_of(T, start, tree)[:, None]
    return seen if window is None else seen & (key_positions(tree, start) > t - window)


def key_positions(tree, start):
    """The position of every key, where a tree follows `start` tokens: int (start + T,)."""
    return np.concatenate([np.arange(start, dtype=np.int64), start + tree.depths])
