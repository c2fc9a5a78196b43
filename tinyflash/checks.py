"""What a ModelConfig and its Rope may not hold, so that no wrong number gets as far as a matrix.

Both call these checks whenever one is made, from a config.json or by hand.
"""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Real

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
    """Whether this is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Whether this is a finite number of at least 0."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < math.inf


def is_token(value: object) -> bool:
    """Whether this can be the id of a token, in whatever vocabulary."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def check_rope(rope) -> None:
    """Raise a ValueError if a Rope has a number that turns nothing, or that contradicts another."""
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


def check_config(config) -> None:
    """Raise a ValueError if the sizes and switches of a ModelConfig make no model."""
    check_sizes(config)
    check_switches(config)
    check_heads(config)


def check_sizes(config) -> None:
    """Raise a ValueError if a size is no count, or larger than any model's."""
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


def check_switches(config) -> None:
    """Raise a ValueError if a switch is neither true nor false, or another setting is no number."""
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


def check_heads(config) -> None:
    """Raise a ValueError if heads cannot share keys evenly, or be turned in pairs."""
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
    """A value from a file that nobody vouches for, fit for a sentence."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no int of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
