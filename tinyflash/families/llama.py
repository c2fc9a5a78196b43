"""Llama 2 and 3, Vicuna, SmolLM2: rotary positions, RMS norm, gated SiLU, no biases."""

from tinyflash.checks import short
from tinyflash.config import ModelConfig
from tinyflash.families import rope
from tinyflash.families.common import activation_of, flag, require, token_ids, with_biases
from tinyflash.families.rope import context_of, read_rope

NAME = "llama"
MODEL_TYPES = ("llama",)
PREFIX = "model."
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# transformers' Llama has no window, and two keys of MobileLLM's are found in files of this type
KEYS = DEFAULTS.keys() | rope.KEYS | {
    "sliding_window", "rope_interleaved", "is_llama_config", "max_sequence_length",
    "share_embedding", "layer_sharing",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a Llama config.json; raises ValueError for what we do not have."""
    D, H, G = hf["hidden_size"], hf["num_attention_heads"], hf["num_key_value_heads"]
    require(hf, "rope_interleaved", (False,), "rotary pairs of neighbors")
    require(
        hf, "layer_sharing", (False,),
        f"which {hf['model_type']} models do not have: say model_type mobilellm if this is one",
    )  # fmt: skip
    K = hf["head_dim"]
    if K is None:
        if H < 1 or D % H:
            raise ValueError(
                f"A width of {short(D)} does not divide into {short(H)} heads; give a head_dim."
            )
        K = D // H
    positions = read_rope(hf)
    shared = "share_embedding" in hf and flag(hf, "share_embedding")
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
        gated=True,
        norm="rms",
        norm_eps=hf["rms_norm_eps"],
        positions="rotary",
        rope=positions,
        qkv_bias=hf["attention_bias"],
        out_bias=hf["attention_bias"],
        ffn_bias=hf["mlp_bias"],
        # a file that holds a head of its own beside share_embedding is refused: see weights.py
        tied=shared or hf["tie_word_embeddings"],
        bos_id=hf["bos_token_id"],
        eos_ids=token_ids(hf["eos_token_id"]),
    )


def tensor_names(config):
    """Our weight names -> Llama's."""
    layer = "model.layers.{i}."
    names = {
        "embed.weight": "model.embed_tokens.weight",
        "final_norm.weight": "model.norm.weight",
        "unembed.weight": "lm_head.weight",
        "layers.{i}.attn.norm.weight": layer + "input_layernorm.weight",
        "layers.{i}.ffn.norm.weight": layer + "post_attention_layernorm.weight",
    }
    parts = {
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.gate": "mlp.gate_proj",
        "ffn.down": "mlp.down_proj",
    }
    return names | with_biases({f"layers.{{i}}.{o}": layer + theirs for o, theirs in parts.items()})
