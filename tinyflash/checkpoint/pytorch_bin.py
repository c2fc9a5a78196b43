"""Entries of a PyTorch .bin file: views into its memory map, no tensor read at opening.

torch.save writes an uncompressed zip: `NAME/data.pkl`, a pickle that says how to build the
tensors (tensor_pickle.py), and `NAME/data/0`, `NAME/data/1`, ..., the bytes of their storages.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinyflash.checkpoint.entries import NUMPY_DTYPES, Entry, refuse_lfs_pointer
from tinyflash.checkpoint.mapped import mapped_array
from tinyflash.checkpoint.tensor_pickle import StoredTensor, tensors_by_name
from tinyflash.files import naming, printable

MAX_PICKLE_BYTES = 16_000_000  # a tensor takes about 150
RESAVE = "re-save it with torch.save(torch.load(old, map_location='cpu', weights_only=True), new)"


def pytorch_entries(path: Path) -> dict[str, Entry]:
    """Entries of one PyTorch .bin file, views into its memory map; no tensor is read.

    A tensor that is not contiguous in the file is copied when it is asked for. Bytes that
    several tensors share are counted for the first of them.

    raises: ValueError if the file is truncated, damaged, compressed, in the format from before
            PyTorch 1.6, holds anything but tensors by name, or names a global that is not allowed
    """
    records = _mapped_records(path)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{path}: this zip file is not a PyTorch checkpoint; {RESAVE}")
    folder = pickles[0].removesuffix("data.pkl")
    byteorder = records.get(f"{folder}byteorder")  # PyTorch before 2.1 did not write it
    if byteorder is not None and byteorder[:7].tobytes() != b"little":
        raise ValueError(f"{path}: written on a big-endian machine; {RESAVE}")
    storages = {
        name.removeprefix(f"{folder}data/"): data
        for name, data in records.items()
        if name.startswith(f"{folder}data/")
    }
    pickle = records[pickles[0]]
    if pickle.nbytes > MAX_PICKLE_BYTES:
        raise ValueError(f"{path}: its pickle of {pickle.nbytes} bytes is too long for tensors")
    try:
        tensors = tensors_by_name(pickle.tobytes(), storages)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    entries, counted = {}, set()
    for name, tensor in tensors.items():
        key = tensor.storage.key
        nbytes = 0 if key in counted else tensor.storage.data.nbytes
        counted.add(key)
        entries[name] = Entry(tensor.storage.dtype, tensor.shape, nbytes, _view_loader(tensor))
    return entries


def _mapped_records(path: Path) -> dict[str, np.ndarray]:
    """Bytes of the zip's members by name, as slices of the mapped file."""
    with naming(path), open(path, "rb") as file:
        start = file.read(8)
        if not start.startswith(b"PK\x03\x04"):
            refuse_lfs_pointer(path, start)
            if start.startswith(b"\x80"):
                raise ValueError(f"{path}: in the format from before PyTorch 1.6; {RESAVE}")
            raise ValueError(f"{path}: not a PyTorch file; download it again")
        try:
            members = zipfile.ZipFile(file).infolist()
        except Exception as error:  # zipfile meets damage with half a dozen kinds of exception
            raise ValueError(
                f"{path}: truncated or damaged: the list of contents at its end cannot be read "
                f"({path.stat().st_size} bytes found); download it again"
            ) from error
        places = {}
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                name = printable(member.filename)
                raise ValueError(f"{path}: {name} in it is compressed or encrypted; {RESAVE}")
            places[member.filename] = (_data_offset(path, file, member), member.file_size)

    mapped = mapped_array(path)
    return {name: mapped[offset : offset + size] for name, (offset, size) in places.items()}


def _data_offset(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its own header, whose length only that header says."""
    header = b""
    if 0 <= member.header_offset < path.stat().st_size:  # negative or 2**63 in a damaged list
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise ValueError(
            f"{path}: truncated or damaged: {printable(member.filename)} is not at byte "
            f"{member.header_offset} where the list of contents has it; download it again"
        )
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name_length + extra_length


def _view_loader(tensor: StoredTensor) -> Callable[[], np.ndarray]:
    def view() -> np.ndarray:
        values = tensor.storage.data.view(NUMPY_DTYPES[tensor.storage.dtype])
        if math.prod(tensor.shape) == 0:
            return np.zeros(tensor.shape, dtype=values.dtype)
        # along a dimension of one element the stride is never taken, and may be any number
        pairs = zip(tensor.shape, tensor.strides, strict=True)
        strides = [stride * values.itemsize if size > 1 else 0 for size, stride in pairs]
        array = np.lib.stride_tricks.as_strided(
            values[tensor.offset :], tensor.shape, strides, writeable=False
        )
        return array if array.flags.c_contiguous else array.copy()

    return view
