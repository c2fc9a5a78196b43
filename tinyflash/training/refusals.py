"""What every training refuses before it does any work, in one sentence that names the option."""

from __future__ import annotations

import math
from numbers import Integral, Real

from tinyflash.training.vocabulary import documents_of


def refuse_below(least: int, **options: int | None) -> None:
    """Raise a ValueError for an option that is no whole number of at least `least`; None is well.

    >>> refuse_below(1, steps=3, length=None)
    """
    for name, value in options.items():
        counts = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (counts and value >= least):
            raise ValueError(f"{option(name)} must be at least {least}, not {value}.")


def refuse_no_share(**options: float | None) -> None:
    """Raise a ValueError for an option that is not between 0 and 1; None is well."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, Real) and 0 < value < 1):
            raise ValueError(f"{option(name)} is a share between 0 and 1, not {value}.")


def refuse_no_rate(**options: float) -> None:
    """Raise a ValueError for an option that is no finite number above 0."""
    for name, value in options.items():
        if not (isinstance(value, Real) and 0 < value < math.inf):
            raise ValueError(f"{option(name)} must be above 0, not {value}.")


def refuse_short(name: str, text: str, length: int) -> None:
    """Raise a ValueError if a text has too few tokens for a sequence, whatever the tokenizer.

    A document has a token for each byte at most, and two around them.
    """
    most = sum(2 + len(document.encode()) for document in documents_of(text))
    if most <= length:
        raise ValueError(
            f"{name} has at most {most} tokens, fewer than one training sequence of {length + 1}; "
            "give more text or train on shorter sequences."
        )


def option(name: str) -> str:
    """What a setting is called on the command line: `learning_rate` -> `--learning-rate`."""
    return f"--{name.replace('_', '-')}"
