"""The rotary settings of a config.json, which two generations of files spell in two places.

Files up to transformers 4 say `rope_theta`, `rope_scaling` and `partial_rotary_factor`; later ones
put all of it into `rope_parameters`. A file that was edited has both. As in transformers 5,
`rope_scaling` then counts; but where that would drop a number that `rope_parameters` or the top of
the file gives differently, the file contradicts itself and is refused.
"""

from __future__ import annotations

from tinyflash.checks import is_count, is_number, short
from tinyflash.config import Rope

KEYS = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
THETA = 10000.0  # transformers' default for each of our families
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
READ = {"default": (), "linear": ("factor",), "llama3": LLAMA3}
EVERYWHERE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
# What changes nothing where it is not read: notes on how a model came about, and factors of one.
NOTES = {"original_max_position_embeddings", "finetuned", "mrope_section"}
NEUTRAL = {"factor": 1, "attention_factor": 1}


def read_rope(hf: dict, partial: bool = False) -> Rope:
    """The Rope of a config.json.

    partial : whether the family's heads may be turned in part; see `rotary_width_of`
    raises  : ValueError if two places say different things, for a kind of scaling that we do not
              have, or for a setting that this kind would not read
    """
    settings = rope_settings(hf)
    share = settings["partial_rotary_factor"]
    if not partial and share not in (None, 1):
        raise ValueError(
            f"config.json sets partial_rotary_factor to {short(share)}, and a {hf['model_type']} "
            "model turns whole heads."
        )
    theta, kind = settings["rope_theta"], settings["rope_type"]
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, scaling="linear", factor=settings["factor"])
    return Rope(
        theta=theta,
        scaling="llama3",
        factor=settings["factor"],
        low=settings["low_freq_factor"],
        high=settings["high_freq_factor"],
        original_context=settings["original_max_position_embeddings"],
    )


def rope_settings(hf: dict) -> dict:
    """What the file says of rotary positions, from wherever it says it, as one dictionary.

    returns: rope_type, rope_theta, partial_rotary_factor (or None) and what the type reads
    raises : ValueError, see `read_rope`
    """
    old, new = settings_under(hf, "rope_scaling"), settings_under(hf, "rope_parameters")
    settings = {"rope_type": "default", **(old or new)}
    for key in ("rope_theta", "partial_rotary_factor"):
        at_top = hf.get(key)
        inside = settings[key] = at_top if settings.get(key) is None else settings[key]
        if at_top is not None and at_top != inside:
            place = "rope_scaling" if old else "rope_parameters"
            raise ValueError(contradiction(key, at_top, f"{key} in {place}", inside))
    if settings["rope_theta"] is None:
        settings["rope_theta"] = THETA
    kind = settings["rope_type"]
    if not isinstance(kind, str) or kind not in READ:
        raise ValueError(
            f"config.json asks for rope scaling {short(kind)}; tinyflash has 'default', 'linear' "
            "and 'llama3'."
        )
    if kind == "llama3":
        settings.setdefault(LLAMA3[-1], hf.get("max_position_embeddings"))
    for key, value in (new if old else {}).items():
        overruled = key == "rope_type" and value == "default"  # how rope_scaling came to be added
        if value is not None and not overruled and settings.get(key) != value:
            by_old = "what rope_scaling, which overrules it, brings"
            raise ValueError(
                contradiction(f"{key} in rope_parameters", value, by_old, settings.get(key))
            )
    refuse_unread(kind, settings)
    return settings


def settings_under(hf: dict, key: str) -> dict:
    """The dictionary under a key; `type`, as old files have it, is `rope_type`.

    raises: ValueError if it is no dictionary, has one for each type of layer, or two types
    """
    value = hf.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"config.json sets {key} to {short(value)}, which is no dictionary.")
    settings = dict(value)
    nested = [name for name, inside in settings.items() if isinstance(inside, dict)]
    if nested:
        raise ValueError(
            f"config.json gives {short(nested[0])} rotary positions of their own in {key}, and in "
            f"tinyflash all layers of a {hf['model_type']} model have the same."
        )
    kind = settings.pop("type", None)
    if kind is not None and settings.setdefault("rope_type", kind) != kind:
        raise ValueError(
            contradiction(f"rope_type in {key}", settings["rope_type"], f"type in {key}", kind)
        )
    return settings


def refuse_unread(kind: str, settings: dict) -> None:
    """Raise a ValueError if a setting is missing that `kind` needs, or is there that it ignores."""
    for key in READ[kind]:
        if settings.get(key) is None:
            raise ValueError(f"config.json asks for rope scaling {kind!r} and lacks its {key!r}.")
    for key, value in settings.items():
        neutral = key in NOTES or (key in NEUTRAL and value == NEUTRAL[key])
        read = key in EVERYWHERE or key in READ[kind]
        if value is not None and not read and not neutral:
            raise ValueError(
                f"config.json sets {short(key)} to {short(value)} for rotary positions of type "
                f"{kind!r}, which has no such setting; mend the type, or remove the setting."
            )


def contradiction(place: str, value: object, other_place: str, other_value: object) -> str:
    """The sentence for two places of a config.json that differ."""
    return (
        f"config.json contradicts itself: {place} is {short(value)}, and {other_place} is "
        f"{short(other_value)}; keep the right one."
    )


def rotary_width_of(hf: dict, head_width: int, default: float = 0.5) -> int:
    """How many numbers of a head are turned: the share `partial_rotary_factor`, by default half.

    raises: ValueError if it is no share
    """
    share = rope_settings(hf)["partial_rotary_factor"]
    if share is None:
        share = default
    if not is_number(share) or not 0 < share <= 1:
        raise ValueError(
            f"config.json sets partial_rotary_factor to {short(share)}; it is a share of each "
            "head, above 0 and at most 1."
        )
    return int(head_width * share)


def context_of(hf: dict, rope: Rope) -> int:
    """Most tokens of one sequence: max_position_embeddings, linear scaling times as many.

    Linearly scaled positions are those of a text so many times shorter. (Llama 3's key already
    says the context after its scaling.)
    """
    context = hf["max_position_embeddings"]
    if rope.scaling == "linear" and rope.factor > 1 and is_count(context):
        return int(context * rope.factor)
    return context
