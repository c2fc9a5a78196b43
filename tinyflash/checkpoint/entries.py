"""Tensors by name from a model directory or file, nothing read before it is asked for.

A checkpoint is a config and a dictionary of entries; a file format is a function that makes
the entries. A format whose weights must be decoded (GGUF) builds the same thing:

    entries = {
        "blk.0.ffn_up.weight": Entry(
            dtype="float32",  # of the array that load() returns
            shape=(F, D),  # of that array
            nbytes=1234,  # in the file, before decoding
            load=lambda: decode(...),  # called when the tensor is asked for, each time
        ),
    }
    return Checkpoint(path, config, entries)

`load` returns float32, float16, or the bits of bfloat16 as uint16, mapped where it can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# What NumPy reads the stored bytes as. It has no bfloat16, so those stay bits.
NUMPY_DTYPES = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint8": "|u1",
    "bool": "|b1",
}


FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tensor:
    """A named array: float32, float16, or bfloat16 as its bits in uint16; read-only."""

    name: str
    dtype: str  # "float32" | "float16" | "bfloat16"
    array: np.ndarray

    def __repr__(self) -> str:
        return f"<Tensor {self.name!r}: {self.dtype} {self.array.shape}>"


@dataclass(frozen=True)
class Entry:
    """A tensor that has not been read yet.

    dtype : "float32", "float16", "bfloat16" or "float64" as load() returns it, or the name of
            any other stored type ("int64", "bool", ...): listed, and refused when asked for
    shape : shape of the array that load() returns
    nbytes: bytes in the file; 0 for a further name of bytes that are already counted
    load  : returns the array; called only when the tensor is asked for, and each time
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A model's config and its tensors by name; a tensor is read when it is indexed.

    path   : the directory or file that it came from, for messages
    config : config.json as a dictionary (or, from a GGUF file, the same keys)
    entries: what there is to read, in the order of the files
    absent : why a tensor that one would expect is not among the entries, by name
    """

    path: Path
    config: dict
    entries: dict[str, Entry]
    absent: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r}: {len(self.entries)} tensors>"

    def names(self) -> list[str]:
        """Names of all tensors, integer ones included, in the order of the files."""
        return list(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Tensor:
        """The tensor `name`, read-only and mapped where the file allows it; float64 is narrowed.

        raises: ValueError if it is missing, not of floats, or too large for float32
        """
        entry = self._entry(name)
        if entry.dtype not in FLOAT_DTYPES:
            raise ValueError(
                f"{self.path}: tensor {name} is of type {entry.dtype} and cannot be a weight, "
                f"which is one of {', '.join(FLOAT_DTYPES)}"
            )
        array = entry.load().view(np.ndarray)
        dtype = entry.dtype
        if dtype == "float64":
            array, dtype = _narrowed(array, f"{self.path}: tensor {name}"), "float32"
        array.flags.writeable = False
        return Tensor(name, dtype, array)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor `name`, without reading it. Raises ValueError if it is missing."""
        return self._entry(name).shape

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored, each byte counted once."""
        return sum(entry.nbytes for entry in self.entries.values())

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            reason = f": {self.absent[name]}" if name in self.absent else ""
            raise ValueError(f"{self.path}: there is no tensor named {name}{reason}")
        return self.entries[name]


def are_sizes(values: tuple) -> bool:
    """Whether these are integers ≥ 0 that NumPy can take as a shape, an empty one included."""
    return (
        len(values) <= 32
        and all(type(value) is int and value >= 0 for value in values)
        and math.prod(max(value, 1) for value in values) < 2**59  # × 8 bytes fits in 63 bits
    )


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise ValueError if a file that begins with `start` only says where the weights are."""
    if start.startswith(b"version "):
        raise ValueError(
            f"{path}: this is a Git LFS pointer and not the weights; run `git lfs pull` there"
        )


def _narrowed(array: np.ndarray, what: str) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return array.astype(np.float32)
    except FloatingPointError:
        raise ValueError(f"{what} has float64 values that float32 cannot hold") from None
