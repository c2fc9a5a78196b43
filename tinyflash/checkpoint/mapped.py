"""Mapped files, and noticing that somebody writes to one.

Weights are not copied to DRAM but mapped: the kernel brings a page when it is touched, and may drop
it again. So a file that is overwritten in place changes the model under our hands, and one that is
cut short ends the process (SIGBUS) where a page is touched that it has no more. A model therefore
looks at its files before each forward pass and after it: what was changed before is refused, and
so is what was computed meanwhile. Not even this helps where a file is cut short in the middle of a
pass: then the process ends. Deleting a file, or putting another one in its place, does no harm.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.noted import state_of
from tinyflash.files import naming


class MappedFile(mmap.mmap):
    """A file mapped for reading, and the state in which it was opened; see noted.state_of."""

    path: str
    state: list[int]

    def __new__(cls, path: str | Path) -> MappedFile:
        """Map a file. Raises OSError, or ValueError if it is empty, one sentence that names it."""
        with naming(path), open(path, "rb") as file:
            state = state_of(file.fileno())
            if state[1] == 0:
                raise ValueError(f"{path} is empty; get another copy of it.")
            mapped = super().__new__(cls, file.fileno(), state[1], access=mmap.ACCESS_READ)
        mapped.path, mapped.state = os.path.abspath(path), state
        return mapped

    def __deepcopy__(self, memo: dict) -> MappedFile:
        """The same mapping: nobody can write to it, so a copy of a model may share it."""
        return self

    def array(self) -> np.ndarray:
        """Its bytes, uint8 (n,), read-only."""
        return np.frombuffer(self, dtype=np.uint8)

    def refuse_changed(self, also_replaced: bool = False) -> None:
        """Raise an OSError if somebody wrote to the file since it was mapped.

        also_replaced: or put another file in its place, or deleted it
        """
        if self.size() == len(self):
            try:
                now = state_of(self.path)
            except FileNotFoundError:
                now = [0]
            if now == self.state or (now[0] != self.state[0] and not also_replaced):
                return
        raise OSError(f"{self.path} was changed while it was in use; open it again.")


def mapped_array(path: str | Path) -> np.ndarray:
    """The bytes of a file, mapped: uint8 (n,); see MappedFile."""
    return MappedFile(path).array()


def file_behind(array: object) -> MappedFile | None:
    """The mapped file that an array, or a matrix with `bits`, is a view of; None for a copy."""
    owner = getattr(array, "bits", array)
    while owner is not None and not isinstance(owner, MappedFile):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return owner


def files_behind(arrays: Iterable[object]) -> list[MappedFile]:
    """The mapped files that some arrays and matrices are views of, each once."""
    files = {id(file): file for file in map(file_behind, arrays) if file is not None}
    return list(files.values())


def refuse_changed(files: Iterable[MappedFile]) -> None:
    """Raise an OSError that names the first of some mapped files to which somebody wrote."""
    for file in files:
        file.refuse_changed()


def let_go(array: object) -> None:
    """Tell the kernel that pages of a mapped file need not stay in this process's DRAM.

    They are read again if they are asked for again. An array that is not mapped stays as it is.
    """
    file = file_behind(array)
    if hasattr(file, "madvise") and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        file.madvise(mmap.MADV_DONTNEED)
