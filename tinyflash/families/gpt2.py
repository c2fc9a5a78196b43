"""GPT-2: learned positions, layer norm, tanh GELU; matrices stored (in, out), q, k, v fused."""

from tinyflash.config import ModelConfig
from tinyflash.families.common import activation_of, head_width_of, require, token_ids

NAME = "gpt2"
MODEL_TYPES = ("gpt2",)
PREFIX = "transformer."  # the published checkpoints leave it out
DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
KEYS = DEFAULTS.keys() | {
    "head_dim", "n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj",
    "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a GPT-2 config.json; raises ValueError for what we do not have."""
    D, H, F = hf["n_embd"], hf["n_head"], hf["n_inner"]
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
        head_width=head_width_of(hf, D, H),
        ffn_width=4 * D if F is None else F,
        context=hf["n_positions"],
        embed_width=D,
        activation=activation_of(hf, "activation_function"),
        norm_eps=hf["layer_norm_epsilon"],
        tied=hf["tie_word_embeddings"],
        bos_id=hf["bos_token_id"],
        eos_ids=token_ids(hf["eos_token_id"]),
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
