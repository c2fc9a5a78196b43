"""Checkpoints: directories of safetensors and .bin files, opened lazily and checked on opening."""

import hashlib
import json
import struct

import numpy as np
import pytest
from helpers_pytorch_bin import (
    is_mapped,
    resident_bytes,
    shortened,
    with_one_byte_changed,
    write_bin,
)
from safetensors.numpy import save_file

from tinyflash.checkpoint.entries import Checkpoint, Entry
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.safetensors_file import safetensors_entries
from tinyflash.files import digest


def rng():
    return np.random.default_rng(7)


def any_bits(dtype, shape):
    """Every bit pattern is as likely: NaNs, infinities, subnormal numbers and both zeros."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return rng().integers(0, 256, size, dtype=np.uint8).view(dtype).reshape(shape)


def write_raw(path, header, data=b"", padding=0):
    """A safetensors file of this header, which may be wrong in any way one likes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def info(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "opt", "hidden_size": 4}')
    return tmp_path


def sentence(raised):
    """The message, which has to be one line and not end in the middle of things."""
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500
    return message


# ------------------------------------------------------------------ what is read is what is there


def test_every_type_bit_for_bit(directory):
    stored = {
        "a": any_bits(np.float32, (3, 5)),
        "b": any_bits(np.float16, (2, 3, 4)),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float16),
    }
    save_file(stored, directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    assert sorted(checkpoint.names()) == sorted(stored)
    for name, expected in stored.items():
        tensor = checkpoint[name]
        assert (tensor.name, tensor.dtype) == (name, expected.dtype.name)
        assert tensor.array.dtype == expected.dtype
        assert tensor.array.shape == checkpoint.shape(name) == expected.shape
        assert tensor.array.tobytes() == expected.tobytes()
    assert checkpoint.nbytes == sum(array.nbytes for array in stored.values())
    assert checkpoint.config == {"model_type": "opt", "hidden_size": 4}
    assert checkpoint.path == directory


def test_bfloat16_is_handed_out_as_its_bits(directory):
    bits = any_bits(np.uint16, (3, 4))
    header = {"__metadata__": {"format": "pt"}, "w": info("BF16", [3, 4], 0, 24)}
    write_raw(directory / "model.safetensors", header, bits.tobytes())
    tensor = open_checkpoint(directory)["w"]
    assert tensor.dtype == "bfloat16" and tensor.array.dtype == np.uint16
    np.testing.assert_array_equal(tensor.array, bits)


def test_float64_is_narrowed_to_float32(directory):
    values = np.array([1 / 3, -0.0, np.inf, np.nan, 1e-300], dtype=np.float64)
    save_file({"w": values, "large": np.array([1e300])}, directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    tensor = checkpoint["w"]
    assert tensor.dtype == "float32" and tensor.array.dtype == np.float32
    assert tensor.array.tobytes() == values.astype(np.float32).tobytes()
    assert checkpoint.nbytes == 48
    with pytest.raises(ValueError, match="large has float64 values that float32 cannot hold"):
        checkpoint["large"]


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "bool"])
def test_integers_are_listed_and_refused(directory, dtype):
    save_file({"mask": np.ones((2, 3), dtype=dtype)}, directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    assert checkpoint.names() == ["mask"] and "mask" in checkpoint
    assert checkpoint.shape("mask") == (2, 3)
    with pytest.raises(ValueError, match=f"mask is of type {dtype}") as raised:
        checkpoint["mask"]
    sentence(raised)


def test_a_type_from_the_future_is_listed_and_refused(directory):
    header = {"w": info("F4_SHINY", [3], 0, 2), "v": info("F32", [1], 2, 6)}
    write_raw(directory / "model.safetensors", header, bytes(6))
    checkpoint = open_checkpoint(directory)
    with pytest.raises(ValueError, match="w is of type F4_SHINY"):
        checkpoint["w"]
    assert checkpoint["v"].array.tolist() == [0.0]


def test_a_tensor_off_its_alignment_is_read(directory):
    header = {"_pad": info("U8", [1], 0, 1), "w": info("F32", [2], 1, 9)}
    data = b"\0" + np.array([1.5, -2.5], dtype=np.float32).tobytes()
    write_raw(directory / "model.safetensors", header, data)
    assert open_checkpoint(directory)["w"].array.tolist() == [1.5, -2.5]


def test_arrays_are_mapped_and_read_only(directory):
    save_file({"w": np.ones((2, 3), dtype=np.float32)}, directory / "model.safetensors")
    array = open_checkpoint(directory)["w"].array
    assert type(array) is np.ndarray and is_mapped(array)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 2


def test_a_copied_array_is_read_only_too(directory):
    entry = Entry("float32", (2,), 8, lambda: np.ones(2, dtype=np.float32))
    array = Checkpoint(directory, {}, {"w": entry})["w"].array
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


# ----------------------------------------------------------------------------------------- shards


def write_shards(directory, stem="model", suffix="safetensors", save=save_file):
    """Two shards of three tensors and their index; returns the tensors and the index."""
    shards = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    tensors = {
        "embed": any_bits(np.float16, (5, 4)),
        "up": any_bits(np.float16, (6, 4)),
        "down": any_bits(np.float32, (4, 6)),
    }
    weight_map = {"embed": shards[0], "up": shards[1], "down": shards[1]}
    for shard in shards:
        save({k: v for k, v in tensors.items() if weight_map[k] == shard}, directory / shard)
    index = directory / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 184}, "weight_map": weight_map}))
    return tensors, index


