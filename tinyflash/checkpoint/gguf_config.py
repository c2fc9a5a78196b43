"""The config.json of the model that a GGUF file was converted from, rebuilt from its metadata."""

import numpy as np

from tinyflash.checks import short
from tinyflash.ops import share_kept

ARCHITECTURES = ("llama",)
ROPE_FREQS = "rope_freqs.weight"  # Llama 3's stretching, as one divisor for each frequency


def hugging_face_config(path, metadata, tensors):
    """The config.json of the model that the file was converted from.

    metadata: the file's;  tensors: its tensors by their GGUF names
    raises  : ValueError for an architecture or a setting that we do not have
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path} holds a model of architecture {short(architecture)}, and of GGUF files "
            f"tinyflash reads {', '.join(ARCHITECTURES)}; open the Hugging Face directory of the "
            "model."
        )
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"{path} is one of {metadata['split.count']} parts of a model; join them first with "
            "llama.cpp's llama-gguf-split --merge."
        )
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path} has no tensor token_embd.weight, so it is not a whole model.")

    def setting(key, default=None):
        value = metadata.get(f"llama.{key}") or default  # 0 says nothing, as in llama.cpp
        if value is None:
            raise ValueError(
                f"{path}: the metadata lack llama.{key}, without which the model has no shape; "
                "convert it anew."
            )
        if isinstance(value, list):
            raise ValueError(
                f"{path}: llama.{key} differs from layer to layer, which tinyflash does not have."
            )
        return shortest(value)

    heads = setting("attention.head_count")
    config = {
        "model_type": "llama",
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "hidden_size": setting("embedding_length"),
        "num_hidden_layers": setting("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": setting("attention.head_count_kv", heads),
        "intermediate_size": setting("feed_forward_length"),
        "hidden_act": "silu",
        "max_position_embeddings": setting("context_length"),
        "rms_norm_eps": setting("attention.layer_norm_rms_epsilon"),
        "rope_theta": setting("rope.freq_base", 10000.0),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }
    head_width = config["hidden_size"] // heads
    if "llama.attention.key_length" in metadata:
        head_width = config["head_dim"] = setting("attention.key_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if setting(key, head_width) != head_width:
            raise ValueError(
                f"{path}: llama.{key} is {setting(key)} where heads are {head_width} wide, and "
                "tinyflash has no llama model whose heads are turned or read in part."
            )
    scaling = rope_scaling(path, setting, tensors.get(ROPE_FREQS), head_width, config["rope_theta"])
    return config | ({"rope_scaling": scaling} if scaling else {})


def rope_scaling(path, setting, divisors, head_width, theta):
    """`rope_scaling` of the config.json, or None.

    Linear scaling is metadata. Llama 3's is a tensor of divisors, (K/2,); the four numbers behind
    it are found again by computing them (every published model has low 1, high 4, context 8192).

    raises: ValueError for any other stretching
    """
    kind = setting("rope.scaling.type", "none")
    factor = setting("rope.scaling.factor", setting("rope.scale_linear", 1.0))
    if divisors is not None and kind == "none":
        divisors = np.asarray(divisors.data)
        guess = {
            "rope_type": "llama3",
            "factor": shortest(float(divisors.max())),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        expected = llama3_divisors(guess, head_width, theta)
        if divisors.shape == expected.shape and np.allclose(divisors, expected, rtol=1e-4, atol=0):
            return guess if guess["factor"] != 1 else None
        kind = "by a tensor of its own"
    if kind == "linear" or (kind == "none" and factor != 1):
        return {"rope_type": "linear", "factor": float(factor)} if factor != 1 else None
    if kind == "none":
        return None
    raise ValueError(
        f"{path}: the model's rotary positions are scaled {short(kind)}; of GGUF files tinyflash "
        "reads those scaled 'linear' and as Llama 3 does."
    )


def llama3_divisors(scaling, head_width, theta):
    """By what Llama 3's scaling divides each rotary frequency: float64 (K/2,).

    1 / (kept + (1 - kept) / factor), kept as in `ops.share_kept`
    """
    frequencies = theta ** -(np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = share_kept(context, frequencies, low, high)
    return 1 / (kept + (1 - kept) / scaling["factor"])


def shortest(value):
    """A number that passed through float32 as it was written: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
