"""Random checkpoints in the Hugging Face format: goldens and live tests are made of them.

Needs torch and transformers. Every parameter is random.
"""

import math

import numpy as np
import torch
from mobilellm import write_mobilellm_config
from reference import model_class

# Standard deviation of a matrix's output, for an input of one; 1 where nothing is said.
GAINS = {
    **dict.fromkeys(("q_proj", "k_proj", "q_lin", "k_lin", "c_attn", "query_key_value"), 1.5),
    "lm_head": 2.0,
    **dict.fromkeys(("o_proj", "out_proj", "out_lin", "dense", "c_proj"), 3.0),
    **dict.fromkeys(("fc2", "down_proj", "dense_4h_to_h", "lin2"), 3.0),
}
TOKENS = ("embed_tokens", "wte", "word_embeddings")
POSITIONS = ("embed_positions", "wpe", "position_embeddings")
NORMS_OF_HEADS = ("q_layernorm", "k_layernorm")


def write_checkpoint(config, rng, directory, dtype="float32"):
    """Write a checkpoint of `config`'s shapes whose every number is random.

    dtype : of the stored numbers: "float32", "float16" or "bfloat16"
    """
    model = model_class(config).from_config(config)
    randomize(model, rng)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if hasattr(config, "layer_sharing"):
        write_mobilellm_config(config, directory, dtype)


def randomize(model, rng):
    """Give every parameter numbers that matter: no gain of one, no bias of zero.

    Queries and keys are large enough that attention picks tokens, and embeddings that logits
    spread; an embedding that is not also the unembedding is small, so that eps counts. What
    the layers add is larger than the embedding, or a tied model would repeat its last token.
    """
    tied = model.config.tie_word_embeddings
    is_gemma = model.config.model_type == "gemma"
    for name, parameter in model.named_parameters():
        module, kind = name.rsplit(".", 2)[-2:]
        noise = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
        if parameter.ndim == 1:
            noise *= 0.3
            if kind == "weight" and not is_gemma:  # Gemma's gains are one more than is stored
                noise += 1.5 if module in NORMS_OF_HEADS else 1
        elif module in TOKENS:
            noise *= 0.4 if tied else 0.1
            if is_gemma:  # it multiplies what it looks up by √D
                noise *= 0.5 if tied else 0.2
        elif module in POSITIONS:
            noise *= 0.8 if tied else 0.1
        else:
            transposed = module.startswith("c_")  # GPT-2's (in, out)
            fan_in = parameter.shape[0] if transposed else parameter.shape[1]
            noise *= GAINS.get(module, 1.0) / math.sqrt(fan_in)
        parameter.data = torch.from_numpy(noise)
