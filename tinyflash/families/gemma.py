"""Gemma 1 (arXiv 2403.08295): a Llama with scaled embeddings, gains of 1 + w, and tanh GELU."""

import math
from dataclasses import replace

import numpy as np

from tinyflash.families import llama
from tinyflash.families.common import require

NAME = "gemma"
MODEL_TYPES = ("gemma",)
PREFIX = llama.PREFIX
KEYS = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act", "hidden_activation",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "attention_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "use_bidirectional_attention",
}  # fmt: skip
DEFAULTS = {
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def read_config(hf):
    """ModelConfig of a Gemma config.json; raises ValueError for what we do not have."""
    require(hf, "use_bidirectional_attention", (False,), "attention to later tokens")
    require(hf, "hidden_activation", ("gelu_pytorch_tanh",), "another activation")
    # The official files say "gelu" and mean its tanh approximation.
    meant = "gelu_pytorch_tanh" if hf.get("hidden_act") in (None, "gelu") else hf["hidden_act"]
    config = llama.read_config(DEFAULTS | hf | {"hidden_act": meant})
    return replace(
        config,
        family=NAME,
        norm_plus_one=True,
        # Rounded to float32 as transformers keeps it; where it runs in bfloat16 it rounds further.
        embed_scale=float(np.float32(math.sqrt(config.width))),
    )


def tensor_names(config):
    """Our weight names -> Gemma's, which are Llama's."""
    return llama.tensor_names(config)
