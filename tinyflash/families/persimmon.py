"""Persimmon 8B: squared ReLU, q, k, v fused head by head and normed, heads turned in part."""

from tinyflash.config import ModelConfig
from tinyflash.families.common import (
    activation_of,
    flag,
    fused_head_by_head,
    head_width_of,
    require,
    rotary_width_of,
    token_ids,
    with_biases,
)
from tinyflash.families.llama import read_rope

NAME = "persimmon"
MODEL_TYPES = ("persimmon",)
PREFIX = "model."
KEYS = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "layer_norm_eps",
    "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "qk_layernorm", "bos_token_id", "eos_token_id",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a Persimmon config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    K = head_width_of(D, H)
    require(hf, "num_key_value_heads", (H,), "heads that share keys")
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["num_hidden_layers"],
        heads=H,
        kv_heads=H,
        head_width=K,
        ffn_width=hf["intermediate_size"],
        context=hf.get("max_position_embeddings", 16384),
        embed_width=D,
        activation=activation_of(hf, "hidden_act", "relu2"),
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        qk_norm=flag(hf, "qk_layernorm", True),
        positions="rotary",
        rope=read_rope(hf),
        rotary_width=rotary_width_of(hf, K),
        tied=hf.get("tie_word_embeddings", False),
        bos_id=hf.get("bos_token_id", 1),
        eos_ids=token_ids(hf.get("eos_token_id", 2)),
    )


def tensor_names(config):
    """Our weight names -> Persimmon's."""
    layer = "model.layers.{i}."
    names = {
        "embed.weight": "model.embed_tokens.weight",
        "unembed.weight": "lm_head.weight",
    }
    parts = {
        "final_norm": "model.final_layernorm",
        "layers.{i}.attn.norm": layer + "input_layernorm",
        **fused_head_by_head(config, layer + "self_attn.query_key_value"),
        "layers.{i}.attn.norm_q": layer + "self_attn.q_layernorm",
        "layers.{i}.attn.norm_k": layer + "self_attn.k_layernorm",
        "layers.{i}.attn.o": layer + "self_attn.dense",
        "layers.{i}.ffn.norm": layer + "post_attention_layernorm",
        "layers.{i}.ffn.up": layer + "mlp.dense_h_to_4h",
        "layers.{i}.ffn.down": layer + "mlp.dense_4h_to_h",
    }
    return names | with_biases(parts)
