"""One short file a family: which config.json keys and tensor names mean what.

A family is data. It offers `MODEL_TYPES`, the config.json keys it understands (`KEYS`) and what
transformers takes where one is missing (`DEFAULTS`), `read_config(hf) -> ModelConfig` of a file
filled up with these, and `tensor_names(config)`: for each name of `config.weight_shapes` where the
checkpoint keeps it.
"""

from dataclasses import dataclass

import numpy as np

from tinyflash.checks import short
from tinyflash.families import (
    distilbert,
    falcon,
    gemma,
    gpt2,
    llama,
    mistral,
    mobilellm,
    opt,
    persimmon,
    phi,
    qwen2,
)
from tinyflash.families.agreement import one_name_each, refuse_null, refuse_other_family
from tinyflash.families.ignored import IGNORED

FAMILIES = {
    model_type: family
    for family in (
        opt, gpt2, llama, mistral, mobilellm, qwen2, gemma, phi, falcon, persimmon, distilbert
    )
    for model_type in family.MODEL_TYPES
}  # fmt: skip

# Other encoders: they see the words on both sides and fill in masked ones.
ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "electra", "ernie", "modernbert",
    "mpnet", "nomic_bert", "roberta", "xlm-roberta",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where a checkpoint keeps one weight.

    name       : the tensor's name in the checkpoint
    transposed : stored (in, out), as GPT-2's Conv1D does
    first, last: rows [first, last) of the (out, in) matrix, of a fused one; last None for all
    every      : where a fused matrix mixes them head by head: rows [first, last) of each `every`
                 rows; None if there is one such range
    """

    name: str
    transposed: bool = False
    first: int = 0
    last: int | None = None
    every: int | None = None

    def count(self, stored):
        """How many of the `stored` rows they are. (They may be 2^33 in a header that lies.)"""
        if self.every in (None, stored):
            return len(range(stored)[self.first : self.last])
        return stored // self.every * (self.last - self.first)

    def rows(self, stored):
        """Which of the `stored` rows of the (out, in) matrix they are: an index into its rows.

        returns: slice, or int (n,) where they do not lie together, so that taking them copies
        """
        if self.every in (None, stored):
            return slice(self.first, self.last)
        blocks = np.arange(stored // self.every, dtype=np.int64)[:, None] * self.every
        return (blocks + np.arange(self.first, self.last, dtype=np.int64)).reshape(-1)


def family_of(hf):
    """The family module for a config.json.

    raises: ValueError that lists what we have, if the model type is another or an encoder
    """
    model_type = hf.get("model_type")
    if str(model_type) in ENCODERS:
        raise ValueError(
            f"A {model_type} model is an encoder: it fills in masked words and cannot continue a "
            f"text; tinyflash has {', '.join(sorted(FAMILIES))}."
        )
    if str(model_type) not in FAMILIES:
        raise ValueError(
            f"tinyflash has no model type {short(model_type)}; it has "
            f"{', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def read_config(hf):
    """The ModelConfig that a Hugging Face config.json describes.

    hf     : the parsed file
    raises : ValueError for a model type we do not have, a key that we do not know (it might
             change the arithmetic), a known one whose value we cannot honor, or two that disagree
    """
    family = family_of(hf)
    hf = one_name_each(hf)
    known = family.KEYS | IGNORED
    unknown = [
        key
        for key, value in hf.items()
        if key not in known and not key.startswith("_") and value is not None
    ]
    if unknown:
        raise ValueError(
            f"config.json sets {', '.join(map(short, unknown[:5]))}, which tinyflash does not know "
            f"for {hf['model_type']}; ignoring a switch could give wrong text, so remove it only "
            "if you know that it does not change the model's arithmetic."
        )
    refuse_other_family(hf)
    refuse_null(hf, family.DEFAULTS)
    try:
        return family.read_config(family.DEFAULTS | hf)
    except (TypeError, OverflowError):
        raise ValueError(
            f"config.json gives a {hf['model_type']} model a size or setting of the wrong kind, "
            "such as text or null where a number belongs; get another copy of the file."
        ) from None


def tensor_names(config):
    """Where the checkpoint of `config`'s family keeps each weight.

    returns: dict our name -> Stored, for at least all names of `weight_shapes(config)`
    """
    module = next(family for family in FAMILIES.values() if family.NAME == config.family)
    places = {}
    for ours, theirs in module.tensor_names(config).items():
        for i in range(config.weight_layers) if "{i}" in ours else (None,):
            stored = theirs if isinstance(theirs, tuple) else (theirs,)
            places[ours.format(i=i)] = Stored(stored[0].format(i=i), *stored[1:])
    return places


def family_prefix(config):
    """What stands before the names of the base model, and is missing in some checkpoints."""
    return next(f for f in FAMILIES.values() if f.NAME == config.family).PREFIX
