"""PyTorch .bin files: tensors bit for bit, and nothing that a hostile pickle asks for."""

import contextlib
import copyreg
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from helpers_pytorch_bin import (
    call,
    group,
    integer,
    is_mapped,
    name,
    ordered_dict,
    parameter,
    program,
    resident_bytes,
    shortened,
    storage,
    tensor,
    text,
    whole_tensor,
    with_one_byte_changed,
    write_bin,
    write_sparse_bin,
    write_zip,
)

from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.checkpoint.pytorch_bin import pytorch_entries

TWELVE = np.arange(12, dtype=np.float32)


def any_bits(dtype, shape):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    bits = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    return bits.view(dtype).reshape(shape)


def opened(path):
    return Checkpoint(path, {}, pytorch_entries(path))


def refused(path, complaint):
    """Open the file, which has to fail in one sentence that names it."""
    with pytest.raises(ValueError, match=complaint) as raised:
        pytorch_entries(path)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message and len(message) < 600
    return message


# ------------------------------------------------------------------ what is read is what is there


def test_every_type_bit_for_bit(tmp_path):
    arrays = {
        "a": any_bits(np.float32, (3, 5)),
        "b": any_bits(np.float16, (2, 3, 4)),
        "c": any_bits(np.uint16, (4, 3)),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float16),
    }
    checkpoint = opened(write_bin(tmp_path / "pytorch_model.bin", arrays))
    assert checkpoint.names() == list(arrays)
    for label, expected in arrays.items():
        found = checkpoint[label]
        assert found.dtype == {"uint16": "bfloat16"}.get(expected.dtype.name, expected.dtype.name)
        assert found.array.dtype == expected.dtype
        assert found.array.shape == checkpoint.shape(label) == expected.shape
        assert found.array.tobytes() == expected.tobytes()
        assert expected.size == 0 or is_mapped(found.array)
        assert not found.array.flags.writeable
    assert checkpoint.nbytes == sum(array.nbytes for array in arrays.values())


def test_float64_is_narrowed(tmp_path):
    values = np.array([1 / 3, -2.0], dtype=np.float64)
    checkpoint = opened(write_bin(tmp_path / "x.bin", {"w": values}))
    assert checkpoint["w"].dtype == "float32"
    assert checkpoint["w"].array.tobytes() == values.astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "bool"])
def test_integers_are_listed_and_refused(tmp_path, dtype):
    checkpoint = opened(write_bin(tmp_path / "x.bin", {"mask": np.ones((2, 3), dtype=dtype)}))
    assert checkpoint.shape("mask") == (2, 3)
    with pytest.raises(ValueError, match=f"mask is of type {dtype}"):
        checkpoint["mask"]


def views(path):
    """One storage of 0 .. 11 under many names, and a second storage."""
    shared = storage("FloatStorage", "0", 12)
    items = {
        "whole": tensor(shared, [3, 4], [4, 1]),
        "again": tensor(shared, [3, 4], [4, 1]),
        "transposed": tensor(shared, [4, 3], [1, 4]),
        "tail": tensor(shared, [2, 4], [4, 1], offset=4),
        "column": tensor(shared, [3], [4], offset=2),
        "single": tensor(shared, [1, 2], [10**30, 1], offset=10),
        "parameter": parameter(tensor(shared, [12], [1])),
        "scalar": tensor(shared, [], [], offset=11),
        "empty": tensor(shared, [0, 7], [7, 1], offset=12),
        "other": tensor(storage("FloatStorage", "1", 12), [12], [1]),
    }
    pickled = program(ordered_dict(items.items()))
    return write_zip(path, pickled, {"0": TWELVE, "1": TWELVE + 100})


