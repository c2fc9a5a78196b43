"""What a matrix is that is not a plain array: `ops.linear` and `ops.rows` ask for no more."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Matrix(Protocol):
    """A matrix of (out, in) numbers, kept in some form of its own.

    shape : (out, in)
    """

    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers take, in DRAM or mapped."""
        ...

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x Wᵀ: (..., in) -> (..., out), of x's dtype."""
        ...

    def rows(self, ids) -> np.ndarray:
        """Some rows: int (...) -> (..., in)."""
        ...

    def dense(self) -> np.ndarray:
        """The whole as an array: (out, in)."""
        ...
