"""From one stored type to another, and no number that means nothing on the way."""

import numpy as np

from tinyflash.matrices.half import decode, refuse_infinite


def as_dtype(numbers, stored, wanted, name):
    """Numbers of one stored type in another, rounded to the nearest, of two to the even one.

    numbers: float32, float16, or uint16 with the bits of bfloat16 (`stored` says which)
    returns: the same of `wanted`
    raises : ValueError that names the tensor for Inf, NaN, or a number beyond wanted's range
    """
    if stored == "float32":
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"{name} holds Inf or NaN, so no result computed with it would mean anything; "
                "get another copy of the checkpoint."
            )
    else:
        refuse_infinite(numbers.view(np.uint16), stored, name)
    if stored == wanted:
        return numbers
    if stored != "float32":
        numbers = decode(numbers.view(np.uint16), stored)
    if wanted == "float32":
        return numbers
    if wanted == "float16":
        with np.errstate(over="ignore"):
            rounded = numbers.astype(np.float16)
        fits = np.isfinite(rounded).all()
    else:
        bits = numbers.view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)  # a tie goes up only to an even neighbor
        rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
        fits = np.max(rounded & np.uint16(0x7FFF)) < 0x7F80
    if not fits:
        raise ValueError(
            f"{name} holds a number beyond the range of {wanted}; convert to another dtype."
        )
    return rounded