def write_bin_shards(directory):
    return write_shards(directory, "pytorch_model", "bin", lambda arrays, p: write_bin(p, arrays))


@pytest.mark.parametrize("write", [write_shards, write_bin_shards])
def test_shards(directory, write):
    tensors, _ = write(directory)
    checkpoint = open_checkpoint(str(directory))
    assert sorted(checkpoint.names()) == sorted(tensors)
    for name, expected in tensors.items():
        assert checkpoint[name].array.tobytes() == expected.tobytes()
        assert checkpoint.shape(name) == expected.shape
    assert checkpoint.nbytes == 5 * 4 * 2 + 6 * 4 * 2 + 4 * 6 * 4


def test_safetensors_win_over_bin_and_whole_files_over_shards(directory):
    def opened():
        return open_checkpoint(directory)["w"].array[0]

    one = np.ones(1, dtype=np.float32)
    write_bin(directory / "pytorch_model.bin", {"w": one})
    assert opened() == 1
    save_file({"w": 2 * one}, directory / "part.safetensors")
    index = {"weight_map": {"w": "part.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert opened() == 2
    save_file({"w": 3 * one}, directory / "model.safetensors")
    assert opened() == 3


@pytest.mark.parametrize("write", [write_shards, write_bin_shards])
def test_a_missing_shard_is_named(directory, write):
    _, index = write(directory)
    shard = next(iter(json.loads(index.read_text())["weight_map"].values()))
    (directory / shard).unlink()
    with pytest.raises(FileNotFoundError, match=f"shard {shard} is missing") as raised:
        open_checkpoint(directory)
    assert str(index) in sentence(raised)


def change_index(index, **changes):
    weight_map = json.loads(index.read_text())["weight_map"] | changes
    weight_map = {name: shard for name, shard in weight_map.items() if shard is not None}
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_a_tensor_that_the_index_lacks(directory):
    _, index = write_shards(directory)
    change_index(index, up=None)
    checkpoint = open_checkpoint(directory)
    assert "up" not in checkpoint and "embed" in checkpoint
    with pytest.raises(ValueError, match=r"no tensor named up: model-00002.* holds it, and model"):
        checkpoint["up"]


def test_a_tensor_that_only_the_index_has(directory):
    """Published checkpoints have this where a tied lm_head was dropped: it must still open."""
    _, index = write_shards(directory)
    change_index(index, lm_head="model-00001-of-00002.safetensors")
    checkpoint = open_checkpoint(directory)
    assert "lm_head" not in checkpoint and "embed" in checkpoint
    with pytest.raises(ValueError, match=r"lm_head: .* places it in model-00001.*does not hold"):
        checkpoint["lm_head"]


def test_a_tensor_in_two_shards(directory):
    _, index = write_shards(directory)
    save_file({"embed": np.ones(1, dtype=np.float32)}, directory / "more.safetensors")
    change_index(index, extra="more.safetensors")
    with pytest.raises(ValueError, match=r"model-00001.* and more.safetensors both hold embed"):
        open_checkpoint(directory)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 7, ["a"], None])
def test_a_shard_elsewhere_is_refused(directory, shard):
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ValueError, match="not the name of a file beside the index"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": [1]}',
        "[]",
        '{"weight',
        "",
        '{"weight_map": {"w": "a", "w": "b"}}',
    ],
)
def test_a_damaged_index(directory, text):
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: ") as raised:
        open_checkpoint(directory)
    sentence(raised)


