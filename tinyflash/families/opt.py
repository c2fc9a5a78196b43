"""OPT (arXiv 2205.01068): learned positions, layer norm, ReLU; 350m norms after and projects."""

from tinyflash.config import ModelConfig
from tinyflash.families.common import activation_of, head_width_of, token_ids, with_biases

NAME = "opt"
MODEL_TYPES = ("opt",)
PREFIX = "model."  # the published checkpoints leave it out
KEYS = {
    "vocab_size", "hidden_size", "num_hidden_layers", "ffn_dim", "max_position_embeddings",
    "do_layer_norm_before", "word_embed_proj_dim", "num_attention_heads", "activation_function",
    "enable_bias", "layer_norm_elementwise_affine", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "_remove_final_layer_norm",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of an OPT config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    before = hf.get("do_layer_norm_before", True)
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["num_hidden_layers"],
        heads=H,
        kv_heads=H,
        head_width=head_width_of(D, H),
        ffn_width=hf["ffn_dim"],
        context=hf["max_position_embeddings"],
        embed_width=hf.get("word_embed_proj_dim") or D,
        activation=activation_of(hf, "activation_function", "relu"),
        position_offset=2,
        norm_affine=hf.get("layer_norm_elementwise_affine", True),
        norm_after=not before,
        final_norm=before and not hf.get("_remove_final_layer_norm", False),
        qkv_bias=hf.get("enable_bias", True),
        out_bias=hf.get("enable_bias", True),
        ffn_bias=hf.get("enable_bias", True),
        tied=hf.get("tie_word_embeddings", True),
        bos_id=hf.get("bos_token_id", 2),
        eos_ids=token_ids(hf.get("eos_token_id", 2)),
    )


def tensor_names(config):
    """Our weight names -> OPT's."""
    layer = "model.decoder.layers.{i}."
    names = {
        "embed.weight": "model.decoder.embed_tokens.weight",
        "positions.weight": "model.decoder.embed_positions.weight",
        "embed.project.weight": "model.decoder.project_in.weight",
        "unembed.project.weight": "model.decoder.project_out.weight",
        "unembed.weight": "lm_head.weight",
    }
    parts = {
        "final_norm": "model.decoder.final_layer_norm",
        "layers.{i}.attn.norm": layer + "self_attn_layer_norm",
        "layers.{i}.attn.q": layer + "self_attn.q_proj",
        "layers.{i}.attn.k": layer + "self_attn.k_proj",
        "layers.{i}.attn.v": layer + "self_attn.v_proj",
        "layers.{i}.attn.o": layer + "self_attn.out_proj",
        "layers.{i}.ffn.norm": layer + "final_layer_norm",
        "layers.{i}.ffn.up": layer + "fc1",
        "layers.{i}.ffn.down": layer + "fc2",
    }
    return names | with_biases(parts)
