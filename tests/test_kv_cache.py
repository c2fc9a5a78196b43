"""The KV cache: what is appended is there, and what is forgotten is not."""

import numpy as np
import pytest
from helpers_models import LLAMA_CONFIG

from tinyflash.families import read_config
from tinyflash.kv_cache import KVCache

CONFIG = read_config(LLAMA_CONFIG)  # L = 2, G = 2, K = 10
G, K = CONFIG.kv_heads, CONFIG.head_width


def random_pair(T, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((2, G, T, K)).astype(dtype)


def filled(lengths, capacity=64):
    """A cache filled in calls of these lengths, and all keys and values of each layer."""
    cache = KVCache(CONFIG, capacity=capacity)
    parts = [[], []]
    for call, T in enumerate(lengths):
        for layer in range(2):
            k, v = random_pair(T, seed=10 * call + layer)
            keys, values = cache.append(layer, k, v)
            parts[layer].append((k, v))
        cache.advance(T)
    whole = [
        [np.concatenate([pair[kind] for pair in parts[layer]], axis=1) for kind in (0, 1)]
        for layer in range(2)
    ]
    for result, expected in zip((keys, values), whole[1], strict=True):
        np.testing.assert_array_equal(result, expected)
    return cache, whole


def holds(cache, whole):
    for layer in range(2):
        for buffers, expected in zip((cache.keys, cache.values), whole[layer], strict=True):
            np.testing.assert_array_equal(buffers[layer][:, : cache.length], expected)


@pytest.mark.parametrize("lengths", [[1], [5, 1, 1], [3, 0, 4], [1] * 9, [2, 60, 30]])
@pytest.mark.parametrize("capacity", [1, 4, 64])
def test_what_is_appended_is_there(lengths, capacity):
    cache, whole = filled(lengths, capacity)
    assert cache.length == sum(lengths)
    holds(cache, whole)
    room = cache.keys[0].shape[1]
    assert cache.nbytes == 2 * 2 * G * room * K * 4
    assert all(buffer.dtype == np.float32 for buffer in (*cache.keys, *cache.values))


def test_float64_is_a_mode():
    cache = KVCache(CONFIG, np.float64, capacity=2)
    keys, _ = cache.append(0, *random_pair(7, seed=0, dtype=np.float64))
    assert keys.dtype == np.float64


def test_a_pass_that_fails_half_way_leaves_the_cache_as_it_was():
    cache, whole = filled([4])
    cache.append(0, *random_pair(3, seed=99))  # layer 1 and advance never come
    assert cache.length == 4
    holds(cache, whole)


def test_truncate_forgets_the_end_and_new_tokens_take_its_place():
    cache, whole = filled([6])
    cache.truncate(2)
    kept = [[array[:, :2] for array in layer] for layer in whole]
    holds(cache, kept)
    for layer in range(2):
        k, v = random_pair(1, seed=50 + layer)
        keys, values = cache.append(layer, k, v)
        np.testing.assert_array_equal(keys, np.concatenate([kept[layer][0], k], axis=1))
        np.testing.assert_array_equal(values, np.concatenate([kept[layer][1], v], axis=1))
    for length in (-1, 3):
        with pytest.raises(ValueError, match="The cache holds 2 tokens"):
            cache.truncate(length)


@pytest.mark.parametrize("start, offsets", [(2, [0, 2, 3]), (3, [1]), (0, [5]), (6, []), (2, [])])
def test_keep_moves_an_accepted_path_together(start, offsets):
    cache, whole = filled([6])
    cache.keep(start, offsets)
    places = [*range(start), *(start + offset for offset in offsets)]
    assert cache.length == len(places)
    holds(cache, [[array[:, places] for array in layer] for layer in whole])


@pytest.mark.parametrize(
    "start, offsets", [(3, [0, 0]), (3, [1, 0]), (3, [3]), (3, [-1]), (-1, [2]), (7, [])]
)
def test_a_path_that_is_none_is_refused(start, offsets):
    cache, whole = filled([6])
    with pytest.raises(ValueError, match="Cannot keep tokens"):
        cache.keep(start, offsets)
    assert cache.length == 6
    holds(cache, whole)
