"""Phi 1, 1.5, 2: attention and feed-forward in parallel behind one norm, heads turned in part."""

from tinyflash.config import ModelConfig
from tinyflash.families.common import (
    activation_of,
    flag,
    head_width_of,
    rotary_width_of,
    token_ids,
    with_biases,
)
from tinyflash.families.llama import read_rope

NAME = "phi"
MODEL_TYPES = ("phi",)
PREFIX = "model."
KEYS = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "layer_norm_eps",
    "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "qk_layernorm", "bos_token_id", "eos_token_id",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a Phi config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    K = head_width_of(D, H)
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["num_hidden_layers"],
        heads=H,
        kv_heads=hf.get("num_key_value_heads") or H,
        head_width=K,
        ffn_width=hf["intermediate_size"],
        context=hf.get("max_position_embeddings", 2048),
        embed_width=D,
        activation=activation_of(hf, "hidden_act", "gelu_new"),
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        parallel=True,
        shared_norm=True,
        qk_norm=flag(hf, "qk_layernorm", False),
        positions="rotary",
        rope=read_rope(hf),
        rotary_width=rotary_width_of(hf, K),
        tied=hf.get("tie_word_embeddings", False),
        unembed_bias=True,
        bos_id=hf.get("bos_token_id", 1),
        eos_ids=token_ids(hf.get("eos_token_id", 2)),
    )


def tensor_names(config):
    """Our weight names -> Phi's."""
    layer = "model.layers.{i}."
    parts = {
        "final_norm": "model.final_layernorm",
        "unembed": "lm_head",
        "layers.{i}.attn.norm": layer + "input_layernorm",
        "layers.{i}.attn.q": layer + "self_attn.q_proj",
        "layers.{i}.attn.k": layer + "self_attn.k_proj",
        "layers.{i}.attn.v": layer + "self_attn.v_proj",
        "layers.{i}.attn.norm_q": layer + "self_attn.q_layernorm",
        "layers.{i}.attn.norm_k": layer + "self_attn.k_layernorm",
        "layers.{i}.attn.o": layer + "self_attn.dense",
        "layers.{i}.ffn.up": layer + "mlp.fc1",
        "layers.{i}.ffn.down": layer + "mlp.fc2",
    }
    return {"embed.weight": "model.embed_tokens.weight"} | with_biases(parts)
