"""What several family files need when they read a config.json."""

from tinyflash.config import is_number
from tinyflash.ops import ACTIVATIONS


def require(hf, key, allowed, why):
    """Refuse a switch whose value we cannot honor.

    allowed : the values that we have; a missing key or None passes
    raises  : ValueError, one sentence
    """
    value = hf.get(key)
    if value is not None and value not in allowed:
        raise ValueError(
            f"config.json sets {key} to {value!r}, {why}; "
            f"tinyflash has {' and '.join(map(repr, allowed))} here."
        )


def token_ids(value):
    """One id, a list of ids or None, as a tuple of ids."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def flag(hf, key, default):
    """A switch that is true or false; `default` where it is missing or null."""
    require(hf, key, (True, False), "which is neither true nor false")
    value = hf.get(key)
    return default if value is None else bool(value)


def activation_of(hf, key, default):
    """The activation that config.json names under `key`; ValueError if we do not have it."""
    require(hf, key, tuple(ACTIVATIONS), "an activation that we do not have")
    return hf.get(key) or default


def head_width_of(width, heads):
    """K = D / H, for families whose heads share the model's width; ValueError if they cannot."""
    if heads < 1 or width % heads:
        raise ValueError(
            f"A width of {width} does not divide into {heads} heads; choose another number."
        )
    return width // heads


def rotary_width_of(hf, head_width):
    """How many numbers of a head are turned: the share `partial_rotary_factor`, by default half."""
    share = (hf.get("rope_parameters") or hf.get("rope_scaling") or {}).get("partial_rotary_factor")
    if share is None:
        share = hf.get("partial_rotary_factor")
    if share is None:
        share = 0.5
    if not is_number(share) or not 0 < share <= 1:
        raise ValueError(
            f"config.json sets partial_rotary_factor to {share!r}; it is a share of each head, "
            "above 0 and at most 1."
        )
    return int(head_width * share)


def with_biases(parts):
    """Our weight names -> theirs, for parts that have a weight and, in some models, a bias.

    parts : dict our part -> their part, or (their part, first, last, every), see `families.Stored`
    """
    names = {}
    for ours, theirs in parts.items():
        stored, *rows = theirs if isinstance(theirs, tuple) else (theirs,)
        for kind in ("weight", "bias"):
            name = f"{stored}.{kind}"
            names[f"{ours}.{kind}"] = (name, False, *rows) if rows else name
    return names


def fused_head_by_head(config, stored):
    """Where q, k and v lie in a matrix that puts next to each key head what belongs to it.

    For each of G key heads it has (H/G + 2)·K rows: H/G query heads, the key head, its value head.
    With G = H these are triples (Persimmon, Falcon RW), with G = 1 all queries come first (7B).

    returns: dict part of a layer -> (stored, first, last, every)
    """
    H, G, K = config.heads, config.kv_heads, config.head_width
    queries = H // G * K
    every = queries + 2 * K
    return {
        "layers.{i}.attn.q": (stored, 0, queries, every),
        "layers.{i}.attn.k": (stored, queries, queries + K, every),
        "layers.{i}.attn.v": (stored, queries + K, every, every),
    }
