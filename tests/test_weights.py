"""From a checkpoint's tensors to the names of the forward pass and back; what does not fit."""

import json
import tracemalloc

import numpy as np
import pytest
from helpers_models import CONFIGS, GPT2_CONFIG, LLAMA_CONFIG, OPT_CONFIG, random_weights
from helpers_pytorch_bin import is_mapped
from safetensors.numpy import load_file, save_file

import tinyflash
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checks import MOST_LAYERS
from tinyflash.config import weight_shapes
from tinyflash.families import family_prefix, read_config, tensor_names
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store, resident_weights
from tinyflash.matrices.half import HalfMatrix
from tinyflash.weights import load_weights, save_checkpoint


def written(directory, hf_config, dtype="float16", seed=0):
    """A random checkpoint and the weights that are in it."""
    config = read_config(hf_config)
    weights = random_weights(config, seed, dtype)
    save_checkpoint(directory, hf_config, config, weights, dtype)
    return weights


def loaded(directory, dtype=np.float32):
    checkpoint = open_checkpoint(directory)
    return load_weights(checkpoint, read_config(checkpoint.config), dtype)


def change(directory, **changes):
    """Rewrite the checkpoint: name=None drops a tensor, name=array puts one in its place."""
    tensors = load_file(directory / "model.safetensors")
    for name, array in changes.items():
        tensors.pop(name, None)
        if array is not None:
            tensors[name] = array
    save_file(tensors, directory / "model.safetensors")


def dense(weight):
    return weight.dense() if isinstance(weight, HalfMatrix) else weight


def same(weights, expected):
    assert list(weights) == list(expected)
    for name, weight in weights.items():
        np.testing.assert_array_equal(dense(weight), expected[name], err_msg=name)


# Round trips.


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, name, dtype):
    expected = written(tmp_path, CONFIGS[name], dtype)
    weights = loaded(tmp_path)
    same(weights, expected)
    for weight in weights.values():
        half = dtype == "float16" and len(weight.shape) == 2
        assert isinstance(weight, HalfMatrix if half else np.ndarray)
        assert weight.dtype == np.float32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved == CONFIGS[name] | {"dtype": dtype}


def test_gpt2_is_saved_fused_and_transposed_as_transformers_wants_it(tmp_path):
    weights = written(tmp_path, GPT2_CONFIG, "float32")
    tensors = load_file(tmp_path / "model.safetensors")
    D = GPT2_CONFIG["n_embd"]
    fused = tensors["transformer.h.1.attn.c_attn.weight"]
    assert fused.shape == (D, 3 * D)
    for place, name in enumerate("qkv"):
        part = slice(place * D, (place + 1) * D)
        np.testing.assert_array_equal(fused[:, part].T, weights[f"layers.1.attn.{name}.weight"])
        bias = tensors["transformer.h.1.attn.c_attn.bias"][part]
        np.testing.assert_array_equal(bias, weights[f"layers.1.attn.{name}.bias"])
    assert tensors["transformer.h.0.mlp.c_fc.weight"].shape == (D, 52)
    assert "lm_head.weight" not in tensors


