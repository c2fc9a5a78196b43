"""What a ModelConfig and its Rope may not hold, so that no wrong number gets as far as a matrix.

Both call these checks whenever one is made, from a config.json or by hand.
"""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Real
from typing import Any

MOST_LAYERS = 4096  # the deepest published models have some 130
MOST = 2**40  # of any other size; a matrix of so many rows fits no machine
SIZES = (
    "vocab_size",
    "width",
    "layers",
    "heads",
    "kv_heads",
    "head_width",
    "ffn_width",
    "context",
    "embed_width",
    "layer_repeats",
)


def is_count(value: object) -> bool:
    """Whether this is a whole number of at least 1.

    >>> [is_count(value) for value in (1, 0, 1.0, True)]
    [True, False, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Whether this is a finite number of at least 0.

    >>> [is_number(value) for value in (0, 0.5, -1, math.inf, "1")]
    [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < math.inf


def is_token(value: object) -> bool:
    """Whether this can be the id of a token, in whatever vocabulary.

    >>> [is_token(value) for value in (2, -1, "2", None)]
    [True, True, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def check_rope(rope: Any) -> None:
    """Raise a ValueError if a Rope has a number that turns nothing, or that contradicts another.

    >>> from tinyflash.config import Rope
    >>> Rope(theta=0)
    Traceback (most recent call last):
        ...
    ValueError: Rotary positions need a theta above 0, but the config says 0.
    """
    for name in ("theta", "factor", "low", "high", "original_context"):
        value = getattr(rope, name)
        if not is_number(value) or not 0 < value < 1e30:
            raise ValueError(
                f"Rotary positions need a {name} above 0, but the config says {short(value)}."
            )
    if rope.low >= rope.high:
        raise ValueError(
            f"Rope scaling blends between its low factor {rope.low} and its high factor "
            f"{rope.high}, so the high one must be larger."
        )


def check_config(config: Any) -> None:
    """Raise a ValueError if the sizes and switches of a ModelConfig make no model.

    >>> from types import SimpleNamespace
    >>> check_config(SimpleNamespace(vocab_size=0))
    Traceback (most recent call last):
        ...
    ValueError: vocab_size must be a whole number of at least 1, but the config says 0.
    """
    check_sizes(config)
    check_switches(config)
    check_heads(config)


def check_sizes(config: Any) -> None:
    """Raise a ValueError if a size is no count, or larger than any model's.

    >>> from types import SimpleNamespace
    >>> check_sizes(SimpleNamespace(vocab_size=2.5))
    Traceback (most recent call last):
        ...
    ValueError: vocab_size must be a whole number of at least 1, but the config says 2.5.
    """
    for size in SIZES:
        value = getattr(config, size)
        if not is_count(value):
            raise ValueError(
                f"{size} must be a whole number of at least 1, but the config says {short(value)}."
            )
        most = MOST_LAYERS if size in ("layers", "layer_repeats") else MOST
        if value > most:
            raise ValueError(
                f"{size} is {short(value)} in the config, and no model has more than {most:,}; "
                "get another copy of the file."
            )
    if config.window is not None and not (is_count(config.window) and config.window <= MOST):
        raise ValueError(
            f"A window is a number of tokens, at least 1, but the config says "
            f"{short(config.window)}."
        )
    if config.layers % config.layer_repeats:
        raise ValueError(
            f"{config.layers} layers are not {config.layer_repeats} times a whole number of layers."
        )


def check_switches(config: Any) -> None:
    """Raise a ValueError if a switch is neither true nor false, or another setting is no number.

    >>> from types import SimpleNamespace
    >>> check_switches(SimpleNamespace(norm_eps=-1))
    Traceback (most recent call last):
        ...
    ValueError: norm_eps must be a small number, but the config says -1.
    """
    if not is_number(config.norm_eps) or config.norm_eps >= 1e30:
        raise ValueError(
            f"norm_eps must be a small number, but the config says {short(config.norm_eps)}."
        )
    for switch in (field.name for field in fields(config) if field.type is bool):
        value = getattr(config, switch)
        if not isinstance(value, bool):
            raise ValueError(f"{switch} must be true or false, but the config says {short(value)}.")
    for token in (*config.eos_ids, *(() if config.bos_id is None else (config.bos_id,))):
        if not is_token(token):
            raise ValueError(f"Token ids are whole numbers, and the config says {short(token)}.")


def check_heads(config: Any) -> None:
    """Raise a ValueError if heads cannot share keys evenly, or be turned in pairs.

    >>> from types import SimpleNamespace
    >>> check_heads(SimpleNamespace(heads=6, kv_heads=4))
    Traceback (most recent call last):
        ...
    ValueError: 6 heads cannot share 4 key/value heads evenly; ...
    """
    if config.heads % config.kv_heads:
        raise ValueError(
            f"{config.heads} heads cannot share {config.kv_heads} key/value heads evenly; "
            "choose a number of kv heads that divides the heads."
        )
    pairs = config.turned % 2 == 0 and 0 < config.turned <= config.head_width
    if config.positions == "rotary" and not pairs:
        raise ValueError(
            f"Rotary positions turn pairs of numbers, so {config.turned} of a head width of "
            f"{config.head_width} does not work; choose an even number of them."
        )


def short(value: object) -> str:
    """A value from a file that nobody vouches for, fit for a sentence.

    >>> short("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no int of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
