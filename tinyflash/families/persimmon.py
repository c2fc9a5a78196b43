"""Persimmon 8B: squared ReLU, q, k, v fused head by head and normed, heads turned in part."""

from tinyflash.config import ModelConfig
from tinyflash.families import rope
from tinyflash.families.common import (
    activation_of,
    flag,
    fused_head_by_head,
    head_width_of,
    require,
    token_ids,
    with_biases,
)
from tinyflash.families.rope import context_of, read_rope, rotary_width_of

NAME = "persimmon"
MODEL_TYPES = ("persimmon",)
PREFIX = "model."
DEFAULTS = {
    "vocab_size": 262144,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "hidden_act": "relu2",
    "max_position_embeddings": 16384,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "qk_layernorm": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KEYS = DEFAULTS.keys() | rope.KEYS | {"head_dim", "num_key_value_heads"}


def read_config(hf):
    """ModelConfig of a Persimmon config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    K, positions = head_width_of(hf, D, H), read_rope(hf, partial=True)
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
        context=context_of(hf, positions),
        embed_width=D,
        activation=activation_of(hf, "hidden_act"),
        norm_eps=hf["layer_norm_eps"],
        qk_norm=flag(hf, "qk_layernorm"),
        positions="rotary",
        rope=positions,
        rotary_width=rotary_width_of(hf, K),
        tied=hf["tie_word_embeddings"],
        bos_id=hf["bos_token_id"],
        eos_ids=token_ids(hf["eos_token_id"]),
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
