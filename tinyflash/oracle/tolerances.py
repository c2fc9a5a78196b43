"""How far two right engines may be apart, and which dtype's tolerance a recording may claim."""

from __future__ import annotations

import numpy as np

# Root mean square of the difference of two engines that both are right, as a share of the
# reference's spread, by the less precise of the two dtypes they compute in. A single number may
# be off by LARGEST times as much: attention patterns and residual streams have heavy tails.
#
# Measured against transformers 5.23.0, worst tensor of 320 random models (1 to 3 layers, sharp
# attention, up to 90 tokens; float64: of 20 GPT-2) and of SmolLM2 (30 layers, 34 tokens):
#
#              random models            SmolLM2
#     float64  2.3e-15, largest 7e-14
#     float32  2.3e-6, largest 6e-5     3.0e-6, largest 4e-4
#     float16  8.8e-3, largest 0.25     5.1e-3, largest 0.42
#     bfloat16 8.5e-2, largest 1.8      5.0e-2, largest 3.6
#
# In float32 transformers itself is as far as that from our float64.
TOLERANCES = {"float64": 1e-14, "float32": 1e-5, "float16": 2e-2, "bfloat16": 2e-1}
LARGEST = 100


def shown_dtype(taps: dict[str, np.ndarray], claimed: str) -> str:
    """The dtype that a recording's numbers show it was computed in.

    An engine that computes in 16 bits rounds what it computes: transformers does it with every
    tensor. A claim that fewer than half of the tensors bear out is no reason for a wide tolerance;
    then it is the next more precise dtype.

    taps    : dict name -> array of floats, at least one
    claimed : a key of TOLERANCES: what the manifest says
    returns : a key of TOLERANCES, `claimed` or a more precise one
    """
    wider = {"bfloat16": "float32", "float16": "float32", "float32": "float64"}
    rounded = sum(is_rounded_to(tensor, claimed) for tensor in taps.values())
    if claimed not in wider or 2 * rounded >= len(taps):
        return claimed
    return shown_dtype(taps, wider[claimed])


def is_rounded_to(tensor: np.ndarray, dtype: str) -> bool:
    """Whether every number of a tensor is one that `dtype` has (NaN and Inf are).

    >>> is_rounded_to(np.array([1.5, 0.1], dtype=np.float64), "float32")
    False
    """
    if dtype == "float64":
        return True
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype != "bfloat16":
            return np.array_equal(tensor, tensor.astype(dtype), equal_nan=True)
        # A bfloat16 is the upper half of a float32.
        single = np.ascontiguousarray(tensor, dtype=np.float32)
    lower_half_is_zero = not np.any(single.view(np.uint32)[np.isfinite(single)] & 0xFFFF)
    return lower_half_is_zero and np.array_equal(tensor, single, equal_nan=True)
