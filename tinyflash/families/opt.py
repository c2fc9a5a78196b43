"""OPT (arXiv 2205.01068): learned positions, layer norm, ReLU; 350m norms after and projects."""

from tinyflash.config import ModelConfig
from tinyflash.families.common import activation_of, head_width_of, token_ids, with_biases

NAME = "opt"
MODEL_TYPES = ("opt",)
PREFIX = "model."  # the published checkpoints leave it out
DEFAULTS = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
KEYS = DEFAULTS.keys() | {"head_dim"}


def read_config(hf):
    """ModelConfig of an OPT config.json; raises ValueError for what we do not have."""
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    E, before = hf["word_embed_proj_dim"], hf["do_layer_norm_before"]
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["num_hidden_layers"],
        heads=H,
        kv_heads=H,
        head_width=head_width_of(hf, D, H),
        ffn_width=hf["ffn_dim"],
        context=hf["max_position_embeddings"],
        embed_width=D if E is None else E,
        activation=activation_of(hf, "activation_function"),
        position_offset=2,
        norm_affine=hf["layer_norm_elementwise_affine"],
        norm_after=not before,
        final_norm=before and not hf["_remove_final_layer_norm"],
        qkv_bias=hf["enable_bias"],
        out_bias=hf["enable_bias"],
        ffn_bias=hf["enable_bias"],
        tied=hf["tie_word_embeddings"],
        bos_id=hf["bos_token_id"],
        eos_ids=token_ids(hf["eos_token_id"]),
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
