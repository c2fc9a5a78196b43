"""Qwen 2 and 2.5: a Llama with biases on q, k, v alone, and windows in its last layers only."""

from dataclasses import replace

from tinyflash.families import llama, rope
from tinyflash.families.common import flag, require

NAME = "qwen2"
MODEL_TYPES = ("qwen2",)
PREFIX = llama.PREFIX
DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
KEYS = DEFAULTS.keys() | rope.KEYS | {"use_mrope"}
WINDOWED, FULL = "sliding_attention", "full_attention"


def read_config(hf):
    """ModelConfig of a Qwen 2 config.json; raises ValueError for what we do not have."""
    require(hf, "use_mrope", (False,), "positions of images and films")
    require(hf, "mlp_bias", (False,), "which no Qwen 2 has")
    config = llama.read_config(hf)
    window = hf["sliding_window"] if flag(hf, "use_sliding_window") else None
    layers = windowed_layers(hf, window, config.layers)
    if layers and window is None:
        raise ValueError(
            f"config.json gives {len(layers)} layers {WINDOWED!r} and no sliding_window in use; "
            "set use_sliding_window and sliding_window, or make the layer_types full_attention."
        )
    return replace(
        config,
        family=NAME,
        qkv_bias=True,  # whatever attention_bias says
        out_bias=False,
        window=window if layers else None,
        window_layers=layers if layers else None,
    )


def windowed_layers(hf, window, layers):
    """The layers with a window: as `layer_types` says, else those from max_window_layers on."""
    kinds, first = hf["layer_types"], hf["max_window_layers"]
    if kinds is None:
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