def test_strides_offsets_and_shared_storages(tmp_path):
    checkpoint = opened(views(tmp_path / "x.bin"))
    matrix = TWELVE.reshape(3, 4)
    expected = {
        "whole": matrix,
        "again": matrix,
        "transposed": matrix.T,
        "tail": matrix[1:],
        "column": matrix[:, 2],
        "single": matrix[2:, 2:],
        "parameter": TWELVE,
        "scalar": TWELVE[11].reshape(()),
        "empty": np.zeros((0, 7), dtype=np.float32),
        "other": TWELVE + 100,
    }
    arrays = {label: checkpoint[label].array for label in checkpoint.names()}
    assert list(arrays) == list(expected)
    for label, array in arrays.items():
        assert array.shape == checkpoint.shape(label) == np.shape(expected[label])
        np.testing.assert_array_equal(array, expected[label])
        assert array.flags.c_contiguous and array.dtype == np.float32
    mapped = {label for label, array in arrays.items() if is_mapped(array)}
    assert mapped == {"whole", "again", "tail", "single", "parameter", "scalar", "other"}
    assert np.shares_memory(arrays["whole"], arrays["tail"])
    assert not np.shares_memory(arrays["whole"], arrays["other"])


def test_shared_bytes_are_counted_once(tmp_path):
    assert opened(views(tmp_path / "x.bin")).nbytes == 2 * TWELVE.nbytes


def test_the_metadata_of_a_state_dict_is_passed_over(tmp_path):
    module = text("weight") + integer(1)
    metadata = text("_metadata") + ordered_dict([("", b"}(" + module + b"u")])
    pickled = program(
        ordered_dict([("w", whole_tensor(TWELVE, "0"))], state=b"}(" + metadata + b"ub")
    )
    checkpoint = opened(write_zip(tmp_path / "x.bin", pickled, {"0": TWELVE}))
    assert checkpoint.names() == ["w"]
    np.testing.assert_array_equal(checkpoint["w"].array, TWELVE)


def test_protocol_4_with_stack_globals_and_a_memo(tmp_path):
    def short(value):
        return b"\x8c" + bytes([len(value)]) + value.encode() + b"\x94"

    tuple_of_12, tuple_of_1 = integer(12) + b"\x85\x94", integer(1) + b"\x85\x94"
    pickled = (
        b"\x80\x04"
        + b"}\x94"  # memo 0: a plain dictionary
        + short("w")
        + (short("torch._utils") + short("_rebuild_tensor_v2") + b"\x93\x94")
        + b"("
        + (b"(" + short("storage") + short("torch") + short("FloatStorage") + b"\x93\x94")
        + (short("0") + short("cpu") + integer(12) + b"t\x94Q")
        + (integer(0) + tuple_of_12 + tuple_of_1 + b"\x89")
        + (short("collections") + short("OrderedDict") + b"\x93\x94" + b")R\x94t\x94R\x94s")
        + b"h\x00"  # the dictionary again, from the memo
        + b"."
    )
    checkpoint = opened(write_zip(tmp_path / "x.bin", pickled, {"0": TWELVE}))
    np.testing.assert_array_equal(checkpoint["w"].array, TWELVE)


def test_the_byte_order(tmp_path):
    pickled = program(ordered_dict([("w", whole_tensor(TWELVE, "0"))]))
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as archive:  # PyTorch before 2.1 did not write it
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", TWELVE.tobytes())
    assert opened(path)["w"].array.tolist() == TWELVE.tolist()
    write_zip(path, pickled, {"0": TWELVE}, extra=[("byteorder", b"big")])
    refused(path, "big-endian")


def test_16_gb_are_opened_without_being_read(tmp_path):
    """Three storages with holes for data; the last lies beyond what 32-bit offsets can say."""
    numels = {"a": 1_500_000_000, "b": 4_000_000_000, "c": 2_500_000_000}
    path = write_sparse_bin(tmp_path / "x.bin", numels)
    assert path.stat().st_size > 16e9
    before = resident_bytes()
    checkpoint = opened(path)
    assert checkpoint.nbytes == 2 * sum(numels.values())
    assert {label: checkpoint.shape(label) for label in numels} == {
        label: (numel,) for label, numel in numels.items()
    }
    for label in numels:
        array = checkpoint[label].array
        assert array[[0, 1, -2, -1]].tolist() == [1, 0, 0, 1]
    assert resident_bytes() - before < 50e6


# --------------------------------------------------------------------------------- hostile pickles


class Reduces:
    """Pickles to a call of `function`, as malware does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Innocent:
    """An object of a class of one's own: no malware, and not a tensor either."""


