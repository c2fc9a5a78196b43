"""PyTorch .bin files written by hand, opcode by opcode, so that no test needs torch."""

import os
import struct
import zipfile

import numpy as np

from tinyflash.checkpoint.mapped import file_behind

STORAGE_TYPES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "uint16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value):
    if 0 <= value < 256:
        return b"K" + struct.pack("B", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("B", len(encoded)) + encoded


def group(*items):
    return b"(" + b"".join(items) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + group(*arguments) + b"R"


def ordered_dict(items, state=b""):
    """An OrderedDict of (key, pickled value) pairs, with `_metadata` as BUILD would set it."""
    pairs = b"".join(text(key) + value for key, value in items)
    return call(name("collections", "OrderedDict")) + b"(" + pairs + b"u" + state


def storage(storage_type, key, numel):
    location = name("torch", storage_type)
    return group(text("storage"), location, text(key), text("cpu"), integer(numel)) + b"Q"


def tensor(storage_bytes, shape, strides, offset=0):
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage_bytes,
        integer(offset),
        group(*map(integer, shape)),
        group(*map(integer, strides)),
        b"\x89",  # False: requires no gradient
        ordered_dict([]),
    )


def parameter(tensor_bytes):
    return call(name("torch._utils", "_rebuild_parameter"), tensor_bytes, b"\x88", ordered_dict([]))


def whole_tensor(array, key):
    """The pickle of a contiguous array that has the storage `key` to itself."""
    strides = [stride // array.itemsize for stride in array.strides]
    kind = STORAGE_TYPES[array.dtype.name]
    return tensor(storage(kind, key, array.size), array.shape, strides)


def program(value):
    return b"\x80\x02" + value + b"."


def write_zip(path, pickle, storages, *, folder="archive", extra=(), compression=0):
    """A torch.save file: data.pkl, byteorder, and one member a storage, from arrays or bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", pickle)
        for member, content in dict([("byteorder", b"little"), *extra]).items():
            archive.writestr(f"{folder}/{member}", content)
        for key, data in storages.items():
            content = data.tobytes() if isinstance(data, np.ndarray) else data
            archive.writestr(f"{folder}/data/{key}", content)
    return path


def write_bin(path, arrays):
    """A state dict of contiguous arrays; uint16 arrays are written as bfloat16."""
    pairs = [(label, whole_tensor(array, label)) for label, array in arrays.items()]
    return write_zip(path, program(ordered_dict(pairs)), arrays)


def write_sparse_bin(path, numels):
    """A .bin of float16 vectors of these sizes, holes but for a 1.0 at either end."""
    pairs = [
        (label, tensor(storage("HalfStorage", label, numel), [numel], [1]))
        for label, numel in numels.items()
    ]
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program(ordered_dict(pairs)))
        for label, numel in numels.items():
            member = zipfile.ZipInfo(f"archive/data/{label}")
            member.file_size = member.compress_size = 2 * numel
            member.CRC = 0
            member.header_offset = file.tell()
            file.write(member.FileHeader(zip64=True))
            one = np.float16(1).tobytes()
            file.write(one)
            file.seek(2 * numel - 4, 1)
            file.write(one)
            # what ZipFile does itself when it has written a member's bytes
            archive.filelist.append(member)
            archive.NameToInfo[member.filename] = member
            archive.start_dir = file.tell()
    return path


def resident_bytes():
    """Memory of this process that is in DRAM now, mapped pages of files included."""
    with open("/proc/self/status") as status:
        lines = [line for line in status if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) * 1024


def is_mapped(array):
    """Whether an array is a view of a mapped file, and not a copy."""
    return file_behind(array) is not None


def shortened(path):
    """Cut bytes off the end of a file, one after the other, and yield its size each time."""
    for size in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, size)
        yield size


def with_one_byte_changed(path, values, end):
    """Yield once for each of the first `end` bytes of a file and each value put in its place."""
    # in place, because ext4 writes a file to the disk at once when all of it is replaced
    with open(path, "r+b", buffering=0) as file:
        for position, original in enumerate(path.read_bytes()[:end]):
            for value in [*values, original]:
                file.seek(position)
                file.write(bytes([value]))
                if value != original:
                    yield
