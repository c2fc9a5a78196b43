"""Falcon (arXiv 2311.16867): 7B and 40B compute attention and feed-forward in parallel.

7B and 11B put one norm before both; 40B and 180B (`new_decoder_architecture`) one before each,
and share keys among groups of heads. The RW models do neither and bias their scores by ALiBi.
"""

from tinyflash.checks import short
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
from tinyflash.families.rope import context_of, read_rope

NAME = "falcon"
MODEL_TYPES = ("falcon",)
PREFIX = "transformer."
DEFAULTS = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None,
    "layer_norm_epsilon": 1e-5,
    "num_kv_heads": None,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "tie_word_embeddings": True,
    "bos_token_id": 11,
    "eos_token_id": 11,
}
KEYS = DEFAULTS.keys() | rope.KEYS | {
    "head_dim", "ff_factor", "apply_residual_connection_post_layernorm",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a Falcon config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    require(hf, "apply_residual_connection_post_layernorm", (False,), "a residual behind a norm")
    F = 4 * D if hf["ffn_hidden_size"] is None else hf["ffn_hidden_size"]
    factor = hf.get("ff_factor")
    if factor is not None and factor * D != F:
        raise ValueError(
            f"config.json sets ff_factor to {short(factor)}, and {short(F)} neurons are not as "
            f"many times the width of {short(D)}; the file contradicts itself, so get another copy."
        )
    grouped = flag(hf, "new_decoder_architecture")
    parallel = flag(hf, "parallel_attn")
    if grouped and not parallel:
        raise ValueError(
            "config.json sets new_decoder_architecture and no parallel_attn, and no such Falcon is "
            "known; get another copy of the file."
        )
    if grouped:
        require(hf, "num_ln_in_parallel_attn", (1, 2), "another number of norms")
        G = H if hf["num_kv_heads"] is None else hf["num_kv_heads"]
    elif flag(hf, "multi_query"):
        G = 1
    else:
        require(hf, "num_kv_heads", (H,), "shared keys without new_decoder_architecture")
        G = H
    if parallel and not grouped:
        require(hf, "num_ln_in_parallel_attn", (1,), "without new_decoder_architecture")
    bias, alibi, positions = flag(hf, "bias"), flag(hf, "alibi"), read_rope(hf)
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["num_hidden_layers"],
        heads=H,
        kv_heads=G,
        head_width=head_width_of(hf, D, H),
        ffn_width=F,
        context=context_of(hf, positions),
        embed_width=D,
        activation=activation_of(hf, "activation"),
        norm_eps=hf["layer_norm_epsilon"],
        parallel=parallel,
        shared_norm=parallel and not (grouped and hf["num_ln_in_parallel_attn"] != 1),
        positions="alibi" if alibi else "rotary",
        rope=positions,
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
        tied=hf["tie_word_embeddings"],
        bos_id=hf["bos_token_id"],
        eos_ids=token_ids(hf["eos_token_id"]),
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