@pytest.mark.parametrize("name", CONFIGS)
def test_published_names_without_the_prefix_are_found(tmp_path, name):
    expected = written(tmp_path, CONFIGS[name])
    prefix = family_prefix(read_config(CONFIGS[name]))
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(stored.startswith(prefix) for stored in tensors) >= 10
    bare = {stored.removeprefix(prefix): array for stored, array in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors")
    same(loaded(tmp_path), expected)


def test_bfloat16(tmp_path):
    """The upper halves of float32 numbers, as they lie in the published Llamas."""
    config = read_config(LLAMA_CONFIG)
    numbers = random_weights(config, 0, "float32")
    bits = {
        name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in numbers.items()
    }
    expected = {n: (b.astype(np.uint32) << 16).view(np.float32) for n, b in bits.items()}
    save_checkpoint(tmp_path, LLAMA_CONFIG, config, expected, "float32")
    tensors = load_file(tmp_path / "model.safetensors")
    halves = {name: (array.view(np.uint32) >> 16).astype("<u2") for name, array in tensors.items()}
    save_file(halves, tmp_path / "model.safetensors")
    rename_dtype(tmp_path / "model.safetensors", "U16", "BF16")
    weights = loaded(tmp_path)
    same(weights, expected)
    assert weights["layers.0.attn.q.weight"].format == "bfloat16"


def rename_dtype(path, old, new):
    """Say of every tensor of a safetensors file that it is of another dtype of the same width."""
    file = path.read_bytes()
    length = int.from_bytes(file[:8], "little")
    header = file[8 : 8 + length].replace(f'"{old}"'.encode(), f'"{new}"'.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + file[8 + length :])


# What is kept in memory.


def test_16_bits_stay_16_bits_and_mapped(tmp_path):
    for name in ("opt", "llama"):
        written(tmp_path / name, CONFIGS[name])
        for key, weight in loaded(tmp_path / name).items():
            if isinstance(weight, HalfMatrix):
                assert weight.nbytes == 2 * weight.shape[0] * weight.shape[1]
                assert is_mapped(weight.bits), key
            else:
                assert weight.ndim == 1


def test_gpt2s_transposed_matrices_alone_are_copied(tmp_path):
    written(tmp_path, GPT2_CONFIG)
    weights = loaded(tmp_path)
    mapped = {
        name for name, w in weights.items() if isinstance(w, HalfMatrix) and is_mapped(w.bits)
    }
    assert mapped == {"embed.weight", "positions.weight"}
    half = {name for name, w in weights.items() if isinstance(w, HalfMatrix)}
    assert half == {
        name for name, shape in weight_shapes(read_config(GPT2_CONFIG)).items() if len(shape) == 2
    }


def test_float32_stays_mapped(tmp_path):
    written(tmp_path, OPT_CONFIG, "float32")
    assert all(is_mapped(weight) for weight in loaded(tmp_path).values())
    assert not is_mapped(np.ones(3, dtype=np.float32).view())  # the check can fail


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_float64_is_a_mode(tmp_path, dtype):
    expected = written(tmp_path, LLAMA_CONFIG, dtype)
    weights = loaded(tmp_path, np.float64)
    same(weights, expected)
    assert all(weight.dtype == np.float64 for weight in weights.values())
    for mode in ("float32", "float64"):
        model = tinyflash.load(tmp_path, dtype=mode)
        taps = {}
        logits = model.logits([5, 6, 7], tap=taps.__setitem__)
        assert logits.dtype == mode and {tap.dtype for tap in taps.values()} == {np.dtype(mode)}


# What does not fit.

UP = "model.layers.1.mlp.up_proj.weight"
GAIN = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", [UP, GAIN, "model.embed_tokens.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(tmp_path, name, dtype):
    written(tmp_path, LLAMA_CONFIG, dtype)
    change(tmp_path, **{name: None})
    with pytest.raises(ValueError, match=f"no tensor named {name}"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    "name, shape",
    [
        (UP, (38, 21)),
        (UP, (37, 22)),
        (UP, (22, 38)),
        (UP, (38 * 22,)),
        (GAIN, (23,)),
        (GAIN, (22, 1)),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path, name, shape):
    written(tmp_path, LLAMA_CONFIG)
    change(tmp_path, **{name: np.ones(shape, dtype=np.float16)})
    wanted = "38 × 22" if name == UP else "22"
    given = " × ".join(map(str, shape))
    with pytest.raises(ValueError, match=f"{name} is {given} .* calls for {wanted} ") as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value)


def test_a_fused_matrix_that_is_too_short_is_misshapen(tmp_path):
    written(tmp_path, GPT2_CONFIG)
    change(tmp_path, **{"transformer.h.0.attn.c_attn.weight": np.ones((20, 59), dtype=np.float16)})
    with pytest.raises(ValueError, match="c_attn.weight is 20 × 59 .*19 × 20.* calls for 20 × 20"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    "hf_config, name",
    [
        (LLAMA_CONFIG, "model.layers.0.self_attn.q_proj.bias"),
        (LLAMA_CONFIG, "model.layers.2.input_layernorm.weight"),
        (LLAMA_CONFIG, "model.layers.0.self_attn.q_norm.weight"),
        (OPT_CONFIG, "model.decoder.project_in.weight"),
        (GPT2_CONFIG, "transformer.h.0.crossattention.c_attn.weight"),
    ],
)
def test_a_tensor_that_nobody_asked_for_is_refused(tmp_path, hf_config, name):
    written(tmp_path, hf_config)
    change(tmp_path, **{name: np.ones(3, dtype=np.float16)})
    with pytest.raises(ValueError, match=f"1 tensors that config.json does not call for, {name}"):
        loaded(tmp_path)


@pytest.mark.parametrize("name", [name for name in CONFIGS if read_config(CONFIGS[name]).tied])
def test_a_tied_head_may_be_there_if_it_is_the_embedding(tmp_path, name):
    """Old checkpoints hold a second copy; one that differs is not dropped without a word."""
    expected = written(tmp_path, CONFIGS[name])
    head = tensor_names(read_config(CONFIGS[name]))["unembed.weight"].name
    copy = np.float16(expected["embed.weight"])
    change(tmp_path, **{head: copy})
    same(loaded(tmp_path), expected)
    change(tmp_path, **{head: np.float32(copy)})  # the same numbers in another format
    same(loaded(tmp_path), expected)
    other = copy.copy()
    other[-1, -1] += 1
    for different in (other, np.float32(other), copy[:-1]):
        change(tmp_path, **{head: different})
        with pytest.raises(ValueError, match=f"ties the logits .* {head} that differs from"):
            loaded(tmp_path)


@pytest.mark.parametrize("name", [name for name in CONFIGS if read_config(CONFIGS[name]).tied])
def test_of_a_tied_pair_the_head_alone_is_enough(tmp_path, name):
    """As safetensors' own save_model leaves it, which keeps the first name of the alphabet."""
    expected = written(tmp_path, CONFIGS[name])
    places = tensor_names(read_config(CONFIGS[name]))
    head, embed = places["unembed.weight"].name, places["embed.weight"].name
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[head] = tensors.pop(embed)
    save_file(tensors, tmp_path / "model.safetensors")
    same(loaded(tmp_path), expected)
    store = open_store(convert(tmp_path, tmp_path / "flash"))
    resident = resident_weights(store)
    np.testing.assert_array_equal(dense(resident["embed.weight"]), expected["embed.weight"])

    del tensors[head]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"no tensor named {embed}"):
        loaded(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shape_that_takes_no_bytes_is_not_counted_row_by_row(tmp_path, name):
    """A header may say 2^33 rows of no columns; an array of their numbers would take 64 GiB."""
    written(tmp_path, CONFIGS[name])
    path = tmp_path / "model.safetensors"
    file = path.read_bytes()
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    for stored in set(header) - {"__metadata__"}:
        begin, end = header[stored]["data_offsets"]
        lying = dict(header)
        lying[stored] = {"dtype": "F16", "shape": [1 << 33, 0], "data_offsets": [begin, begin]}
        for other in set(header) - {"__metadata__", stored}:
            offsets = [o - (end - begin) * (o >= end) for o in header[other]["data_offsets"]]
            lying[other] = header[other] | {"data_offsets": offsets}
        text = json.dumps(lying).encode()
        data = file[8 + length : 8 + length + begin] + file[8 + length + end :]
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with pytest.raises(ValueError, match="where config.json calls for"):
            loaded(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_layers_as_may_be_are_looked_for_at_little_cost(tmp_path, name):
    """More are refused before a name is made for each: 10^8 of them took all memory."""
    written(tmp_path, CONFIGS[name])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    key = next(k for k in ("num_hidden_layers", "n_layer", "n_layers") if k in config)
    tracemalloc.start()
    for layers, words in ((100, "there is no tensor named"), (10**8, "layers is [12]0000000")):
        path.write_text(json.dumps(config | {key: layers}))
        with pytest.raises(ValueError, match=words):
            loaded(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 100e6 / MOST_LAYERS * 100
    tracemalloc.stop()


def test_masks_and_frequencies_of_old_checkpoints_are_left_alone(tmp_path):
    expected = written(tmp_path / "gpt2", GPT2_CONFIG)
    mask = np.tril(np.ones((1, 1, 96, 96), dtype=np.uint8))
    for prefix in ("transformer.h.0", "h.1"):
        changes = {f"{prefix}.attn.bias": mask}
        changes[f"{prefix}.attn.masked_bias"] = np.array(-1e4, dtype=np.float32)
        change(tmp_path / "gpt2", **changes)
    same(loaded(tmp_path / "gpt2"), expected)

    expected = written(tmp_path / "llama", LLAMA_CONFIG)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(tmp_path / "llama", **{name: np.ones(5, dtype=np.float32)})
    same(loaded(tmp_path / "llama"), expected)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_inf_and_nan_in_a_vector_are_refused_at_once(tmp_path, dtype, bad):
    written(tmp_path, LLAMA_CONFIG, dtype)
    gain = np.ones(22, dtype=dtype)
    gain[21] = bad
    change(tmp_path, **{GAIN: gain})
    with pytest.raises(ValueError, match=f"{GAIN} holds Inf or NaN"):
        loaded(tmp_path)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize(
    "dtype, name", [("float16", UP), ("float32", r"layers\.1\.ffn\.up\.weight")]
)
def test_inf_and_nan_in_a_matrix_are_refused_at_first_use(tmp_path, dtype, name, bad):
    written(tmp_path, LLAMA_CONFIG, dtype)
    up = load_file(tmp_path / "model.safetensors")[UP].copy()
    up[37, 21] = bad
    change(tmp_path, **{UP: up})
    model = tinyflash.load(tmp_path)  # opens: nothing has been read
    with pytest.raises(ValueError, match=f"{name} holds Inf or NaN"):
        model.logits([5, 6, 7])


def test_numbers_that_overflow_on_the_way_are_refused(tmp_path):
    weights = written(tmp_path, LLAMA_CONFIG, "float32")
    weights["layers.0.ffn.down.weight"] *= np.float32(1e38)
    weights["layers.0.ffn.up.weight"] *= np.float32(1e20)
    save_checkpoint(tmp_path, LLAMA_CONFIG, read_config(LLAMA_CONFIG), weights, "float32")
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="all weights are finite"):
        tinyflash.load(tmp_path).logits([5, 6, 7])


# Writing.


def test_what_float16_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    config = read_config(OPT_CONFIG)
    weights = random_weights(config)
    weights["layers.1.ffn.down.weight"][3, 4] = 7e4
    with pytest.raises(
        ValueError, match=r"layers\.1\.ffn\.down\.weight has numbers beyond float16"
    ):
        save_checkpoint(tmp_path / "out", OPT_CONFIG, config, weights)
    assert not (tmp_path / "out").exists()
    save_checkpoint(tmp_path / "out", OPT_CONFIG, config, weights, "float32")
    same(loaded(tmp_path / "out"), weights)


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    expected = written(tmp_path, OPT_CONFIG)

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="safetensors.* No space left"),
    ):
        patch.setattr("os.fsync", full_disk)
        written(tmp_path, OPT_CONFIG, seed=1)
    same(loaded(tmp_path), expected)
