"""One short file a family: which config.json keys and tensor names mean what.

A family is data. It offers `MODEL_TYPES`, the config.json keys it understands (`KEYS`),
`read_config(hf) -> ModelConfig` and `tensor_names(config)`: for each name of
`config.weight_shapes` where the checkpoint keeps it.
"""

from dataclasses import dataclass

import numpy as np

from tinyflash.families import (
    distilbert,
    falcon,
    gemma,
    gpt2,
    llama,
    mobilellm,
    opt,
    persimmon,
    phi,
    qwen2,
)

FAMILIES = {
    model_type: family
    for family in (
        opt, gpt2, llama, mobilellm, qwen2, gemma, phi, falcon, persimmon, distilbert
    )
    for model_type in family.MODEL_TYPES
}  # fmt: skip

# Other encoders: they see the words on both sides and fill in masked ones.
ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "electra", "ernie", "modernbert",
    "mpnet", "nomic_bert", "roberta", "xlm-roberta",
}  # fmt: skip

# Keys that say nothing about the arithmetic of inference: training, bookkeeping, generation.
IGNORED = {
    "activation_dropout", "architectures", "attention_dropout", "attn_pdrop", "auto_map",
    "bad_words_ids", "dropout",
    "dtype", "embd_pdrop", "forced_bos_token_id", "forced_eos_token_id", "id2label",
    "init_std", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "layerdrop",
    "max_length", "model_type", "name_or_path", "pad_token_id", "prefix", "pretraining_tp",
    "problem_type", "resid_pdrop", "return_dict", "output_attentions", "output_hidden_states",
    "suppress_tokens", "task_specific_params", "torch_dtype", "torchscript",
    "transformers_version", "unk_token_id", "use_cache", "chunk_size_feed_forward",
    "begin_suppress_tokens", "cross_attention_hidden_size", "decoder_start_token_id",
    "finetuning_task", "pruned_heads", "remove_invalid_values", "sep_token_id",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "typical_p", "use_bfloat16",
    "transformers.js_config", "unsloth_fixed", "unsloth_version", "gradient_checkpointing",
    "n_special", "output_past", "predict_special_tokens", "hidden_dropout",
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
            f"tinyflash has no model type {model_type!r}; it has {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def read_config(hf):
    """The ModelConfig that a Hugging Face config.json describes.

    hf     : the parsed file
    raises : ValueError for a model type we do not have, a missing key, a key that we do not
             know (it might change the arithmetic) or a known one whose value we cannot honor
    """
    family = family_of(hf)
    unknown = [
        key
        for key, value in hf.items()
        if key not in family.KEYS | IGNORED and not key.startswith("_") and value is not None
    ]
    if unknown:
        raise ValueError(
            f"config.json sets {', '.join(map(repr, unknown))}, which tinyflash does not know for "
            f"{hf['model_type']}; ignoring a switch could give wrong text, so remove it only if "
            "you know that it does not change the model's arithmetic."
        )
    try:
        return family.read_config(hf)
    except KeyError as missing:
        raise ValueError(
            f"config.json lacks {missing}, without which a {hf['model_type']} model has no shape."
        ) from None
    except TypeError:
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
