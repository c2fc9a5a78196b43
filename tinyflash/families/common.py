"""What several family files need when they read a config.json."""

from tinyflash.checks import short
from tinyflash.ops import ACTIVATIONS


def require(hf, key, allowed, why):
    """Refuse a switch whose value we cannot honor.

    allowed : the values that we have; a missing key or None passes
    raises  : ValueError, one sentence
    """
    value = hf.get(key)
    if value is not None and value not in allowed:
        raise ValueError(
            f"config.json sets {key} to {short(value)}, {why}; "
            f"tinyflash has {' and '.join(map(short, allowed))} here."
        )


def token_ids(value):
    """One id, a list of ids or None, as a tuple of ids."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def flag(hf, key):
    """A switch that is true or false; null is false, as in transformers where it is allowed."""
    require(hf, key, (True, False), "which is neither true nor false")
    return bool(hf[key])


def activation_of(hf, key):
    """The activation that config.json names under `key`; ValueError if we do not have it."""
    name = hf[key]
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"config.json sets {key} to {short(name)}, an activation that tinyflash does not "
            f"have; it has {', '.join(map(repr, ACTIVATIONS))}."
        )
    return name


def head_width_of(hf, width, heads):
    """K = D / H, for families whose heads share the model's width.

    raises: ValueError if they cannot, or if a head_dim in the file says otherwise
    """
    if heads < 1 or width % heads:
        raise ValueError(
            f"A width of {short(width)} does not divide into {short(heads)} heads; choose another "
            "number."
        )
    of = f"of {short(heads)} heads in a width of {short(width)}"
    require(hf, "head_dim", (width // heads,), of)
    return width // heads


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