def attacks(witness):
    """Pickles that make the file `witness` when Python runs them, and what each one asks for."""
    shell = f"touch '{witness}'"
    system, argument = name("os", "system"), text(shell)
    python = f"open({str(witness)!r}, 'w').close()"
    imported = call(name("builtins", "__import__"), text("os"))
    looked_up = call(name("builtins", "getattr"), imported, text("system"))
    short = b"\x8c" + bytes([len(shell)]) + shell.encode()
    dotted = b"\x80\x04\x8c\x06shutil\x8c\x09os.system\x93" + short + b"\x85R."
    state = b"}" + text("w") + call(system, argument) + b"s"
    return {
        "protocol 0": (pickle.dumps(Reduces(os.system, shell), 0), "asks for posix.system"),
        "protocol 2": (pickle.dumps(Reduces(os.system, shell), 2), "asks for posix.system"),
        "protocol 5": (pickle.dumps(Reduces(os.system, shell), 5), "asks for posix.system"),
        "os": (program(call(system, argument)), "asks for os.system"),
        "eval": (pickle.dumps(Reduces(eval, python), 2), "asks for __builtin__.eval"),
        "builtins": (program(call(name("builtins", "eval"), text(python))), "builtins.eval"),
        "exec": (pickle.dumps(Reduces(exec, python), 4), "asks for builtins.exec"),
        "subprocess": (
            pickle.dumps(Reduces(subprocess.call, ["touch", str(witness)]), 4),
            "asks for subprocess.call",
        ),
        "nested": (pickle.dumps([{"w": (Reduces(os.system, shell),)}], 4), "EMPTY_LIST"),
        "in a dictionary": (pickle.dumps({"w": Reduces(os.system, shell)}, 4), "posix.system"),
        "getattr": (program(call(looked_up, argument)), "asks for builtins.getattr"),
        "as an argument": (
            program(call(name("collections", "OrderedDict"), group(call(system, argument)))),
            "asks for os.system",
        ),
        "as a state": (program(ordered_dict([], state=state + b"b")), "asks for os.system"),
        "instance": (b"\x80\x02(" + argument + b"ios\nsystem\n.", "uses INST os system"),
        "object": (b"\x80\x02(" + system + argument + b"o.", "asks for os.system"),
        "dotted": (dotted, "asks for shutil.os.system"),
        "extension": (b"\x80\x02\x82\xc8" + argument + b"\x85R.", "uses EXT1"),
        "behind the end": (
            program(ordered_dict([]) + b"0" + call(system, argument)),
            "uses POP",
        ),
    }


@pytest.fixture
def extension():
    copyreg.add_extension("subprocess", "getoutput", 200)
    yield
    copyreg.remove_extension("subprocess", "getoutput", 200)


@pytest.mark.parametrize("attack", attacks("anything"))
def test_nothing_is_executed(tmp_path, extension, attack):
    witness = tmp_path / "executed"
    pickled, complaint = attacks(witness)[attack]
    path = write_zip(tmp_path / "pytorch_model.bin", pickled, {"0": TWELVE})
    message = refused(path, complaint)
    assert "refused" in message and not witness.exists()
    # the attack is a real one: Python's own unpickler carries it out, on this same pickle
    with contextlib.suppress(Exception):  # it may well fail afterwards
        pickle.loads(pickled)
    assert witness.exists()
    # and once a process has resolved an extension code, pickle no longer asks find_class for it
    witness.unlink()
    refused(path, complaint)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("torch._utils", "os.system"),
        ("torch", "serialization.os.system"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch", "FloatStorage.__reduce__"),
        ("torch", "FloatStorage "),
        ("collections", "OrderedDict.__init__"),
        ("collections", "namedtuple"),
        ("copyreg", "_reconstructor"),
        ("", "os.system"),
        ("os", ""),
        ("numpy.core.multiarray", "_reconstruct"),
        ("tinyflash.checkpoint.opening", "open_checkpoint"),
    ],
)
def test_any_other_global_is_refused_by_name(tmp_path, module, attribute):
    full = f"{module}.{attribute}"
    by_line = program(name(module, attribute))
    by_stack = b"\x80\x04" + text(module) + text(attribute) + b"\x93."
    for pickled in (by_line, by_stack):
        path = write_zip(tmp_path / "x.bin", pickled, {})
        assert f"the file asks for {full}, and" in refused(path, "refused")


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    pickled = b"\x80\x04" + text("os\x1b[2J\n") + text("system" * 1000) + b"\x93."
    message = refused(write_zip(tmp_path / "x.bin", pickled, {}), r"asks for os\?\[2J\?.system")
    assert message.isprintable()


