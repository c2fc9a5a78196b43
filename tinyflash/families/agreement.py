"""What a config.json may say in two places, and which one counts.

The rule is that of transformers 5 where both places can be meant, and one sentence where they
cannot. It holds for everything that a file can say twice:

    a key and its alias (n_embd, hidden_size)      either; both only if they are equal
    rope_scaling, rope_parameters, rope_theta      rope.py
    head_dim beside hidden_size and the heads      head_dim, in families where heads may be wider
    num_kv_heads beside multi_query                falcon.py
    layer_types beside max_window_layers           layer_types: qwen2.py
    tied embeddings beside a head in the weights   only if both are equal: weights.py
    architectures beside model_type                only if they name the same family
    dtype, torch_dtype                             neither: the weights' own file says it
"""

from __future__ import annotations

import re

from tinyflash.checks import short

# Other names under which transformers takes a key, by model type.
ALIASES = {
    "gpt2": {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    "distilbert": {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    },
    "falcon": {"n_embed": "hidden_size"},
}
CLASSES = {
    "DistilBert": "distilbert", "Falcon": "falcon", "GPT2": "gpt2", "Gemma": "gemma",
    "Llama": "llama", "Mistral": "mistral", "OPT": "opt", "Persimmon": "persimmon", "Phi": "phi",
    "Qwen2": "qwen2",
}  # fmt: skip
HEAD = re.compile("(For[A-Z][A-Za-z]*|LMHeadModel|DoubleHeadsModel|PreTrainedModel|Model)$")
# Keys whose null means something: no token, no window, as many as heads, or (Falcon's) false.
NULLABLE = {
    "bos_token_id", "eos_token_id", "sliding_window", "num_key_value_heads",
    "alibi", "new_decoder_architecture", "multi_query", "parallel_attn", "bias",
}  # fmt: skip


def one_name_each(hf: dict) -> dict:
    """The config.json with each key under the name that its family file reads.

    raises: ValueError if a key and its alias differ
    """
    aliases = ALIASES.get(hf["model_type"], {})
    settled = {key: value for key, value in hf.items() if key not in aliases}
    for alias, key in aliases.items():
        value = hf.get(alias)
        if value is None:
            continue
        if settled.setdefault(key, value) != value:
            raise ValueError(
                f"config.json contradicts itself: {alias} is {short(value)} and {key} is "
                f"{short(settled[key])}, and they are the same size; keep the right one."
            )
    return settled


def refuse_null(hf: dict, defaults: dict) -> None:
    """Raise a ValueError for a null where it says nothing; transformers refuses it, too."""
    for key, default in defaults.items():
        if key in hf and hf[key] is None and default is not None and key not in NULLABLE:
            raise ValueError(
                f"config.json sets {key} to null, which says nothing; leave the key out if "
                f"{default!r} is meant, or give the number or word that is."
            )


def refuse_other_family(hf: dict) -> None:
    """Raise a ValueError if `architectures` names a model of ours that `model_type` does not."""
    names = hf.get("architectures")
    if hf["model_type"] == "mobilellm" or not isinstance(names, list):
        return  # transformers has no class of that name
    for name in names:
        named = CLASSES.get(HEAD.sub("", name)) if isinstance(name, str) else None
        if named not in (None, hf["model_type"]):
            raise ValueError(
                f"config.json contradicts itself: its model_type is {hf['model_type']} and its "
                f"architectures say {short(name)}; keep the right one."
            )
