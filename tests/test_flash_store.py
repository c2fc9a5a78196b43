"""The flash directory: the same numbers in another order, and nothing opens that is not whole."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from helpers_models import CONFIGS, OPT_CONFIG, random_weights, write_model
from helpers_sources import (
    BLOCKS_CONFIG,
    change_tensors,
    to_bfloat16,
    write_llama_gguf,
    write_safetensors,
    write_source,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.config import weight_shapes
from tinyflash.families import read_config
from tinyflash.files import digest
from tinyflash.flash.store.bundles import extents
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import check_store, is_store, open_store, resident_weights
from tinyflash.flash.store.manifest import write_manifest
from tinyflash.flash.store.rounding import as_dtype
from tinyflash.matrices.half import HalfMatrix, decode
from tinyflash.tokenizer import open_tokenizer, tokenizer_of
from tinyflash.weights import load_weights

BUNDLINGS = ("row-column", "plain")


def neurons_of(store):
    """The feed-forward as it lies on flash: for each layer (F, parts · D), a view of the file.

    Layers that share weights count once.
    """
    F, D = store.config.ffn_width, store.config.width
    file = np.memmap(store.ffn_path, dtype=np.uint8, mode="r")
    for regions in store.regions[:: store.config.layer_repeats]:
        matrices = []
        for offset in regions.values():
            columns = D * (len(store.parts) if store.bundling == "row-column" else 1)
            nbytes = F * columns * np.dtype(store.numpy_dtype).itemsize
            region = file[offset : offset + nbytes].view(store.numpy_dtype)
            matrices.append(region.reshape(F, columns))
        yield np.concatenate(matrices, axis=1)


def expected_neurons(weights, config, layer):
    """The same from the weights of the forward pass, float32."""
    parts = ("up", "gate", "down") if config.gated else ("up", "down")
    matrices = {part: weights[f"layers.{layer}.ffn.{part}.weight"] for part in parts}
    return np.stack(
        [
            np.concatenate(
                [matrices[part][:, j] if part == "down" else matrices[part][j] for part in parts]
            )
            for j in range(config.ffn_width)
        ]
    )


def decoded(numbers, dtype):
    return numbers if dtype == "float32" else decode(numbers.view(np.uint16), dtype)


def dense(weight):
    return weight.dense() if isinstance(weight, HalfMatrix) else weight


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """That files reach the disk is one test's business (test_flash_convert.py)."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model and its store; not to be changed."""
    directory = tmp_path_factory.mktemp("small")
    write_model(directory / "model", OPT_CONFIG, chat=True)
    return convert(directory / "model", directory / "store")


@pytest.fixture
def copied(small, tmp_path):
    """A store of one's own to damage."""
    return Path(shutil.copytree(small, tmp_path / "copied"))


# The same numbers.