def test_objects_are_refused_by_their_class(tmp_path):
    for protocol in (0, 2, 4):
        pickled = pickle.dumps(Innocent(), protocol)
        complaint = r"copy_?reg\._reconstructor" if protocol == 0 else r"\.Innocent"
        refused(write_zip(tmp_path / "x.bin", pickled, {}), complaint)


# -------------------------------------------------------------- pickles of allowed names, misused

ORDERED_DICT = name("collections", "OrderedDict")
FLOATS = name("torch", "FloatStorage")
SHARED = storage("FloatStorage", "0", 12)
GOOD = tensor(SHARED, [12], [1])
# a pair of a pair of a pair: to print, compare or hash it takes 2**300 steps
PAIRS = b")" + b"q\x01h\x01\x86" * 300


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (tensor(SHARED, [13], [1]), r"\[13\] reaches element 12 of storage 0, which has 12"),
        (tensor(SHARED, [12], [1], offset=1), "reaches element 12"),
        (tensor(SHARED, [1], [1], offset=12), "reaches element 12"),
        (tensor(SHARED, [2, 2], [1, 2**62]), "reaches element"),
        (tensor(SHARED, [2, 2], [2**64, 2**64]), "reaches element"),
        (tensor(SHARED, [2**70], [0]), "shape makes no sense"),
        (tensor(SHARED, [10**12], [0]), "repeats the 12 elements"),
        (tensor(SHARED, [0, 10**30], [1, 1]), "shape makes no sense"),
        (tensor(SHARED, [1] * 65, [1] * 65), "shape makes no sense"),
        (tensor(SHARED, [-1], [1]), "shape makes no sense"),
        (tensor(SHARED, [12], [1, 1]), "shape makes no sense"),
        (tensor(SHARED, [12], [-1], offset=11), "negative offset or stride"),
        (tensor(SHARED, [1], [1], offset=-1), "negative offset or stride"),
        (tensor(storage("FloatStorage", "0", 13), [1], [1]), "have 52 bytes and has 48"),
        (tensor(storage("DoubleStorage", "0", 12), [1], [1]), "have 96 bytes and has 48"),
        (tensor(storage("FloatStorage", "0", -1), [1], [1]), "have -4 bytes"),
        (tensor(storage("FloatStorage", "0", 10**40), [1], [1]), "and has 48"),
        (tensor(storage("FloatStorage", "7", 12), [1], [1]), "storage 7 is missing"),
        (tensor(storage("FloatStorage", "../data.pkl", 1), [1], [1]), "is missing"),
        (storage("FloatStorage", "0", 12), "w in it is not a tensor but a Storage"),
        (FLOATS, "w in it is not a tensor but a Global"),
        (integer(3), "w in it is not a tensor but a int; save the state_dict alone"),
        (ordered_dict([("inner", GOOD)]), "w in it is not a tensor but a dict"),
        (call(FLOATS, integer(3)), "calls something that no tensor needs"),
        (call(ORDERED_DICT, integer(3)), "calls something"),
        (call(GOOD, integer(3)), "calls something"),
        (text("collections.OrderedDict") + b")R", "calls something"),
        (ORDERED_DICT + text("x") + b"R", "calls something"),
        (parameter(integer(3)), "calls something"),
        (parameter(SHARED), "calls something"),
        (call(name("torch._utils", "_rebuild_tensor_v2"), GOOD), "calls something"),
        (text("storage") + b"Q", "refers to something that is not a storage"),
        (group(text("storage"), ORDERED_DICT, text("0"), text("cpu"), integer(1)) + b"Q", "not a"),
        (group(text("module"), FLOATS, text("0"), text("cpu"), integer(1)) + b"Q", "not a storage"),
        (text("0") + text("x") + text("y") + b"s", "fills in something that is not a dictionary"),
        (ordered_dict([("a", GOOD), ("a", GOOD)]), "the name a occurs twice"),
        (b"}" + integer(3) + GOOD + b"s", "a int where a tensor's name is expected"),
        (b"}(" + text("x") + b"u", "fills in something"),
        (PAIRS, "w in it is not a tensor but a tuple"),
        (b"}" + PAIRS + GOOD + b"s", "a tuple where"),
        (PAIRS + text("x") + b"\x93", "not a string"),
        (b"h\x63", "uses what it has not made"),
        (b"0", "uses POP"),
        (b"N" * 3 + b"RRRR", "calls something"),
        (b"u", "fills in something"),
        (b"\xff", "breaks off or is not one"),
        (b"X\xff\xff\xff\xff", "breaks off or is not one"),
        (b"I" + b"9" * 5000 + b"\n", "breaks off or is not one"),
    ],
)
def test_a_pickle_that_makes_no_sense(tmp_path, value, complaint):
    path = write_zip(tmp_path / "x.bin", program(ordered_dict([("w", value)])), {"0": TWELVE})
    refused(path, complaint)


