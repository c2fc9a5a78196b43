"""Safetensors files: read as views into their memory map, found by the header; and written.

The `safetensors` package cannot hand bfloat16 to NumPy (0.8: "data type 'bfloat16' not
understood"), so the header, which is all there is to the format, is read here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from tinyflash.checkpoint.entries import NUMPY_DTYPES, Entry, are_sizes, refuse_lfs_pointer
from tinyflash.checkpoint.mapped import mapped_array
from tinyflash.files import json_object, naming, printable

SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
MAX_HEADER_BYTES = 100_000_000  # the `safetensors` package has the same limit


def safetensors_entries(path: Path) -> dict[str, Entry]:
    """Entries of one safetensors file, views into its memory map; only its header is read.

    Layout: header length (8 bytes, little-endian), JSON header, data. The header gives each
    tensor's type, shape and [begin, end) within the data, which it covers without gap or overlap.

    raises: ValueError if the file is truncated, damaged or not a safetensors file
    """
    with naming(path), open(path, "rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        header_length = int.from_bytes(start, "little")
        if len(start) < 8 or header_length > min(MAX_HEADER_BYTES, file_size - 8):
            refuse_lfs_pointer(path, start)
            raise ValueError(
                f"{path}: not a safetensors file, or truncated: its header would take "
                f"{header_length} bytes and the file has {file_size}"
            )
        header = json_object(file.read(header_length), path, unique_keys=True)
    header.pop("__metadata__", None)

    layout = {name: _checked_layout(path, name, info) for name, info in header.items()}
    data_size = 0
    for name, (_, _, begin, end) in sorted(layout.items(), key=lambda item: item[1][2:]):
        if begin != data_size:
            raise ValueError(
                f"{path}: damaged header: the data of tensor {printable(name)} begins at byte "
                f"{begin}, and the data before it ends at {data_size}"
            )
        data_size = end
    expected_size = 8 + header_length + data_size
    if file_size != expected_size:
        problem = "truncated" if file_size < expected_size else "damaged"
        raise ValueError(
            f"{path}: {problem}: by its header it has {expected_size} bytes, "
            f"and there are {file_size}; download it again"
        )

    data = mapped_array(path)[8 + header_length :]
    return {
        name: Entry(dtype, shape, end - begin, _view_loader(data[begin:end], dtype, shape))
        for name, (dtype, shape, begin, end) in layout.items()
    }


def _checked_layout(path: Path, name: str, info: object) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one tensor of a safetensors header."""
    try:
        stored, shape, (begin, end) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
        sane = isinstance(stored, str) and are_sizes(shape)
        sane = sane and type(begin) is type(end) is int and 0 <= begin <= end
    except (KeyError, TypeError, ValueError):
        sane = False
    if not sane:
        raise ValueError(
            f"{path}: damaged header: what it says of tensor {printable(name)} makes no sense"
        )
    dtype = SAFETENSORS_DTYPES.get(stored, printable(stored))
    if dtype in NUMPY_DTYPES:
        expected = math.prod(shape) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
        if end - begin != expected:
            raise ValueError(
                f"{path}: damaged header: tensor {printable(name)} of shape {list(shape)} in "
                f"{dtype} takes {expected} bytes, and the header gives it {end - begin}"
            )
    return dtype, shape, begin, end


def _view_loader(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    return lambda: data.view(NUMPY_DTYPES[dtype]).reshape(shape)


def safetensors_content(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Callable[[IO[bytes]], None]:
    """What `files.write_whole` writes as a safetensors file: byte for byte what the package would.

    arrays  : name -> array of float64, float32 or float16;  metadata: texts for the header
    returns : function that writes to a binary file, an array at a time
    """
    # As in the package, wide numbers come first: each lies on a multiple of its own size.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header, end = {"__metadata__": dict(metadata)} if metadata else {}, 0
    for name in order:
        array = arrays[name]
        begin, end = end, end + array.nbytes
        stored = {"f8": "F64", "f4": "F32", "f2": "F16"}[array.dtype.str[1:]]
        header[name] = {"dtype": stored, "shape": [*array.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)

    return write