SOURCES = [(name, kind) for name in CONFIGS for kind in ("float16", "float32", "bfloat16")]
SOURCES += [("gpt2", "bin"), ("opt", "shards"), ("llama", "bin")]
SOURCES += [("llama", f"gguf-{kind}") for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")]


@pytest.mark.parametrize("bundling", BUNDLINGS)
@pytest.mark.parametrize(("name", "kind"), SOURCES)
def test_a_store_holds_the_checkpoints_numbers(tmp_path, name, kind, bundling):
    source, weights = write_source(tmp_path / "model", name, kind)
    out = convert(source, str(tmp_path / "store"), bundling=bundling)
    assert out == tmp_path / "store" and is_store(out) and not is_store(source)
    store = open_store(out)
    check_store(store)
    assert store.config == read_config(open_checkpoint(source).config)
    same_kind = kind in ("float16", "float32", "bfloat16")
    half = {"shards": "float16", "bin": "float16", "gguf-F16": "float16", "gguf-BF16": "bfloat16"}
    assert store.dtype == (kind if same_kind else half.get(kind, "float32"))
    for layer, neurons in enumerate(neurons_of(store)):
        assert neurons.nbytes == store.config.ffn_width * store.row_bytes
        expected = expected_neurons(weights, store.config, layer)
        assert np.array_equal(decoded(neurons, store.dtype), expected)

    resident = resident_weights(store)
    flash = [f"layers.{i}.ffn.{part}.weight" for i in range(2) for part in store.parts]
    assert list(resident) == [n for n in weight_shapes(store.config) if n not in flash]
    checkpoint = open_checkpoint(source)
    for weight_name, reference in load_weights(checkpoint, store.config).items():
        if weight_name in resident:
            weight = resident[weight_name]
            assert type(weight) is type(reference), weight_name
            assert np.array_equal(dense(weight), dense(reference)), weight_name
    in_float64 = resident_weights(store, np.float64)
    assert all(dense(weight).dtype == np.float64 for weight in in_float64.values())


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("bundling", BUNDLINGS)
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_both_files_open_with_the_safetensors_package(tmp_path, name, bundling, kind):
    source, weights = write_source(tmp_path / "model", name, kind)
    store = open_store(convert(source, tmp_path / "store", bundling=bundling))
    tensors = load_file(store.ffn_path)
    D, dtype = store.config.width, np.dtype(kind)
    for layer, neurons in enumerate(neurons_of(store)):
        if bundling == "row-column":
            assert np.array_equal(tensors.pop(f"layers.{layer}.ffn"), neurons)
        for number, part in enumerate(store.parts if bundling == "plain" else ()):
            region = tensors.pop(f"layers.{layer}.ffn.{part}")
            assert np.array_equal(region, neurons[:, number * D : (number + 1) * D])
    matrices = store.config.weight_layers * len(store.regions[0])
    assert list(tensors) == [f"_pad.{number}" for number in range(matrices)]
    assert all(pad.dtype == np.uint8 and not pad.any() for pad in tensors.values())
    offsets = [offset for regions in store.regions for offset in regions.values()]
    assert offsets[0] >= 4096 and not any(offset % 4096 for offset in offsets)
    assert store.ffn_path.stat().st_size % 4096 == 0
    assert store.row_bytes == len(store.parts) * D * dtype.itemsize

    resident = load_file(store.path / "resident.safetensors")
    original = load_file(source / "model.safetensors")
    assert resident.keys() == {key for key in original if not is_ffn_matrix(key)}
    for key, array in resident.items():
        assert array.dtype == original[key].dtype and np.array_equal(array, original[key]), key


def is_ffn_matrix(key):
    parts = ("fc1", "fc2", "up_proj", "gate_proj", "down_proj")
    return key.endswith(tuple(f"{part}.weight" for part in parts))


def test_tensors_that_end_on_a_boundary_need_no_padding(tmp_path):
    config = OPT_CONFIG | {"hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 64}
    store = open_store(convert(write_model(tmp_path / "m", config), tmp_path / "store"))
    with safe_open(store.ffn_path, "numpy") as file:  # 64 bundles of 128 bytes: two blocks
        assert sorted(file.keys()) == ["layers.0.ffn", "layers.1.ffn"]
    assert [regions["bundle"] for regions in store.regions] == [4096, 4096 + 2 * 4096]


def test_a_resident_tensor_lies_on_a_multiple_of_its_number(tmp_path):
    # vectors of float32 behind matrices of an odd count of float16
    source = write_model(tmp_path / "m", OPT_CONFIG | {"hidden_size": 21})

    def change(tensors):
        vectors = {n: a.astype(np.float32) for n, a in tensors.items() if a.ndim == 1}
        return {n: vectors.get(n, a) for n, a in tensors.items()}

    change_tensors(source, change)
    store = open_store(convert(source, tmp_path / "store"))
    weights = resident_weights(store)
    assert weights["final_norm.weight"].dtype == np.float32
    assert weights["embed.weight"].bits.size % 2 == 1
    for weight in weights.values():
        array = weight.bits if isinstance(weight, HalfMatrix) else weight
        assert array.flags.aligned


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bundled_extents_and_plain_ones_bring_the_same_bytes(both_bundlings, data):
    stores = both_bundlings[data.draw(st.integers(0, 1), label="model")]
    F = stores[0].config.ffn_width
    layer = data.draw(st.integers(0, 1))
    neurons = data.draw(st.lists(st.integers(0, F - 1), unique=True, max_size=F))
    gathered = []
    for store in stores:
        content = store.ffn_path.read_bytes()
        rows = np.full((len(neurons), store.row_bytes), 0xEE, dtype=np.uint8)
        filled = np.zeros(rows.shape, dtype=bool)
        pieces = extents(store, layer, neurons)
        for offset, nbytes, row, column in pieces:
            rows[row, column : column + nbytes] = np.frombuffer(content, np.uint8, nbytes, offset)
            assert not filled[row, column : column + nbytes].any()
            filled[row, column : column + nbytes] = True
        assert filled.all()
        reads = 1 if store.bundling == "row-column" else len(store.parts)
        assert len(pieces) == reads * len(neurons)
        gathered.append(rows)
    assert np.array_equal(*gathered)
    expected = list(neurons_of(stores[0]))[layer][neurons]
    assert gathered[0].tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def both_bundlings(tmp_path_factory):
    directory = tmp_path_factory.mktemp("both")
    pairs = []
    for name in ("opt", "llama"):
        source, _ = write_source(directory / name, name, "float16")
        outs = [convert(source, directory / f"{name}-{b}", bundling=b) for b in BUNDLINGS]
        pairs.append([open_store(out) for out in outs])
    return pairs


# What stands beside the weights.


def test_small_files_are_copied_and_the_manifest_says_what_there_is(tmp_path):
    source = write_model(tmp_path / "model", OPT_CONFIG, chat=True)
    (source / "generation_config.json").write_text('{"do_sample": true}')
    (source / "notes.txt").write_text("not of the model")
    out = convert(source, tmp_path / "new" / "store")
    small_files = {"config.json", "generation_config.json", "tokenizer.json"}
    small_files |= {"tokenizer_config.json", "special_tokens_map.json"}
    for name in small_files:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    manifest = json.loads((out / "flash.json").read_text())
    assert {path.name for path in out.iterdir()} == {*manifest["files"], "flash.json"}
    assert manifest["files"].keys() == small_files | {"resident.safetensors", "ffn.safetensors"}
    for name, about in manifest.pop("files").items():
        size = (out / name).stat().st_size
        assert about == {"bytes": size, "sha256": digest(out / name)}
    weights = digest(source / "model.safetensors")
    assert len(manifest.pop("sha256")) == 64
    assert manifest == {
        "format_version": 1,
        "source": {"name": str(source), "sha256": {"model.safetensors": weights}},
        "dtype": "float16",
        "bundling": "row-column",
        "block_size": 4096,
        "thresholds": None,
    }
    assert open_tokenizer(out).chat_template == open_tokenizer(source).chat_template is not None


def test_the_source_digests_of_shards_and_gguf(tmp_path):
    source, _ = write_source(tmp_path / "a", "opt", "shards")
    manifest = open_store(convert(source, tmp_path / "one")).manifest
    files = ["model.safetensors.index.json"]
    files += [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert manifest["source"]["sha256"] == {name: digest(source / name) for name in files}
    source, _ = write_source(tmp_path / "b", "llama", "gguf-F16")
    manifest = open_store(convert(source, tmp_path / "two")).manifest
    assert manifest["source"]["sha256"] == {"b.gguf": digest(source)}


def test_the_tokenizer_of_a_gguf_file_is_written_out(tmp_path):
    source, _ = write_source(tmp_path / "model", "llama", "gguf-Q8_0")
    out = convert(source, tmp_path / "store")
    checkpoint = open_checkpoint(source)
    ours, theirs = open_tokenizer(out), tokenizer_of(checkpoint)
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id, theirs.eos_ids) == (2, (2, 3))
    assert ours.vocab_size == theirs.vocab_size
    texts = ["", "  Once upon</s> a time, 12\n", "日本語 🙂", "stone </s>"]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
        assert ours.encode(text, add_special_tokens=False) == ours.encode(text)[1:]
    chat = [{"role": "user", "content": "Why?"}]
    assert ours.render_chat(chat) == theirs.render_chat(chat) == "user: Why?\nassistant: "
    assert json.loads((out / "config.json").read_text()) == checkpoint.config


# Another dtype.


def exactly_rounded(numbers, wanted):
    """Numbers rounded one by one in exact arithmetic: the nearest, of two the one of even bits."""
    from fractions import Fraction

    if wanted == "float16":
        all_bits = np.arange(0x7C00, dtype=np.uint16)
        values = all_bits.view(np.float16).astype(np.float64)
    else:
        all_bits = np.arange(0x7F80, dtype=np.uint16)
        values = (all_bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    rounded = []
    for number in numbers.tolist():
        size = abs(number)
        near = int(np.searchsorted(values, size))
        near = [n for n in (near - 1, near) if 0 <= n < len(values)]
        distance = {n: abs(Fraction(float(values[n])) - Fraction(size)) for n in near}
        best = min(near, key=lambda n: (distance[n], n % 2))
        rounded.append(int(all_bits[best]) | (0x8000 if np.signbit(number) else 0))
    return np.array(rounded, dtype=np.uint16)


@pytest.mark.parametrize("wanted", ["float16", "bfloat16"])
def test_rounding_is_to_the_nearest_and_of_two_to_the_even_one(wanted):
    rng = np.random.default_rng(5)
    step = 13 if wanted == "float16" else 16  # bits of float32 that are cut off
    largest = 65504.0 if wanted == "float16" else float(np.finfo(np.float32).max) * 0.99
    sizes = 10.0 ** rng.integers(-9, 4, 300)
    numbers = (rng.standard_normal(300) * sizes).astype(np.float32)
    around = rng.integers(0x3000, 0x4700, 300).astype(np.uint32) << np.uint32(16)
    ties = around & np.uint32(0xFFFFFFFF << step & 0xFFFFFFFF) | np.uint32(1 << (step - 1))
    near_ties = np.concatenate([ties - np.uint32(1), ties, ties + np.uint32(1)]).view(np.float32)
    tiny = np.array([0.0, -0.0, 1e-45, 2**-24, 2**-25, 3e-8, 6e-8, -1e-7], dtype=np.float32)
    largest = np.array([largest, -largest, 1.0], dtype=np.float32)
    for array in (numbers, near_ties, tiny, largest):
        bits = as_dtype(array, "float32", wanted, "w").view(np.uint16)
        assert np.array_equal(bits, exactly_rounded(array, wanted))
    half = np.float32(2.0 ** (step - 24))  # of a step between neighbors of 1
    ties = np.array([1 + half, 1 + 3 * half], dtype=np.float32)  # of 1, 1 + 2h, 1 + 4h the even
    bits = as_dtype(ties, "float32", wanted, "w").view(np.uint16)
    assert np.array_equal(decode(bits, wanted), np.array([1, 1 + 4 * half], dtype=np.float32))


HALF = ("float16", "bfloat16")


@pytest.mark.parametrize("bundling", BUNDLINGS)
@pytest.mark.parametrize("wanted", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_matrices_are_converted_and_vectors_kept(tmp_path, kind, wanted, bundling):
    source, weights = write_source(tmp_path / "model", "llama", kind)
    out = convert(source, tmp_path / "store", dtype=wanted, bundling=bundling)
    store = open_store(out)
    assert store.dtype == wanted
    for layer, neurons in enumerate(neurons_of(store)):
        expected = expected_neurons(weights, store.config, layer).reshape(-1)
        if wanted in HALF:
            expected = exactly_rounded(expected, wanted)
        assert np.array_equal(neurons.reshape(-1).view(expected.dtype), expected)
    before = safetensors_kinds(source / "model.safetensors")
    after = safetensors_kinds(out / "resident.safetensors")
    names = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
    for name, (stored, shape) in after.items():
        assert (stored, shape) == (names[wanted if len(shape) == 2 else kind], before[name][1])
    embedding = dense(resident_weights(store)["embed.weight"])
    expected = weights["embed.weight"].reshape(-1)
    if wanted in HALF:
        expected = decode(exactly_rounded(expected, wanted), wanted)
    assert np.array_equal(embedding.reshape(-1), expected)


def safetensors_kinds(path):
    """Stored type and shape of every tensor, by the header."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    return {name: (about["dtype"], about["shape"]) for name, about in header.items()}


@pytest.mark.parametrize("other", ["float32", "bfloat16"])
def test_a_feed_forward_of_several_dtypes_is_kept_as_float32(tmp_path, other):
    source, weights = write_source(tmp_path / "model", "opt", "float16")
    file, name = source / "model.safetensors", "model.decoder.layers.1.fc2.weight"
    tensors = load_file(file)
    numbers = exactly_rounded(tensors[name].reshape(-1), "bfloat16")  # any two dtypes have some
    tensors[name] = numbers.reshape(tensors[name].shape)
    weights["layers.1.ffn.down.weight"] = decode(tensors[name], "bfloat16")
    if other == "float32":
        tensors[name] = weights["layers.1.ffn.down.weight"]
    types = {np.float16: "F16", np.float32: "F32", np.uint16: "BF16"}
    write_safetensors(file, tensors, {np.dtype(dtype): name for dtype, name in types.items()})
    store = open_store(convert(source, tmp_path / "store"))
    assert store.dtype == "float32"
    for layer, neurons in enumerate(neurons_of(store)):
        assert np.array_equal(neurons, expected_neurons(weights, store.config, layer))


@pytest.mark.parametrize(
    "tensor",
    [
        "layers.1.fc1.weight",
        "layers.0.fc2.weight",
        "embed_tokens.weight",
        "layers.0.self_attn_layer_norm.bias",
    ],
)
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_inf_and_nan_name_their_tensor_and_leave_nothing(tmp_path, kind, tensor):
    for number, bad in enumerate((np.inf, -np.inf, np.nan)):
        source, _ = write_source(tmp_path / f"{number}", "opt", "float32")
        name = f"model.decoder.{tensor}"

        def plant(tensors, name=name, bad=bad):
            array = tensors[name].copy()
            array.reshape(-1)[-2] = bad
            return tensors | {name: array}

        change_tensors(source, plant)
        if kind == "float16":
            change_tensors(source, lambda t: {n: a.astype(np.float16) for n, a in t.items()})
        if kind == "bfloat16":
            to_bfloat16(source)
        for dtype in ("keep", "float32", "bfloat16"):
            with pytest.raises(ValueError, match=f"{name} holds Inf or NaN"):
                convert(source, tmp_path / "store", dtype=dtype)
        assert {p.name for p in tmp_path.iterdir()} == {f"{n}" for n in range(number + 1)}


def test_infinite_scales_of_a_quantized_file_name_their_tensor(tmp_path):
    config = read_config(BLOCKS_CONFIG)
    for ours, theirs in [("embed", "model.embed_tokens"), ("layers.1.ffn.down", "mlp.down_proj")]:
        weights = random_weights(config)
        weights[f"{ours}.weight"][5, 40 % config.width] = 1e30  # more than a scale can hold
        with np.errstate(over="ignore"), warnings.catch_warnings(action="ignore"):
            write_llama_gguf(tmp_path / "m.gguf", GGMLQuantizationType.Q8_0, weights=weights)
        with pytest.raises(ValueError, match=f"{theirs}.weight has Inf or NaN among the scales"):
            convert(tmp_path / "m.gguf", tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("number", "wanted"), [(65520.0, "float16"), (-1e6, "float16"), (3.4e38, "bfloat16")]
)
def test_a_number_beyond_the_dtype_names_its_tensor(tmp_path, number, wanted):
    source, _ = write_source(tmp_path / "model", "opt", "float32")
    name = "model.decoder.layers.1.fc2.weight"

    def plant(tensors):
        tensors[name][3, 7] = number
        return tensors

    change_tensors(source, plant)
    with pytest.raises(ValueError, match=f"{name} holds a number beyond the range of {wanted}"):
        convert(source, tmp_path / "store", dtype=wanted)
    assert not (tmp_path / "store").exists()
    convert(source, tmp_path / "store")  # as float32 it is a fine number


# What does not open.


def test_what_is_no_flash_directory(tmp_path, small):
    for path in (tmp_path / "absent", tmp_path, small / "flash.json", small.parent / "model"):
        assert not is_store(path)
        with pytest.raises(FileNotFoundError, match="is no flash directory .*tinyflash convert"):
            open_store(path)


def test_every_missing_or_shortened_file_is_named(copied):
    for file in sorted(copied.iterdir()):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(FileNotFoundError, match=file.name):
            open_store(copied)
        for size in {0, 1, len(content) // 2, len(content) - 2}:
            file.write_bytes(content[:size])
            with pytest.raises(ValueError, match=file.name):
                open_store(copied)
        if file.name != "flash.json":
            file.write_bytes(content + b"\0")
            with pytest.raises(ValueError, match=f"{file.name} is truncated or damaged"):
                open_store(copied)
        file.write_bytes(content)
    check_store(open_store(copied))


def flipped(path, bits):
    """Flip bits of a file one at a time, and yield the place of each."""
    content = path.read_bytes()
    # in place, because ext4 writes a file to the disk at once when all of it is replaced
    with open(path, "r+b", buffering=0) as file:
        for bit in bits:
            byte = content[bit // 8]
            for value in (byte ^ 1 << bit % 8, byte):
                file.seek(bit // 8)
                file.write(bytes([value]))
                if value != byte:
                    yield bit


def test_a_bit_flipped_anywhere_is_found(copied):
    rng = np.random.default_rng(0)
    for file in sorted(copied.iterdir()):
        size = file.stat().st_size
        if file.name == "flash.json":
            continue
        bits = {0, 8 * size - 1, *rng.integers(0, 8 * size, 30).tolist()}
        for _ in flipped(file, sorted(bits)):
            with pytest.raises(ValueError, match=f"{file.name}"):
                check_store(open_store(copied))
        if not file.name.endswith(".safetensors"):
            for _ in flipped(file, [8 * (size // 2)]):
                with pytest.raises(ValueError, match="damaged"):
                    open_store(copied)
    header = range(0, 8 * 4096, 997)
    for _ in flipped(copied / "ffn.safetensors", header):
        with pytest.raises(ValueError, match="ffn.safetensors is damaged: its header"):
            open_store(copied)
    for _ in flipped(copied / "resident.safetensors", range(64)):  # the length of its header
        with pytest.raises(ValueError, match="resident.safetensors: "):
            open_store(copied)
    check_store(open_store(copied))


def test_a_bit_flipped_in_the_manifest_changes_nothing_that_is_computed(copied):
    whole = open_store(copied)
    harmless = 0
    for _ in flipped(
        copied / "flash.json", range(0, 8 * (copied / "flash.json").stat().st_size, 3)
    ):
        try:
            store = open_store(copied)
            check_store(store)
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error)
            continue
        harmless += 1  # in the name of the digest, so that this is a manifest from before it
        assert not store.sealed
        for field in ("config", "dtype", "bundling", "parts", "regions"):
            assert getattr(store, field) == getattr(whole, field)
    assert 0 < harmless


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 2}, "format version 2, and this tinyflash reads 1"),
        ({"format_version": None}, "format version None"),
        ({"dtype": "float8"}, "does not describe a flash directory"),
        ({"dtype": ["float16"]}, "does not describe"),
        ({"dtype": "bfloat16", "bundling": "plain"}, "its header is not that of the feed-forward"),
        ({"bundling": "diagonal"}, "does not describe"),
        ({"block_size": 512}, "does not describe"),
        ({"files": None}, "does not describe"),
        ({"files": {"config.json": {"bytes": 3, "sha256": ""}}}, "does not describe"),
    ],
)
def test_manifests_that_describe_no_store(copied, change, sentence):
    manifest = json.loads((copied / "flash.json").read_text())
    write_manifest(copied, manifest | change)
    with pytest.raises(ValueError, match=sentence):
        open_store(copied)
    manifest["files"]["../config.json"] = manifest["files"]["config.json"]
    write_manifest(copied, manifest)
    with pytest.raises(ValueError, match="does not describe"):
        open_store(copied)


def test_checking_reads_every_byte_and_says_how_far_it_is(small):
    store = open_store(small)
    told = []
    check_store(store, lambda done, total: told.append((done, total)))
    total = sum(about["bytes"] for about in store.manifest["files"].values())
    assert told[-1] == (total, total) and told == sorted(told)
    assert {t for _, t in told} == {total}
