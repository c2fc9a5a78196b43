"""DistilBERT (arXiv 1910.01108): an encoder that fills in masked words; norms stand after."""

from tinyflash.config import ModelConfig
from tinyflash.families.common import activation_of, head_width_of, with_biases

NAME = "distilbert"
MODEL_TYPES = ("distilbert",)
PREFIX = "distilbert."
DEFAULTS = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "activation": "gelu",
    "tie_word_embeddings": True,
}
KEYS = DEFAULTS.keys() | {
    "head_dim", "bos_token_id", "eos_token_id",
    # whether positions began as sines, ties by another name, and what other heads need
    "sinusoidal_pos_embds", "tie_weights_", "qa_dropout", "seq_classif_dropout",
}  # fmt: skip


def read_config(hf):
    """ModelConfig of a DistilBERT config.json; raises ValueError for what we do not have."""
    D, H = hf["dim"], hf["n_heads"]
    return ModelConfig(
        family=NAME,
        vocab_size=hf["vocab_size"],
        width=D,
        layers=hf["n_layers"],
        heads=H,
        kv_heads=H,
        head_width=head_width_of(hf, D, H),
        ffn_width=hf["hidden_dim"],
        context=hf["max_position_embeddings"],
        embed_width=D,
        activation=activation_of(hf, "activation"),
        norm_eps=1e-12,  # it has no key
        norm_after=True,
        causal=False,
        embed_norm=True,
        tied=hf["tie_word_embeddings"],
        unembed_bias=True,
        unembed_transform=True,
    )


def tensor_names(config):
    """Our weight names -> DistilBERT's, with its masked-language-model head."""
    layer = "distilbert.transformer.layer.{i}."
    names = {
        "embed.weight": "distilbert.embeddings.word_embeddings.weight",
        "positions.weight": "distilbert.embeddings.position_embeddings.weight",
    }
    parts = {
        "embed.norm": "distilbert.embeddings.LayerNorm",
        "layers.{i}.attn.q": layer + "attention.q_lin",
        "layers.{i}.attn.k": layer + "attention.k_lin",
        "layers.{i}.attn.v": layer + "attention.v_lin",
        "layers.{i}.attn.o": layer + "attention.out_lin",
        "layers.{i}.attn.norm": layer + "sa_layer_norm",
        "layers.{i}.ffn.up": layer + "ffn.lin1",
        "layers.{i}.ffn.down": layer + "ffn.lin2",
        "layers.{i}.ffn.norm": layer + "output_layer_norm",
        "unembed.transform": "vocab_transform",
        "final_norm": "vocab_layer_norm",
        "unembed": "vocab_projector",
    }
    return names | with_biases(parts)
