"""Token ids that people and files give, checked before anything is computed of them."""

from numbers import Integral

import numpy as np


def token_ids(ids: object, vocab_size: int) -> np.ndarray:
    """Token ids as an array.

    ids    : ints, T of them: a list, a tuple, a range, or an array of whole numbers
    returns: int64 (T,); it may be empty
    raises : ValueError, one sentence, for what is no row of ids of this vocabulary

    >>> token_ids([2, 5], vocab_size=10).tolist()
    [2, 5]
    """
    given = np.asarray(ids) if hasattr(ids, "__array__") else ids  # NumPy's, or another's
    if isinstance(given, np.ndarray):
        if given.ndim == 1 and given.dtype.kind in "iu" and len(given):
            if 0 <= given.min() and given.max() < vocab_size:
                return given.astype(np.int64)
        given = given.tolist()
    if not isinstance(given, list | tuple | range):
        raise ValueError(
            f"Token ids are a list of whole numbers, such as [1, 5, 7], not {short(ids)}."
        )
    for id in given:
        if isinstance(id, bool) or not isinstance(id, Integral):
            raise ValueError(f"Token ids are whole numbers, and {short(id)} is none.")
        if not 0 <= int(id) < vocab_size:
            raise ValueError(
                f"Token id {short(id)} is outside the vocabulary of {vocab_size} words."
            )
    return np.array(given, dtype=np.int64)


def short(value: object) -> str:
    """A value in few letters, for a message.

    >>> short("many " * 20)
    "'many many many many many many many m…"
    """
    if isinstance(value, int) and abs(value) >= 10**30:
        return "of more than 30 digits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:37]}…"
