"""Two ways of computing the same thing give the same numbers, in float64 to 1e-12."""

from dataclasses import replace

import numpy as np
import pytest
from helpers_goldens import CHECKPOINTS, golden, largest_relative, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyflash import generate
from tinyflash.generate import Generation, greedy
from tinyflash.kv_cache import KVCache
from tinyflash.transformer import forward

EXACT = 1e-12
T = 24


def text_of(name, length):
    """Nine random tokens and what transformers wrote after them, cut to `length`."""
    manifest = golden(name)[1]
    return (manifest["ids"] + manifest["greedy"]["ids"])[:length]


def in_pieces(model, ids, cuts):
    """Logits computed piece by piece into one cache."""
    cache = model.new_cache()
    edges = [0, *sorted(cuts), len(ids)]
    pieces = [
        model.logits(ids[first:end], cache)
        for first, end in zip(edges[:-1], edges[1:], strict=True)
    ]
    assert cache.length == len(ids)
    return np.concatenate(pieces)


@pytest.mark.parametrize("name", CHECKPOINTS)
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, T - 1)))
def test_cached_equals_uncached_however_the_text_is_cut(name, cuts):
    model = model_of(name, "float64")
    ids = text_of(name, T)
    assert largest_relative(model.logits(ids), in_pieces(model, ids, cuts)) <= EXACT


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_cached_equals_uncached_over_the_whole_context_token_by_token(name):
    model = model_of(name, "float64")
    context = model.config.context
    ids = text_of(name, context)
    cuts = range(1, context)
    assert len(ids) == context > 64  # more than a new cache has room for
    assert largest_relative(model.logits(ids), in_pieces(model, ids, cuts)) <= EXACT


@pytest.mark.parametrize("name", ["opt-350m", "gpt2-float16", "llama3", "mistral-bfloat16"])
def test_cached_equals_uncached_in_float32(name):
    model = model_of(name)
    ids = text_of(name, T)
    assert largest_relative(model.logits(ids), in_pieces(model, ids, {1, 7, 8, 20})) <= 1e-5


@pytest.mark.parametrize("prefill", [1, 4, 256])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_generation_at_temperature_zero_is_greedy(name, prefill, monkeypatch):
    monkeypatch.setattr(generate, "PREFILL", prefill)
    model = replace(model_of(name), eos_ids=frozenset())
    ids = golden(name)[1]["ids"]
    generation = Generation(model, ids, max_new_tokens=32, temperature=0.0)
    list(generation)
    assert generation.stop_reason == "length"
    assert generation.ids == greedy(model, ids, 32) == golden(name)[1]["greedy"]["ids"][:32]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_truncated_cache_goes_on_as_if_the_rest_had_not_been(name):
    model = model_of(name, "float64")
    ids = text_of(name, T)
    other = ids[:7] + ids[::-1][:9]
    cache = model.new_cache()
    model.logits(ids, cache)
    cache.truncate(7)
    expected = model.logits(other)[7:]
    assert largest_relative(expected, model.logits(other[7:], cache)) <= EXACT


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "mistral"])
def test_a_kept_path_goes_on_as_if_the_other_tokens_had_not_been(name):
    model = model_of(name, "float64")
    ids = text_of(name, 12)
    whole = model.new_cache()
    model.logits(ids[:10], whole)
    # A tree after token 6: two wrong tokens, right, wrong, right, right, wrong.
    offsets = [2, 4, 5]
    tree = KVCache(model.config, np.float64, capacity=4)
    for layer in range(model.config.layers):
        keys, values = whole.keys[layer], whole.values[layer]
        rng = np.random.default_rng(layer)
        noise = rng.standard_normal((keys.shape[0], 13, keys.shape[2]))
        k, v = noise.copy(), -noise
        for buffer, stored in ((k, keys), (v, values)):
            buffer[:, :6] = stored[:, :6]
            buffer[:, [6 + offset for offset in offsets]] = stored[:, 6:9]
        tree.append(layer, k, v)
    tree.advance(13)
    tree.keep(6, offsets)
    assert tree.length == 9
    expected = model.logits(ids)[9:]
    assert largest_relative(expected, model.logits(ids[9:], tree)) <= EXACT


def test_keeping_all_of_a_beginning_is_truncating():
    model = model_of("llama")
    ids = text_of("llama", 12)
    kept, truncated = model.new_cache(), model.new_cache()
    model.logits(ids, kept)
    model.logits(ids, truncated)
    kept.keep(5, range(4))
    truncated.truncate(9)
    assert kept.length == truncated.length == 9
    np.testing.assert_array_equal(model.logits([3], kept), model.logits([3], truncated))


@pytest.mark.parametrize(
    ("start", "offsets"), [(5, [2, 1]), (5, [1, 1]), (5, [-1]), (5, [7]), (13, []), (-1, [0])]
)
def test_a_path_outside_the_cache_is_refused(start, offsets):
    model = model_of("opt")
    cache = model.new_cache()
    model.logits(text_of("opt", 12), cache)
    with pytest.raises(ValueError, match="Cannot keep"):
        cache.keep(start, offsets)
    assert cache.length == 12


@pytest.mark.parametrize("length", [-1, 13])
def test_a_cache_cannot_be_truncated_to_more_than_it_holds(length):
    model = model_of("opt")
    cache = model.new_cache()
    model.logits(text_of("opt", 12), cache)
    with pytest.raises(ValueError, match="cannot keep"):
        cache.truncate(length)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_texts_side_by_side_are_each_computed_as_if_alone(name):
    model = model_of(name, "float64")
    ids = np.array(text_of(name, 24), dtype=np.int64).reshape(2, 3, 4)
    together = forward(model.weights, model.config, ids)
    assert together.shape == (2, 3, 4, model.config.vocab_size)
    for i, j in np.ndindex(2, 3):
        assert largest_relative(model.logits(ids[i, j]), together[i, j]) <= EXACT