# -------------------------------------------------------------------------------------- bad input


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or directory; a model directory"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_checkpoint(tmp_path / "absent.gguf")
    with pytest.raises(FileNotFoundError, match="is empty; a model directory holds"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"no config\.json; a model directory"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"only a \.gguf file is a model by itself"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_no_weights(directory):
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        open_checkpoint(directory)
    (directory / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="shards need their index") as raised:
        open_checkpoint(directory)
    sentence(raised)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"base_model_name_or_path": "facebook/opt-125m", "peft_type": "LORA"}, "LORA adapter of"),
        ({"base_model_name_or_path": None}, "one that it does not name"),
        ({"base_model_name_or_path": ["x"], "peft_type": {}}, "one that it does not name"),
    ],
)
def test_an_adapter_names_its_base(directory, settings, words):
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    (directory / "adapter_model.safetensors").touch()
    config = (directory / "config.json").read_bytes()
    for _ in ("with a config", "without"):  # peft saves none; some add that of the base
        with pytest.raises(ValueError, match=words) as raised:
            open_checkpoint(directory)
        sentence(raised)
        assert str(settings["base_model_name_or_path"]) in str(raised.value) or "name" in words
        (directory / "config.json").unlink(missing_ok=True)
    # transformers would apply it to the base; whether these weights are merged nobody says
    (directory / "config.json").write_bytes(config)
    save_file({"w": np.ones(2, dtype=np.float32)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"take adapter_config\.json away"):
        open_checkpoint(directory)
    (directory / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"adapter_config\.json: damaged JSON"):
        open_checkpoint(directory)
    (directory / "adapter_config.json").unlink()
    assert open_checkpoint(directory).names() == ["w"]


def test_a_key_that_stands_twice_in_a_config(directory):
    (directory / "config.json").write_text('{"hidden_size": 8, "hidden_size": 16}')
    with pytest.raises(ValueError, match="the name hidden_size occurs twice") as raised:
        open_checkpoint(directory)
    sentence(raised)


@pytest.mark.parametrize("text", [b"{", b"", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_config(directory, text):
    (directory / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json: damaged JSON") as raised:
        open_checkpoint(directory)
    sentence(raised)


def test_a_missing_tensor_is_a_value_error_with_both_names(directory):
    save_file({"w": np.ones(2, dtype=np.float32)}, directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    assert "v" not in checkpoint
    for ask in (checkpoint.__getitem__, checkpoint.shape):
        with pytest.raises(ValueError, match="no tensor named v") as raised:
            ask("v")
        assert not isinstance(raised.value, KeyError)
        assert str(directory) in sentence(raised)


def test_a_truncated_shard_says_how_much_is_missing(directory):
    _, _ = write_shards(directory)
    shard = directory / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="truncated") as raised:
        open_checkpoint(directory)
    message = sentence(raised)
    assert str(shard) in message
    assert f" {len(whole)} bytes" in message and f" {len(whole) - 10};" in message


def test_every_truncation_and_any_appendix_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones(3, dtype=np.float32), "v": np.ones(1, dtype=np.float16)}, path)
    whole = path.read_bytes()
    for _ in shortened(path):
        with pytest.raises(ValueError) as raised:
            safetensors_entries(path)
        assert str(path) in sentence(raised)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        safetensors_entries(path)
    path.write_bytes(whole)
    assert sorted(safetensors_entries(path)) == ["v", "w"]


FOUR_FLOATS = info("F32", [4], 0, 16)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"{", "damaged JSON"),
        (b"\xff\xff", "damaged JSON"),
        (b"[1, 2]", "damaged JSON"),
        (b"[" * 100_000, "damaged JSON"),
        (b'{"w": {"dtype": "F32", "dtype": "F16"}}', "the name dtype occurs twice"),
        (
            b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "w": {}}',
            "the name w occurs twice",
        ),
        ({"w": 3}, "tensor w makes no sense"),
        ({"w": {}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"shape": 4}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"shape": [-4]}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"shape": [4.0]}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"shape": [4, True]}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"shape": [0, 10**30], "data_offsets": [0, 0]}}, "makes no sense"),
        ({"w": FOUR_FLOATS | {"shape": [1] * 65}}, "makes no sense"),
        ({"w": FOUR_FLOATS | {"dtype": 32}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"data_offsets": [0]}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"data_offsets": [16, 0]}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"data_offsets": [-16, 0]}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"data_offsets": [0, 16.0]}}, "tensor w makes no sense"),
        ({"w": FOUR_FLOATS | {"shape": [5]}}, "takes 20 bytes, and the header gives it 16"),
        ({"w": FOUR_FLOATS | {"dtype": "F16"}}, "takes 8 bytes, and the header gives it 16"),
        ({"w": info("F32", [4], 4, 20)}, "begins at byte 4, and the data before it ends at 0"),
        ({"w": info("F32", [3], 0, 12), "v": info("F32", [2], 8, 16)}, "v begins at byte 8"),
        ({"w": info("F32", [1], 0, 4), "v": info("F32", [2], 8, 16)}, "v begins at byte 8"),
        ({"w": info("F32", [4000], 0, 16000)}, "truncated"),
        ({"w": info("F32", [2], 0, 8)}, "damaged"),
        ({"a\nb\x1b[2J": 3}, r"tensor a\?b\?\[2J makes no sense"),
    ],
)
def test_a_damaged_header(tmp_path, header, complaint):
    path = write_raw(tmp_path / "model.safetensors", header, bytes(16))
    with pytest.raises(ValueError, match=complaint) as raised:
        safetensors_entries(path)
    assert str(path) in sentence(raised)


