"""Two ways of computing the same thing give the same numbers, in float64 to 1e-12."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from helpers_goldens import CHECKPOINTS, golden, largest_relative, model_of
from helpers_models import CONFIGS, DISTILBERT_CONFIG, MOBILELLM_CONFIG, random_weights, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyflash
from tinyflash import generate
from tinyflash.families import read_config
from tinyflash.flash.store.convert import convert
from tinyflash.generate import Generation, greedy
from tinyflash.kv_cache import KVCache
from tinyflash.taps import tap_names, tap_shape
from tinyflash.transformer import forward

EXACT = 1e-12
T = 24


def text_of(name, length):
    """Nine random tokens and what transformers wrote after them, again and again up to `length`."""
    manifest = golden(name)[1]
    text = manifest["ids"] + manifest["greedy"]["ids"]
    return np.resize(text, length).tolist()


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
    generation = Generation(model, ids, max_new_tokens=32)
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


# The families that have no goldens above, and what only they do.


@functools.cache
def random_model(name):
    """A random model of a family: config and float64 weights."""
    config = read_config((CONFIGS | {"distilbert": DISTILBERT_CONFIG})[name])
    weights = random_weights(config, seed=11, dtype="float32")
    return config, {key: weight.astype(np.float64) for key, weight in weights.items()}


IDS = np.random.default_rng(0).integers(4, 300, T)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=5, deadline=None)
@given(cuts=st.sets(st.integers(1, T - 1)))
def test_cached_equals_uncached_in_every_family(name, cuts):
    config, weights = random_model(name)
    cache = KVCache(config, np.float64, capacity=5)
    pieces = [forward(weights, config, ids, cache) for ids in np.split(IDS, sorted(cuts))]
    assert len(cache.keys) == config.layers and cache.length == T
    assert largest_relative(forward(weights, config, IDS), np.concatenate(pieces)) <= EXACT


@pytest.mark.parametrize("name", [*CONFIGS, "distilbert"])
def test_the_taps_of_every_family_come_in_the_order_of_their_names(name):
    config, weights = random_model(name)
    seen = {}
    forward(weights, config, IDS, tap=lambda tap, tensor: seen.update({tap: tensor.shape}))
    assert list(seen) == tap_names(config)
    assert seen == {tap: tap_shape(config, tap, T, T) for tap in seen}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "opt-350m"])
def test_no_token_sees_those_after_it(name):
    config, weights = random_model(name)
    other = np.concatenate((IDS[:9], IDS[::-1][9:]))
    both = forward(weights, config, np.stack((IDS, other)))
    assert largest_relative(both[0, :9], both[1, :9]) <= EXACT
    assert largest_relative(both[0, 9:], both[1, 9:]) > 0.01


def unshared(config, weights):
    """The model whose layers each have weights of their own, and these are twice the same."""
    twice = {}
    for name, weight in weights.items():
        first, _, rest = name.partition(".")
        if first != "layers":
            twice[name] = weight
            continue
        number, _, part = rest.partition(".")
        for copy in range(config.layer_repeats):
            layer = config.layer_repeats * int(number) + copy
            twice[f"layers.{layer}.{part}"] = weight.copy()
    return replace(config, layer_repeats=1), twice


def test_shared_layers_equal_unshared_ones_with_the_same_weights_twice():
    config, weights = random_model("mobilellm")
    plain, twice = unshared(config, weights)
    assert (config.layers, config.weight_layers, plain.weight_layers) == (4, 2, 4)
    expected = forward(twice, plain, IDS)
    np.testing.assert_array_equal(forward(weights, config, IDS), expected)
    shared_cache, plain_cache = KVCache(config, np.float64), KVCache(plain, np.float64)
    for ids in np.split(IDS, [1, 2, 9, 20]):
        expected = forward(twice, plain, ids, plain_cache)
        np.testing.assert_array_equal(forward(weights, config, ids, shared_cache), expected)
    assert shared_cache.nbytes == plain_cache.nbytes
    # the second pass over a layer has keys of its own
    assert not np.allclose(shared_cache.keys[0][:, :T], shared_cache.keys[1][:, :T])
    assert (
        largest_relative(
            forward(weights, replace(config, layers=2, layer_repeats=1), IDS), expected[-1:]
        )
        > 0.1
    )


def test_shared_layers_are_stored_and_kept_once(tmp_path):
    kept, on_flash = [], []
    for sharing in (False, True):
        hf_config = MOBILELLM_CONFIG | {"layer_sharing": sharing}
        folder = write_model(tmp_path / f"sharing-{sharing}", hf_config, seed=4)
        store = convert(folder, tmp_path / f"sharing-{sharing}.flash")
        dense = tinyflash.load(folder, dtype="float64")
        kept.append(dense.nbytes)
        on_flash.append(sum(file.stat().st_size for file in store.glob("*.safetensors")))
        for memory in (32_000, 40_000):
            flash = tinyflash.load(store, memory=memory, dtype="float64")
            assert len(flash.flash.feed_forwards) == (4 if sharing else 2)
            logits = in_pieces(flash, IDS.tolist(), {1, 2, 9})
            assert largest_relative(dense.logits(IDS), logits) <= EXACT
    assert kept[0] == kept[1] and on_flash[0] == on_flash[1]


def test_a_window_may_be_in_some_layers_only():
    config, weights = random_model("qwen2")
    assert config.window_layers == (1,)
    patterns = {}
    forward(weights, config, IDS, tap=lambda tap, tensor: patterns.update({tap: tensor}))
    seen = [np.count_nonzero(patterns[f"layers.{i}.attn.pattern"][0], axis=-1) for i in range(2)]
    assert seen[0].tolist() == list(range(1, T + 1))
    assert seen[1].tolist() == [1, 2, *[3] * (T - 2)]


def test_an_encoder_sees_both_sides_and_continues_nothing():
    config, weights = random_model("distilbert")
    other = np.concatenate((IDS[:9], IDS[::-1][9:]))
    both = forward(weights, config, np.stack((IDS, other)))
    assert largest_relative(both[0, :9], both[1, :9]) > 0.01
    with pytest.raises(ValueError, match="encoder: it fills in masked words and cannot continue"):
        forward(weights, config, IDS, KVCache(config, np.float64))


def test_an_encoder_does_not_generate(tmp_path):
    model = tinyflash.load(write_model(tmp_path, DISTILBERT_CONFIG))
    with pytest.raises(ValueError, match="cannot continue a text"):
        list(model.generate("The river"))
