"""The settings by which a text is made, and the sentences for those that mean nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

from tinyflash.checks import short

WHOLE = ("top_k", "no_repeat_ngram", "seed")  # the settings that count something
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. As it stands, without arguments: always the likeliest.

    temperature, top_k, top_p, min_p : see sampling.distribution
    repetition_penalty : see penalties.py, as for the two that follow
    no_repeat_ngram    : no row of so many tokens stands in the text twice; 0 for no such rule
    suppress_tokens    : ids that are never said
    seed               : of the random draws; None draws differently each time
    raises             : ValueError, one sentence, for settings that describe no distribution

    >>> Sampling(temperature=0.7, top_k=20.0).top_k
    20
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    suppress_tokens: tuple[int, ...] = ()
    seed: int | None = None

    def __post_init__(self):
        for name in WHOLE:
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in ("temperature", "top_p", "min_p", *PENALTIES):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        object.__setattr__(self, "suppress_tokens", ids_of(self.suppress_tokens))
        check_cuts(self)
        check_penalties(self)
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"The seed must be 0 or more, not {self.seed}.")

    @property
    def penalizes(self) -> bool:
        """Whether any token is penalized or forbidden."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.no_repeat_ngram > 0
            or len(self.suppress_tokens) > 0
        )


def whole(name: str, value: object) -> int | None:
    """A setting that counts something, as an int: 20.0 is 20, and None stays None.

    raises: ValueError for what is no whole number

    >>> whole("top_k", 20.0), whole("seed", None)
    (20, None)
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    real = number(name, value)
    if real is None:
        return None
    if not real.is_integer():
        raise ValueError(f"{name} must be a whole number, not {real}.")
    return int(real)


def number(name: str, value: object) -> float | None:
    """A setting as a float; None stays None.

    raises: ValueError for what is no number: "50", True

    >>> number("temperature", 1), number("top_p", None)
    (1.0, None)
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, not {short(value)}.")
    try:
        return float(value)
    except OverflowError:  # an int of hundreds of digits, which no setting may be
        return math.inf


def ids_of(tokens: Iterable[int]) -> tuple[int, ...]:
    """Token ids as a tuple of int.

    raises: ValueError for what is no list of them

    >>> ids_of([3, 5])
    (3, 5)
    """
    try:
        ids = None if isinstance(tokens, (str, bytes)) else tuple(tokens)
    except TypeError:
        ids = None
    if ids is None or any(not is_id(id) for id in ids):
        raise ValueError(f"suppress_tokens must be a list of token ids, not {short(tokens)}.")
    return tuple(int(id) for id in ids)


def is_id(value: object) -> bool:
    """Whether a value could be the id of a token.

    >>> [is_id(value) for value in (3, True, -1, 3.0)]
    [True, False, False, False]
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 0


def check_cuts(sampling: Sampling) -> None:
    """Raise a ValueError for a temperature, top_k, top_p or min_p that leaves no distribution.

    >>> Sampling(top_p=1.5)
    Traceback (most recent call last):
        ...
    ValueError: top-p is a share of probability above 0 and up to 1, not 1.5.
    """
    temperature, top_k, top_p, min_p = (
        getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")
    )
    if temperature is None or not 0 <= temperature < math.inf:
        raise ValueError(
            f"The temperature must be 0 (always the likeliest token) or more, not {temperature}."
        )
    if top_k is not None and top_k < 0:
        raise ValueError(
            "top-k keeps the k likeliest tokens, so k must be 1 or more (or 0 for all), not "
            f"{top_k}."
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top-p is a share of probability above 0 and up to 1, not {top_p}.")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(
            f"min-p is a share of the likeliest token's probability, 0 to 1, not {min_p}."
        )


def check_penalties(sampling: Sampling) -> None:
    """Raise a ValueError for penalties that are none.

    >>> Sampling(repetition_penalty=0)
    Traceback (most recent call last):
        ...
    ValueError: The repetition penalty must be above 0 (1 changes nothing), not 0.0.
    """
    penalty, rows = sampling.repetition_penalty, sampling.no_repeat_ngram
    if penalty is None or not 0 < penalty < math.inf:
        raise ValueError(
            f"The repetition penalty must be above 0 (1 changes nothing), not {penalty}."
        )
    for name in PENALTIES[1:]:
        value = getattr(sampling, name)
        if value is None or not math.isfinite(value):
            raise ValueError(
                f"The {name.replace('_', ' ')} is subtracted from logits, so it must be a finite "
                f"number (0 changes nothing), not {value}."
            )
    if rows is None or rows < 0:
        raise ValueError(f"no-repeat-ngram is a number of tokens (0 for no such rule), not {rows}.")
