"""Mistral 7B (arXiv 2310.06825): a Llama whose tokens see a window of those before them."""

from dataclasses import replace

from tinyflash.families import llama
from tinyflash.families.common import require

NAME = llama.NAME  # its weights have Llama's names
MODEL_TYPES = ("mistral",)
PREFIX = llama.PREFIX
DEFAULTS = llama.DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,  # where the key is missing; null is none
}
KEYS = llama.KEYS


def read_config(hf):
    """ModelConfig of a Mistral config.json; raises ValueError for what we do not have."""
    for key in ("attention_bias", "mlp_bias"):
        require(hf, key, (False,), "which no Mistral has")
    return replace(llama.read_config(hf), window=hf["sliding_window"])


def tensor_names(config):
    """Our weight names -> Mistral's, which are Llama's."""
    return llama.tensor_names(config)
