"""Where the tokens of one pass stand, and whom each of them may look at.

In a text each token follows the one before it. A drafter may propose a tree of tokens instead: then
each follows its parent. This file knows the difference, and the layers do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyflash.config import ModelConfig
from tinyflash.kv_cache import KVCache


@dataclass(frozen=True)
class Places:
    """Where the T tokens of one pass stand, and the S tokens that they may look at.

    positions : int (T,), how many tokens stand before each
    keys      : int (S,), the same of the S: the cached ones, then these T
    seen      : for each length of window that a layer has (None: no window), which of the S each
                token may look at, bool (T, S)
    cache     : KVCache of the tokens before these, to which each layer adds these; or None

    >>> import tinyflash
    >>> places = places_of(tinyflash.load("default").config, 2)
    >>> places.positions.tolist(), places.seen[None].tolist()
    ([0, 1], [[True, False], [True, True]])
    """

    positions: np.ndarray
    keys: np.ndarray
    seen: dict[int | None, np.ndarray]
    cache: KVCache | None = None


def places_of(
    config: ModelConfig, T: int, cache: KVCache | None = None, tree: Any = None
) -> Places:
    """The Places of a pass over T tokens; cache, tree: see `forward`.

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> cache = model.new_cache()
    >>> logits = model.logits([5, 6, 7], cache)
    >>> places = places_of(model.config, 2, cache)
    >>> places.positions.tolist(), places.keys.tolist()
    ([3, 4], [0, 1, 2, 3, 4])
    """
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


def positions_of(T: int, start: int, tree: Any = None) -> np.ndarray:
    """How many tokens stand before each of T tokens, of which the first is number `start`.

    >>> positions_of(3, start=10).tolist()
    [10, 11, 12]
    """
    return start + (np.arange(T, dtype=np.int64) if tree is None else tree.depths)


def visible(start: int, T: int, S: int, window: int | None = None) -> np.ndarray:
    """Which of S tokens each of the T tokens from `start` on may look at.

    returns: bool (T, S); token t sees s ≤ t and, with a window, s > t - window

    >>> visible(start=2, T=2, S=4, window=2).astype(np.int64).tolist()
    [[0, 1, 1, 0], [0, 0, 1, 1]]
    """
    t = np.arange(start, start + T, dtype=np.int64)[:, None]
    s = np.arange(S, dtype=np.int64)
    return (s <= t) if window is None else (s <= t) & (s > t - window)


def in_sight(tree: Any, start: int, window: int | None = None) -> np.ndarray:
    """`visible` for the tokens of a tree: each sees the start tokens before it and its ancestors.

    A window is counted in positions, not in places in the cache.    (Tree attention, SpecInfer,
    arXiv 2305.09781, §4)

    returns: bool (T, start + T)

    >>> from tinyflash.speculative.tree import pack
    >>> in_sight(pack([[7, 8], [7, 9]])[0], start=1).astype(np.int64).tolist()  # not each other
    [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    """
    T = len(tree.depths)
    seen = np.concatenate([np.ones((T, start), dtype=np.bool_), tree.ancestors], axis=1)
    t = positions_of(T, start, tree)[:, None]
    return seen if window is None else seen & (key_positions(tree, start) > t - window)


def key_positions(tree: Any, start: int) -> np.ndarray:
    """The position of every key, where a tree follows `start` tokens: int (start + T,).

    >>> from tinyflash.speculative.tree import pack
    >>> key_positions(pack([[7, 8], [7, 9]])[0], start=2).tolist()  # 8 and 9 both follow 7
    [0, 1, 2, 3, 3]
    """
    return np.concatenate([np.arange(start, dtype=np.int64), start + tree.depths])
