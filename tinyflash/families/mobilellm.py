"""MobileLLM (arXiv 2402.14905): a deep and thin Llama that shares its embedding and its layers.

Two keys of its own: `share_embedding` ties the logits to the embedding, whatever
`tie_word_embeddings` says, and `layer_sharing` computes every layer twice in a row (§2.3): L
stored layers become 2L computed ones, each with a KV cache of its own, since the second pass over
a layer has other keys. Some published configs say `model_type` llama, so that family has the keys.
"""

from dataclasses import replace

from tinyflash.families import llama

NAME = "mobilellm"
MODEL_TYPES = ("mobilellm",)
PREFIX = llama.PREFIX
KEYS = llama.KEYS


def read_config(hf):
    """ModelConfig of a MobileLLM config.json; raises ValueError for what we do not have."""
    return replace(llama.read_config(hf), family=NAME)


def tensor_names(config):
    """Our weight names -> MobileLLM's, which are Llama's."""
    return llama.tensor_names(config)
