"""What a matrix is that is not a plain array: `ops.linear` and `ops.rows` ask for no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike


class Matrix(Protocol):
    """A matrix of (out, in) numbers, kept in some form of its own.

    shape : (out, in)

    >>> from tinyflash.matrices.half import HalfMatrix
    >>> W = HalfMatrix(np.array([[1, 2], [3, 4]], dtype=np.float16))
    >>> W.nbytes, W.multiply(np.ones((1, 2), dtype=np.float32)).tolist(), W.rows([1]).tolist()
    (8, [[3.0, 7.0]], [[3.0, 4.0]])
    """

    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers take, in DRAM or mapped."""
        ...

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x Wᵀ: (..., in) -> (..., out), of x's dtype."""
        ...

    def rows(self, ids: ArrayLike) -> np.ndarray:
        """Some rows: int (...) -> (..., in)."""
        ...

    def dense(self) -> np.ndarray:
        """The whole as an array: (out, in)."""
        ...


Weights = Mapping[str, Any]  # name of config.weight_shapes -> array or Matrix
Lookup = Callable[[str], Any]  # from such a name to the weight, or None
