"""Gemma 1 (arXiv 2403.08295): a Llama with scaled embeddings, gains of 1 + w, and tanh GELU."""

import math
from dataclasses import replace

import numpy as np

from tinyflash.families import llama, rope
from tinyflash.families.common import require

TANH_GELU = "gelu_pytorch_tanh"
NAME = "gemma"
MODEL_TYPES = ("gemma",)
PREFIX = llama.PREFIX
DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": TANH_GELU,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
KEYS = DEFAULTS.keys() | rope.KEYS | {"hidden_activation", "use_bidirectional_attention"}


def read_config(hf):
    """ModelConfig of a Gemma config.json; raises ValueError for what we do not have."""
    require(hf, "use_bidirectional_attention", (False,), "attention to later tokens")
    require(hf, "mlp_bias", (False,), "which no Gemma has")
    # The official files say "gelu" and mean its tanh approximation.
    meant = TANH_GELU if hf["hidden_act"] == "gelu" else hf["hidden_act"]
    require(hf, "hidden_activation", (meant,), f"and hidden_act to {meant!r}")
    config = llama.read_config(hf | {"hidden_act": meant})
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
