"""Phi 1, 1.5, 2: attention and feed-forward in parallel behind one norm, heads turned in part."""

from tinyflash.config import ModelConfig
from tinyflash.families import rope
from tinyflash.families.common import (
    activation_of,
    flag,
    head_width_of,
    token_ids,
    with_biases,
)
from tinyflash.families.rope import context_of, read_rope, rotary_width_of

NAME = "phi"
MODEL_TYPES = ("phi",)
PREFIX = "model."
DEFAULTS = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "qk_layernorm": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KEYS = DEFAULTS.keys() | rope.KEYS | {"head_dim"}


def read_config(hf):
    """ModelConfig of a Phi config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    G, K = hf["num_key_value_heads"], head_width_of(hf, D, H)
    positions = read_rope(hf, partial=True)
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["num_hidden_layers"],
        heads=H,
        kv_heads=H if G is None else G,
        head_width=K,
        ffn_width=hf["intermediate_size"],
        context=context_of(hf, positions),
        embed_width=D,
        activation=activation_of(hf, "hidden_act"),
        norm_eps=hf["layer_norm_eps"],
        parallel=True,
        shared_norm=True,
        qk_norm=flag(hf, "qk_layernorm"),
        positions="rotary",
        rope=positions,
        rotary_width=rotary_width_of(hf, K),
        tied=hf["tie_word_embeddings"],
        unembed_bias=True,
        bos_id=hf["bos_token_id"],
        eos_ids=token_ids(hf["eos_token_id"]),
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
