"""MobileLLM, which transformers does not have, as the Llama that it is.

It shares its embedding with the unembedding and, in its LS form, runs every layer twice in a row:
a Llama of twice as many layers in which the neighbors 2i and 2i + 1 have the same weights.
(MobileLLM, arXiv 2402.14905, §3)
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM


def is_mobilellm(directory):
    """Whether the checkpoint in this directory is a MobileLLM."""
    return json.loads((Path(directory) / "config.json").read_text())["model_type"] == "mobilellm"


def write_mobilellm_config(config, directory, dtype):
    """Write MobileLLM's config.json over that of the Llama which was saved in the directory.

    config : a LlamaConfig with `share_embedding` and `layer_sharing` beside its own settings
    """
    theirs = {
        "architectures": ["MobileLLMForCausalLM"],
        "model_type": "mobilellm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "share_embedding": config.share_embedding,
        "layer_sharing": config.layer_sharing,
        "tie_word_embeddings": False,  # so say the published ones, whatever they share
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    (Path(directory) / "config.json").write_text(json.dumps(theirs, indent=2) + "\n")


def open_mobilellm(directory):
    """transformers' Llama of a MobileLLM checkpoint, computing in float32."""
    directory = Path(directory)
    theirs = json.loads((directory / "config.json").read_text())
    times = 2 if theirs["layer_sharing"] else 1
    settings = {
        key: theirs[key]
        for key in (
            "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "max_position_embeddings", "rms_norm_eps", "bos_token_id",
            "eos_token_id",
        )
    }  # fmt: skip
    config = LlamaConfig(
        **settings,
        num_hidden_layers=times * theirs["num_hidden_layers"],
        rope_parameters={"rope_type": "default", "rope_theta": theirs["rope_theta"]},
        tie_word_embeddings=theirs["share_embedding"],
    )
    weights = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        for run in range(times):
            weights[name_of_run(name, times, run)] = tensor.float()
    if theirs["share_embedding"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.load_state_dict(weights)
    return model.eval()


def name_of_run(name, times, run):
    """A stored tensor's name in the Llama that runs every layer `times` times in a row."""
    if not name.startswith("model.layers."):
        return name
    model, layers, i, rest = name.split(".", 3)
    return f"{model}.{layers}.{times * int(i) + run}.{rest}"
