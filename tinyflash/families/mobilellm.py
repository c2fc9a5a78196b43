"""MobileLLM (arXiv 2402.14905): a deep and thin Llama that shares its embedding and its layers.

Two keys of its own: `share_embedding` ties the logits to the embedding, whatever
`tie_word_embeddings` says, and `layer_sharing` computes every layer twice in a row (§2.3): L
stored layers become 2L computed ones, each with a KV cache of its own, since the second pass over
a layer has other keys. (transformers has no such model type; what a file leaves out is as Llama's.)
"""

from dataclasses import replace

from tinyflash.families import llama
from tinyflash.families.common import flag

NAME = "mobilellm"
MODEL_TYPES = ("mobilellm",)
PREFIX = llama.PREFIX
DEFAULTS = llama.DEFAULTS | {"share_embedding": False, "layer_sharing": False}
KEYS = llama.KEYS


def read_config(hf):
    """ModelConfig of a MobileLLM config.json; raises ValueError for what we do not have."""
    config = replace(llama.read_config(hf | {"layer_sharing": False}), family=NAME)
    if flag(hf, "layer_sharing"):
        return replace(config, layers=2 * config.layers, layer_repeats=2)
    return config


def tensor_names(config):
    """Our weight names -> MobileLLM's, which are Llama's."""
    return llama.tensor_names(config)
