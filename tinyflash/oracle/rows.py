"""One tensor of a reference beside the other engine's: equal or not, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinyflash.oracle.tolerances import LARGEST
from tinyflash.taps import short_name

HUGE = 1000  # times the quartile of a tensor's numbers that are not 0
TAILS = ("attn.pattern", "ffn.act")  # their small numbers mean nothing by themselves


@dataclass(frozen=True)
class Row:
    """One tensor of the comparison.

    verdict   : "equal" (within the tolerance), "differs", "not finite" (NaN or Inf in either),
                "shape", "no floats" (integers, say), "no numbers" (a size of 0), and of what was
                not compared "missing" (in the other recording) or "extra" (only in the other)
    tolerance : of rms; that of relative is LARGEST times it
    max_abs   : largest |other - reference|; None where it cannot be said, as are the next three
    spread    : of the reference, see `spread`
    relative  : max_abs / spread
    rms       : root mean square of other - reference, / spread
    detail    : what the numbers cannot say, or ""
    """

    name: str
    verdict: str
    tolerance: float
    max_abs: float | None = None
    spread: float | None = None
    relative: float | None = None
    rms: float | None = None
    detail: str = ""

    @property
    def compared(self) -> bool:
        """Whether both recordings have it."""
        return self.verdict not in ("missing", "extra")

    @property
    def differs(self) -> bool:
        """Whether both have it, and it is not equal."""
        return self.compared and self.verdict != "equal"


def compared_row(
    name: str, a: np.ndarray, b: np.ndarray, tolerance: float, counts: np.ndarray | None = None
) -> Row:
    """The Row of a tensor that both recordings have.

    It is equal if √mean((b - a)²) ≤ t · spread(a) and max|b - a| ≤ LARGEST · t · spread(a), with t
    the tolerance. Zeros are equal to zeros alone.

    a, b   : arrays, the reference's and the other's
    counts : bool of their shape, or None: the numbers that are compared
    """
    problem = incomparable(a, b, counts)
    if problem:
        return Row(name, problem[0], tolerance, detail=problem[1])
    a, b = (array.astype(np.float64)[... if counts is None else counts] for array in (a, b))
    unit = unit_of(a)  # squares of large numbers overflow, those of small ones vanish
    with np.errstate(over="ignore"):
        difference = np.abs(b / unit - a / unit)
        largest, rms = float(np.max(difference)), root_mean_square(difference)
        max_abs = float(np.max(np.abs(b - a)))
    scale = spread(a / unit)
    if largest == 0:
        return Row(name, "equal", tolerance, 0.0, scale * unit, 0.0, 0.0)
    if scale == 0:
        detail = "the reference holds zeros alone"
        return Row(name, "differs", tolerance, finite(max_abs), 0.0, detail=detail)
    relative, rms = largest / scale, rms / scale
    equal = rms <= tolerance and relative <= LARGEST * tolerance
    detail = ""
    if equal and short_name(name) not in TAILS and the_rest_differs(a, b):
        equal, detail = False, "a few huge numbers agree and the rest does not"
    numbers = (finite(number) for number in (max_abs, scale * unit, relative, rms))
    return Row(name, "equal" if equal else "differs", tolerance, *numbers, detail)


def incomparable(a: np.ndarray, b: np.ndarray, counts: np.ndarray | None) -> tuple[str, str] | None:
    """The verdict on two arrays that cannot be compared number by number, and why; or None."""
    if a.shape != b.shape:
        return "shape", f"{a.shape} in the reference, {b.shape} here"
    for array in (a, b):
        if not is_floats(array):
            return "no floats", f"{array.dtype}: only floats are compared"
    if a.size == 0 or (counts is not None and not counts.any()):
        return "no numbers", f"of shape {a.shape}: there is nothing to compare"
    for who, array in (("the reference", a), ("the other recording", b)):
        if not np.isfinite(array if counts is None else array[counts]).all():
            return "not finite", f"{who} holds NaN or Inf"
    return None


def is_floats(array: np.ndarray) -> bool:
    """Whether an array holds floats that float64 can hold."""
    return array.dtype.kind == "f" and array.dtype.itemsize <= 8


def unit_of(tensor: np.ndarray) -> float:
    """The power of two below the largest |number|, to divide by without rounding; 1 for zeros."""
    largest = float(np.max(np.abs(tensor)))
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0


def finite(number: float) -> float | None:
    """The number, or None if it is beyond float64."""
    return number if math.isfinite(number) else None


def root_mean_square(tensor: np.ndarray) -> float:
    """√mean(tensor²)"""
    return math.sqrt(np.mean(tensor**2, dtype=np.float64))


def spread(tensor: np.ndarray) -> float:
    """Standard deviation, but at least half the root mean square.

    (Few numbers may be alike by chance, and the pattern of a single token is all ones.)

    tensor : of numbers whose squares float64 can hold
    """
    return max(float(np.std(tensor, dtype=np.float64)), root_mean_square(tensor) / 2)


def the_rest_differs(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two tensors that agree by their spread differ where they are not HUGE.

    One number of 1e200 makes a spread beside which all others vanish: these must agree within half
    of their own spread, too.

    a, b : float64 arrays, finite, not all zero
    """
    size = np.maximum(np.abs(a), np.abs(b))
    with np.errstate(over="ignore"):
        rest = size <= HUGE * np.quantile(size[size > 0], 0.25)
        if rest.all():
            return False
        a, b = a[rest], b[rest]
        unit = unit_of(size[rest])
    return root_mean_square(b / unit - a / unit) > max(spread(a / unit), spread(b / unit)) / 2
