"""Falcon (arXiv 2311.16867): 7B and 40B compute attention and feed-forward in parallel.

7B and 11B put one norm before both; 40B and 180B (`new_decoder_architecture`) one before each,
and share keys among groups of heads. The RW models do neither and bias their scores by ALiBi.
"""

from tinyflash.config import ModelConfig
from tinyflash.families.common import (
    activation_of,
    flag,
    fused_head_by_head,
    head_width_of,
    require,
    token_ids,
    with_biases,
)
from tinyflash.families.llama import read_rope

NAME = "falcon"
MODEL_TYPES = ("falcon",)
PREFIX = "transformer."
KEYS = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_kv_heads",
    "num_ln_in_parallel_attn", "layer_norm_epsilon", "alibi", "new_decoder_architecture",
    "multi_query", "parallel_attn", "bias", "max_position_embeddings", "rope_theta",
    "rope_scaling", "rope_parameters", "ffn_hidden_size", "ff_factor", "activation",
    "apply_residual_connection_post_layernorm", "tie_word_embeddings", "bos_token_id",
    "eos_token_id",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a Falcon config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    require(hf, "apply_residual_connection_post_layernorm", (False,), "a residual behind a norm")
    F = hf.get("ffn_hidden_size") or 4 * D
    factor = hf.get("ff_factor")
    if factor is not None and factor * D != F:
        raise ValueError(
            f"config.json sets ff_factor to {factor!r}, and {F} neurons are not as many times the "
            f"width of {D}; the file contradicts itself, so get another copy."
        )
    grouped = flag(hf, "new_decoder_architecture", False)
    parallel = flag(hf, "parallel_attn", True)
    if grouped:
        require(hf, "parallel_attn", (True,), "with new_decoder_architecture")
        require(hf, "num_ln_in_parallel_attn", (1, 2), "another number of norms")
        G = hf.get("num_kv_heads") or H
    elif flag(hf, "multi_query", True):
        G = 1
    else:
        require(hf, "num_kv_heads", (H,), "shared keys without new_decoder_architecture")
        G = H
    if parallel and not grouped:
        require(hf, "num_ln_in_parallel_attn", (1,), "without new_decoder_architecture")
    bias, alibi = flag(hf, "bias", False), flag(hf, "alibi", False)
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["num_hidden_layers"],
        heads=H,
        kv_heads=G,
        head_width=head_width_of(D, H),
        ffn_width=F,
        context=hf.get("max_position_embeddings", 2048),
        embed_width=D,
        activation=activation_of(hf, "activation", "gelu"),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        parallel=parallel,
        shared_norm=parallel and not (grouped and hf.get("num_ln_in_parallel_attn") != 1),
        positions="alibi" if alibi else "rotary",
        rope=read_rope(hf),
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
        tied=hf.get("tie_word_embeddings", True),
        bos_id=hf.get("bos_token_id", 11),
        eos_ids=token_ids(hf.get("eos_token_id", 11)),
    )


def tensor_names(config):
    """Our weight names -> Falcon's."""
    layer = "transformer.h.{i}."
    names = {
        "embed.weight": "transformer.word_embeddings.weight",
        "unembed.weight": "lm_head.weight",
    }
    two_norms = config.parallel and not config.shared_norm
    parts = {
        "final_norm": "transformer.ln_f",
        "layers.{i}.attn.norm": layer + ("ln_attn" if two_norms else "input_layernorm"),
        **fused_head_by_head(config, layer + "self_attention.query_key_value"),
        "layers.{i}.attn.o": layer + "self_attention.dense",
        "layers.{i}.ffn.norm": layer + ("ln_mlp" if two_norms else "post_attention_layernorm"),
        "layers.{i}.ffn.up": layer + "mlp.dense_h_to_4h",
        "layers.{i}.ffn.down": layer + "mlp.dense_4h_to_h",
    }
    return names | with_biases(parts)
