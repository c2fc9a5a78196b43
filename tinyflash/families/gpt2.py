"""GPT-2: learned positions, layer norm, tanh GELU; matrices stored (in, out), q, k, v fused."""

from tinyflash.config import ModelConfig
from tinyflash.families.common import activation_of, head_width_of, require, token_ids

NAME = "gpt2"
MODEL_TYPES = ("gpt2",)
PREFIX = "transformer."  # the published checkpoints leave it out
KEYS = {
    "vocab_size", "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "n_ctx",
    "activation_function", "layer_norm_epsilon", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "summary_type", "summary_use_proj",
    "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a GPT-2 config.json; raises ValueError for what we do not have."""
    D, H = hf["n_embd"], hf["n_head"]
    require(hf, "scale_attn_weights", (True,), "attention without its scale")
    require(hf, "scale_attn_by_inverse_layer_idx", (False,), "a scale of its own for every layer")
    require(hf, "add_cross_attention", (False,), "attention to an encoder")
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["n_layer"],
        heads=H,
        kv_heads=H,
        head_width=head_width_of(D, H),
        ffn_width=hf.get("n_inner") or 4 * D,
        context=hf.get("n_positions", 1024),
        embed_width=D,
        activation=activation_of(hf, "activation_function", "gelu_new"),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        tied=hf.get("tie_word_embeddings", True),
        bos_id=hf.get("bos_token_id"),
        eos_ids=token_ids(hf.get("eos_token_id")),
    )


def tensor_names(config):
    """Our weight names -> GPT-2's; each as (name, transposed, first row, last row)."""
    D = config.width
    layer = "transformer.h.{i}."
    names = {
        "embed.weight": "transformer.wte.weight",
        "positions.weight": "transformer.wpe.weight",
        "unembed.weight": "lm_head.weight",
        "final_norm.weight": "transformer.ln_f.weight",
        "final_norm.bias": "transformer.ln_f.bias",
    }
    for ours, theirs in {"attn.norm": "ln_1", "ffn.norm": "ln_2"}.items():
        for kind in ("weight", "bias"):
            names[f"layers.{{i}}.{ours}.{kind}"] = f"{layer}{theirs}.{kind}"
    fused = {
        "attn.q": ("attn.c_attn", 0, D),
        "attn.k": ("attn.c_attn", D, 2 * D),
        "attn.v": ("attn.c_attn", 2 * D, 3 * D),
        "attn.o": ("attn.c_proj", 0, None),
        "ffn.up": ("mlp.c_fc", 0, None),
        "ffn.down": ("mlp.c_proj", 0, None),
    }
    for ours, (theirs, first, last) in fused.items():
        names[f"layers.{{i}}.{ours}.weight"] = (f"{layer}{theirs}.weight", True, first, last)
        names[f"layers.{{i}}.{ours}.bias"] = (f"{layer}{theirs}.bias", False, first, last)
    return names
