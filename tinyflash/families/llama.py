"""Llama 2 and 3, Vicuna, SmolLM2, Mistral: rotary positions, RMS norm, gated SiLU, no biases."""

from tinyflash.config import ModelConfig, Rope
from tinyflash.families.common import activation_of, flag, require, token_ids, with_biases

NAME = "llama"
MODEL_TYPES = ("llama", "mistral")
PREFIX = "model."
KEYS = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "sliding_window", "attention_bias", "mlp_bias", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "rope_interleaved", "is_llama_config", "max_sequence_length",
    "share_embedding", "layer_sharing",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a Llama or Mistral config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    require(hf, "rope_interleaved", (False,), "rotary pairs of neighbors")
    K = hf.get("head_dim")
    if K is None:
        if H < 1 or D % H:
            raise ValueError(f"A width of {D} does not divide into {H} heads; give a head_dim.")
        K = D // H
    shared = flag(hf, "layer_sharing", False)  # MobileLLM-LS: every layer is computed twice
    layers = hf["num_hidden_layers"]
    windowed = hf["model_type"] == "mistral"  # transformers' Llama ignores the key
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=2 * layers if shared else layers,
        heads=H,
        kv_heads=hf.get("num_key_value_heads") or H,
        head_width=K,
        ffn_width=hf["intermediate_size"],
        context=hf.get("max_position_embeddings", 2048),
        embed_width=D,
        activation=activation_of(hf, "hidden_act", "silu"),
        gated=True,
        norm="rms",
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        positions="rotary",
        rope=read_rope(hf),
        window=hf.get("sliding_window") if windowed else None,
        qkv_bias=hf.get("attention_bias", False),
        out_bias=hf.get("attention_bias", False),
        ffn_bias=hf.get("mlp_bias", False),
        tied=flag(hf, "share_embedding", False) or hf.get("tie_word_embeddings", False),
        layer_repeats=2 if shared else 1,
        bos_id=hf.get("bos_token_id", 1),
        eos_ids=token_ids(hf.get("eos_token_id", 2)),
    )


def read_rope(hf):
    """Rotary settings from `rope_parameters`, or from the older `rope_theta` and `rope_scaling`."""
    settings = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    theta = settings.get("rope_theta", hf.get("rope_theta", 10000.0))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, scaling="linear", factor=settings["factor"])
    if kind == "llama3":
        return Rope(
            theta=theta,
            scaling="llama3",
            factor=settings["factor"],
            low=settings["low_freq_factor"],
            high=settings["high_freq_factor"],
            original_context=settings["original_max_position_embeddings"],
        )
    raise ValueError(
        f"config.json asks for rope scaling {kind!r}; tinyflash has 'default', 'linear' and "
        "'llama3'."
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