def test_a_header_longer_than_the_file_or_than_anybody_needs(tmp_path):
    path = tmp_path / "model.safetensors"
    for length in (3, 2**63):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ValueError, match=f"truncated: its header would take {length} bytes"):
            safetensors_entries(path)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    with pytest.raises(ValueError, match="its header would take 200000000 bytes"):
        safetensors_entries(path)


def test_padding_of_the_header_is_accepted(tmp_path):
    header = {"w": info("F32", [1], 0, 4)}
    path = write_raw(tmp_path / "model.safetensors", header, bytes(4), padding=4000)
    assert list(safetensors_entries(path)) == ["w"]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_recognized(directory, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 99\n"
    (directory / name).write_text(pointer)
    with pytest.raises(ValueError, match="git lfs pull"):
        open_checkpoint(directory)


def test_flipped_bytes_never_give_anything_but_a_value_error(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((3, 2), dtype=np.float32), "v": np.ones(1, dtype=np.float16)}, path)
    accepted = 0
    for _ in with_one_byte_changed(path, b'\x00\xff"09-}', path.stat().st_size - 26):
        try:
            entries = safetensors_entries(path)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        for entry in entries.values():
            if entry.dtype in ("float32", "float16"):
                assert entry.load().shape == entry.shape
    assert accepted > 0  # a name may change, and a file with other names is a good file


# ---------------------------------------------------------------------------------------- laziness


def test_opening_a_file_of_8_gb_reads_its_header_alone(directory):
    rows = 1_000_000
    header = {"w": info("F16", [rows, 4096], 0, rows * 8192)}
    path = write_raw(directory / "model.safetensors", header)
    end = path.stat().st_size + rows * 8192
    with open(path, "r+b") as file:
        file.truncate(end)
        file.seek(end - 8192)
        file.write(np.arange(4096, dtype=np.float16).tobytes())

    before = resident_bytes()
    checkpoint = open_checkpoint(directory)
    assert checkpoint.nbytes == rows * 8192 and checkpoint.shape("w") == (rows, 4096)
    matrix = checkpoint["w"].array
    np.testing.assert_array_equal(matrix[-1], np.arange(4096, dtype=np.float16))
    assert resident_bytes() - before < 50e6  # the last row was read, with its neighbours


def test_resident_bytes_sees_mapped_pages(tmp_path):
    """The measure of the test above: reading 200 MB of a mapped file must show."""
    path = tmp_path / "zeros"
    with open(path, "wb") as file:
        file.truncate(200_000_000)
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    before = resident_bytes()
    assert mapped[::1024].max() == 0
    assert resident_bytes() - before > 150e6


def test_nothing_is_loaded_before_it_is_asked_for():
    loaded = []

    def entry(name):
        def load():
            loaded.append(name)
            return np.zeros((2, 3), dtype=np.float32)

        return Entry("float32", (2, 3), 24, load)

    checkpoint = Checkpoint("here", {}, {name: entry(name) for name in ("a", "b")})
    assert checkpoint.names() == ["a", "b"] and "a" in checkpoint
    assert checkpoint.shape("a") == (2, 3) and checkpoint.nbytes == 48
    assert loaded == []
    checkpoint["b"]
    assert loaded == ["b"]


# -------------------------------------------------------------------------------- GGUF and digests


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF"])
def test_a_gguf_file_is_left_to_its_reader(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tinyflash.checkpoint.opening.open_gguf", lambda path: ("opened", path))
    (tmp_path / name).touch()
    assert open_checkpoint(str(tmp_path / name)) == ("opened", tmp_path / name)


def test_digest(tmp_path):
    content = rng().integers(0, 256, 3_000_001, dtype=np.uint8).tobytes()
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    (tmp_path / "file").write_bytes(b"")
    assert digest(tmp_path / "file") == hashlib.sha256().hexdigest()
    with pytest.raises(FileNotFoundError):
        digest(tmp_path / "absent")