def test_conjugated_or_negated_views_are_refused(tmp_path):
    lazy = b"}" + text("neg") + b"\x88s"
    arguments = [SHARED, integer(0), integer(12) + b"\x85", integer(1) + b"\x85", b"\x89N"]
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    path = tmp_path / "x.bin"
    write_zip(path, program(ordered_dict([("w", call(rebuild, *arguments))])), {"0": TWELVE})
    assert opened(path)["w"].array.tolist() == TWELVE.tolist()
    write_zip(path, program(ordered_dict([("w", call(rebuild, *arguments, lazy))])), {"0": TWELVE})
    refused(path, "calls something")


@pytest.mark.parametrize(
    "pickled",
    [b"", b"\x80\x02", b"hello", program(b"u"), program(b""), program(GOOD), program(b"N")],
)
def test_a_pickle_of_something_else(tmp_path, pickled):
    refused(write_zip(tmp_path / "x.bin", pickled, {"0": TWELVE}), "damaged|dictionary of tensors")


def test_an_endless_pickle_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.bin", b"}" * 17_000_000, {})
    refused(path, "17000000 bytes is too long")


# --------------------------------------------------------------------------------------- bad files


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    pickled = program(ordered_dict([("w", whole_tensor(TWELVE, "0"))]))
    write_zip(path, pickled, {"0": TWELVE}, compression=zipfile.ZIP_DEFLATED)
    refused(path, r"compressed .*; re-save it with torch\.save")
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickled)
    refused(path, r"from before PyTorch 1\.6; re-save it with torch\.save\(")
    path.write_bytes(b"<html>not found</html>")
    refused(path, "not a PyTorch file")
    path.write_bytes(b"")
    refused(path, "not a PyTorch file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letters/a.txt", "a")
    refused(path, "this zip file is not a PyTorch checkpoint")
    write_zip(path, pickled, {"0": TWELVE}, extra=[("code/data.pkl", b"N.")])
    assert opened(path).names() == ["w"]


def test_a_missing_storage_record(tmp_path):
    pickled = program(ordered_dict([("w", whole_tensor(TWELVE, "0"))]))
    refused(write_zip(tmp_path / "x.bin", pickled, {}), "its storage 0 is missing")
    refused(
        write_zip(tmp_path / "x.bin", pickled, {"0": TWELVE[:-1]}),
        "should have 48 bytes and has 44",
    )


def test_every_truncation_is_refused(tmp_path):
    path = views(tmp_path / "x.bin")
    for size in shortened(path):
        message = refused(path, "truncated or damaged|not a PyTorch file")
        if size >= 8:
            assert f"({size} bytes found)" in message


