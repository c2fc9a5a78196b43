"""Qwen 2 and 2.5: a Llama with biases on q, k, v alone, and windows in its last layers only."""

from dataclasses import replace

from tinyflash.families import llama
from tinyflash.families.common import flag, require

NAME = "qwen2"
MODEL_TYPES = ("qwen2",)
PREFIX = llama.PREFIX
KEYS = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "use_mrope",
    "tie_word_embeddings", "bos_token_id", "eos_token_id",
}  # fmt: skip
DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
}
WINDOWED, FULL = "sliding_attention", "full_attention"


def read_config(hf):
    """ModelConfig of a Qwen 2 config.json; raises ValueError for what we do not have."""
    require(hf, "use_mrope", (False,), "positions of images and films")
    config = llama.read_config(DEFAULTS | hf)
    window = hf.get("sliding_window", 4096) if flag(hf, "use_sliding_window", False) else None
    layers = windowed_layers(hf, window, config.layers)
    if layers and window is None:
        raise ValueError(
            f"config.json gives {len(layers)} layers {WINDOWED!r} and no sliding_window in use; "
            "set use_sliding_window and sliding_window, or make the layer_types full_attention."
        )
    return replace(
        config,
        family=NAME,
        qkv_bias=True,
        window=window if layers else None,
        window_layers=layers if layers else None,
    )


def windowed_layers(hf, window, layers):
    """The layers with a window: as `layer_types` says, else those from max_window_layers on."""
    kinds = hf.get("layer_types")
    if kinds is None:
        first = hf.get("max_window_layers", 28)
        return () if window is None else tuple(range(layers)[max(0, first) :])
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {WINDOWED, FULL}:
        raise ValueError(
            f"config.json's layer_types must say {WINDOWED!r} or {FULL!r} for each of {layers} "
            "layers."
        )
    return tuple(i for i, kind in enumerate(kinds) if kind == WINDOWED)


def tensor_names(config):
    """Our weight names -> Qwen's, which are Llama's."""
    return llama.tensor_names(config)
