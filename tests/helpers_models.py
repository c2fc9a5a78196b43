"""Tiny random models in the Hugging Face format, with sizes that no accident makes equal.

directory = write_model(tmp_path / "opt", OPT_CONFIG, seed=3)
model = tinyflash.load(directory)
"""

import json
from functools import cache

import numpy as np

from tinyflash.config import weight_shapes
from tinyflash.families import read_config
from tinyflash.training.vocabulary import train_tokenizer, write_tokenizer
from tinyflash.weights import save_checkpoint

OPT_CONFIG = {
    "model_type": "opt",
    "vocab_size": 307,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 40,
    "max_position_embeddings": 96,
    "do_layer_norm_before": True,
    "activation_function": "relu",
    "bos_token_id": 2,
    "eos_token_id": 2,
}
# What opt-350m alone does: norms after, narrow embeddings, no last norm.
OPT_350M_CONFIG = OPT_CONFIG | {"do_layer_norm_before": False, "word_embed_proj_dim": 14}
GPT2_CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 307,
    "n_embd": 20,
    "n_layer": 2,
    "n_head": 5,
    "n_inner": 52,
    "n_positions": 96,
    "activation_function": "gelu_new",
    "eos_token_id": 2,
}
# Grouped heads (H=6, G=2) whose width (10) is not D/H (22/6).
LLAMA_CONFIG = {
    "model_type": "llama",
    "vocab_size": 307,
    "hidden_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 38,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
MISTRAL_CONFIG = LLAMA_CONFIG | {"model_type": "mistral", "sliding_window": 7}
# From here on few neurons: every one of them is read in the tests of flash.
MOBILELLM_CONFIG = LLAMA_CONFIG | {
    "model_type": "mobilellm",
    "intermediate_size": 17,
    "share_embedding": True,
    "layer_sharing": True,  # two layers of weights, four that are computed
}
QWEN2_CONFIG = LLAMA_CONFIG | {
    "model_type": "qwen2",
    "intermediate_size": 18,
    "use_sliding_window": True,
    "sliding_window": 3,
    "max_window_layers": 1,
}
GEMMA_CONFIG = LLAMA_CONFIG | {
    "model_type": "gemma",
    "intermediate_size": 19,
    "hidden_act": "gelu",
    "tie_word_embeddings": True,
}
PHI_CONFIG = {
    "model_type": "phi",
    "vocab_size": 307,
    "hidden_size": 60,
    "intermediate_size": 21,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.4,
    "max_position_embeddings": 96,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
PERSIMMON_CONFIG = {
    "model_type": "persimmon",
    "vocab_size": 307,
    "hidden_size": 40,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "max_position_embeddings": 96,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
FALCON_CONFIG = {
    "model_type": "falcon",
    "vocab_size": 307,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "ffn_hidden_size": 23,
    "max_position_embeddings": 96,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
# What falcon-40b and the RW models do differently.
FALCON_40B_CONFIG = FALCON_CONFIG | {
    "hidden_size": 36,
    "num_attention_heads": 6,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
    "bias": True,
    "activation": "relu",
}
FALCON_RW_CONFIG = FALCON_CONFIG | {
    "alibi": True,
    "bias": True,
    "multi_query": False,
    "parallel_attn": False,
}
CONFIGS = {
    "opt": OPT_CONFIG,
    "opt-350m": OPT_350M_CONFIG,
    "gpt2": GPT2_CONFIG,
    "llama": LLAMA_CONFIG,
    "mistral": MISTRAL_CONFIG,
    "mobilellm": MOBILELLM_CONFIG,
    "qwen2": QWEN2_CONFIG,
    "gemma": GEMMA_CONFIG,
    "phi": PHI_CONFIG,
    "persimmon": PERSIMMON_CONFIG,
    "falcon": FALCON_CONFIG,
    "falcon-40b": FALCON_40B_CONFIG,
    "falcon-rw": FALCON_RW_CONFIG,
}
# An encoder: it has no cache and continues no text.
DISTILBERT_CONFIG = {
    "model_type": "distilbert",
    "vocab_size": 307,
    "dim": 24,
    "hidden_dim": 40,
    "n_layers": 2,
    "n_heads": 3,
    "max_position_embeddings": 96,
}

# The tokenizer has fewer words than the models' vocabulary, as published ones do.
TOKENIZER_SIZE = 300
TOKENIZER_TEXT = (
    "Once upon a time there was a small river that ran to the sea. The river knew every stone, "
    "and every stone knew the river. When the rain came the river rose, and when the sun came "
    "it sang. Nobody in the town had ever seen where the water went in the end.\n"
)
# A conversation that grows at its end only, as a cache likes it.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_model(directory, hf_config, seed=0, dtype="float16", tokenizer=True, chat=False):
    """Write a random model as a Hugging Face directory; returns the directory.

    hf_config: its config.json, a dict
    dtype    : "float16" or "float32", of the file
    tokenizer: put a byte-level BPE of 300 words beside it; texts of a GPT-2 then begin with
               nothing, others with `</s>`, as published ones do
    chat     : give it a chat template too
    """
    config = read_config(hf_config)
    save_checkpoint(directory, hf_config, config, random_weights(config, seed, dtype), dtype)
    if tokenizer:
        write_tokenizer(small_tokenizer(), config.context, directory)
        settings_file = directory / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text())
        if config.family == "gpt2":
            begin_with_nothing(directory / "tokenizer.json")
        if chat:
            settings["chat_template"] = CHAT_TEMPLATE
        settings_file.write_text(json.dumps(settings))
    return directory


def begin_with_nothing(tokenizer_json):
    """Let a tokenizer put nothing before a text."""
    whole = json.loads(tokenizer_json.read_text())
    tokenizer_json.write_text(json.dumps(whole | {"post_processor": None}))


def random_weights(config, seed=0, dtype="float16"):
    """Every weight of `config` at random, gains and biases too, each a number that `dtype` has.

    Logits spread by 1 and more, and attention is not uniform.

    returns: dict name -> float32 array
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        numbers = rng.standard_normal(shape)
        if name.startswith(("embed.", "positions.", "unembed.")):
            numbers *= 0.7
        elif len(shape) == 2:
            numbers *= 1.5 / shape[1] ** 0.5
        elif name.endswith("bias"):
            numbers *= 0.3
        else:
            numbers = (0 if config.norm_plus_one else 1) + 0.3 * numbers
        weights[name] = numbers.astype(dtype).astype(np.float32)
    return weights


@cache
def small_tokenizer():
    """A byte-level BPE with OPT's conventions: ids 0-3 are special, `</s>` (2) opens a text."""
    return train_tokenizer(TOKENIZER_TEXT, TOKENIZER_SIZE)