def test_a_file_with_a_hole_is_refused(tmp_path):
    """Its end is there, so the list of contents can be read and points at the wrong bytes."""
    path = views(tmp_path / "x.bin")
    whole = path.read_bytes()
    for begin, end in [(100, 200), (len(whole) // 2, len(whole) // 2 + 7)]:
        path.write_bytes(whole[:begin] + whole[end:])
        refused(path, "truncated or damaged: .* is not at byte")


@pytest.mark.parametrize("offset", [1, 70, 10**6, 2**32 - 2, "end"])
def test_a_list_of_contents_that_points_elsewhere(tmp_path, offset):
    path = views(tmp_path / "x.bin")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\x03\x04"  # at the very end, the beginning of a member's header
    whole = path.read_bytes()
    if offset == "end":
        offset = len(whole) - 4
    place = whole.index(b"PK\x01\x02") + 42  # of the first member's offset
    path.write_bytes(whole[:place] + offset.to_bytes(4, "little") + whole[place + 4 :])
    refused(path, f"archive/data.pkl is not at byte {offset} where the list")


def test_flipped_bytes_never_give_anything_but_a_value_error(tmp_path):
    pickled = program(ordered_dict([("w", tensor(SHARED, [4, 3], [1, 4]))]))
    path = write_zip(tmp_path / "x.bin", pickled, {"0": TWELVE})
    accepted = 0
    for _ in with_one_byte_changed(path, b"\x00\xff(R", path.stat().st_size):
        try:
            entries = pytorch_entries(path)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        for entry in entries.values():
            assert entry.load().shape == entry.shape
    assert accepted > 0  # a flipped weight is for digests to find


def test_an_offset_that_no_file_can_have(tmp_path):
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program(ordered_dict([])))
        archive.getinfo("archive/data.pkl").header_offset = 2**64 - 9
    refused(path, f"is not at byte {2**64 - 9} where")


# ------------------------------------------------------------------------------------- real torch


@pytest.mark.live
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_save_bit_for_bit(tmp_path, protocol):
    import torch

    torch.manual_seed(0)
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    state = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7)).state_dict()
    for dtype in dtypes:
        base = torch.randn(6, 8).to(dtype)
        state[f"{dtype}.base"] = base
        state[f"{dtype}.transposed"] = base.t()
        state[f"{dtype}.rows"] = base[2:5]
        state[f"{dtype}.columns"] = base[:, 1:8:3]
        state[f"{dtype}.permuted"] = base.view(2, 3, 8).permute(2, 0, 1)
        state[f"{dtype}.parameter"] = torch.nn.Parameter(base[1:])
        state[f"{dtype}.scalar"] = base[3, 3]
        state[f"{dtype}.empty"] = base[:0]
        state[f"{dtype}.every_pattern"] = (
            torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
            if dtype.itemsize == 2
            else torch.tensor([float("nan"), float("-inf"), -0.0, 1e-42])
        )
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, pickle_protocol=protocol)

    checkpoint = opened(path)
    assert checkpoint.names() == list(state)
    for label, expected in state.items():
        found = checkpoint[label]
        assert f"torch.{found.dtype}" == str(expected.dtype)
        assert found.array.shape == tuple(expected.shape) == checkpoint.shape(label)
        bits = torch.int32 if expected.dtype.itemsize == 4 else torch.int16
        expected_bits = expected.detach().contiguous().view(bits).numpy()
        np.testing.assert_array_equal(found.array.view(expected_bits.dtype), expected_bits)
        if expected.numel() and expected.is_contiguous():
            assert is_mapped(found.array)
    for dtype in map(str, dtypes):
        base, rows = (checkpoint[f"{dtype}.{label}"].array for label in ("base", "rows"))
        assert np.shares_memory(base, rows)


@pytest.mark.live
def test_torch_saves_the_other_types(tmp_path):
    import torch

    state = {"double": torch.tensor([1 / 3, -0.0], dtype=torch.float64)}
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool):
        state[str(dtype).removeprefix("torch.")] = torch.ones(2, dtype=dtype)
    torch.save(state, tmp_path / "x.bin")
    checkpoint = opened(tmp_path / "x.bin")
    np.testing.assert_array_equal(checkpoint["double"].array, state["double"].float().numpy())
    for label in list(state)[1:]:
        with pytest.raises(ValueError, match=f"{label} is of type {label}"):
            checkpoint[label]


@pytest.mark.live
def test_the_advice_to_re_save_works(tmp_path):
    import torch

    path = tmp_path / "old.bin"
    state = {"w": torch.arange(4.0)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    refused(path, r"from before PyTorch 1\.6")
    torch.save(torch.load(path, map_location="cpu", weights_only=True), tmp_path / "new.bin")
    assert opened(tmp_path / "new.bin")["w"].array.tolist() == [0, 1, 2, 3]

    # what weights_only=True writes as an expanded view is small in the file and large in memory
    torch.save({"w": torch.ones(1).expand(5)}, path)
    refused(path, r"re-save it with \.contiguous\(\)")
    torch.save({"w": torch.ones(1).expand(5).contiguous()}, path)
    assert opened(path)["w"].array.tolist() == [1] * 5
