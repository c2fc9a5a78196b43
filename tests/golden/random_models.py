"""Random checkpoints in the Hugging Face format: goldens and live tests are made of them.

Needs torch and transformers. Sizes are awkward, every switch of a family is thrown, and every
parameter is random.
"""

import math

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, OPTConfig

FAMILIES = ("opt", "gpt2", "llama", "mistral")

# Standard deviation of a matrix's output, for an input of one; 1 where nothing is said.
GAINS = {
    **dict.fromkeys(("q_proj", "k_proj", "c_attn"), 1.5),
    "lm_head": 2.0,
    **dict.fromkeys(("o_proj", "out_proj", "fc2", "down_proj", "c_proj"), 3.0),
}


def random_config(family, rng):
    """A transformers config of awkward sizes with every switch thrown at random.

    family : one of FAMILIES;  rng : np.random.Generator
    """

    def one_of(*values):
        return values[rng.integers(len(values))]

    # A width below 20 would test the conditioning of norms of a few numbers, not the model.
    V, F, L = int(rng.integers(50, 300)), int(rng.integers(20, 120)), int(rng.integers(1, 4))
    context = int(rng.integers(40, 90))
    words = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    if family in ("opt", "gpt2"):
        H = int(rng.integers(2, 8))
        D = H * (20 // H + int(rng.integers(1, 6)))
    if family == "opt":
        return OPTConfig(
            **words,
            hidden_size=D,
            num_hidden_layers=L,
            ffn_dim=F,
            num_attention_heads=H,
            max_position_embeddings=context,
            word_embed_proj_dim=one_of(D, int(rng.integers(10, 40))),
            do_layer_norm_before=one_of(True, False),
            enable_bias=one_of(True, True, False),
            layer_norm_elementwise_affine=one_of(True, True, False),
            tie_word_embeddings=one_of(True, False),
        )
    eps = float(10.0 ** rng.uniform(-6, -3))
    if family == "gpt2":
        return GPT2Config(
            **words,
            n_embd=D,
            n_layer=L,
            n_head=H,
            n_inner=one_of(F, None),
            n_positions=context,
            activation_function=one_of("gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
            layer_norm_epsilon=eps,
            tie_word_embeddings=one_of(True, False),
        )
    G = int(rng.integers(1, 4))
    H = G * int(rng.integers(1 if G > 1 else 2, 5))
    settings = {
        "hidden_size": H * (20 // H + int(rng.integers(1, 4))),
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "head_dim": 2 * int(rng.integers(2, 7)),
        "intermediate_size": F,
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
        "tie_word_embeddings": one_of(True, False),
    }
    rope = {"rope_type": "default", "rope_theta": float(rng.uniform(10, 10000))}
    if family == "mistral":
        window = one_of(None, int(rng.integers(2, 20)))
        return MistralConfig(**words, **settings, rope_parameters=rope, sliding_window=window)
    kind = one_of("default", "linear", "llama3")
    if kind == "linear":
        rope |= {"rope_type": kind, "factor": float(rng.uniform(1.5, 8))}
    if kind == "llama3":
        rope |= {
            "rope_type": kind,
            "factor": float(rng.uniform(2, 8)),
            "low_freq_factor": 1.0,
            "high_freq_factor": float(rng.uniform(2, 6)),
            "original_max_position_embeddings": int(rng.integers(16, context)),
        }
    return LlamaConfig(
        **words,
        **settings,
        rope_parameters=rope,
        attention_bias=one_of(True, False),
        mlp_bias=one_of(True, False),
    )


def write_checkpoint(config, rng, directory, dtype="float32"):
    """Write a checkpoint of `config`'s shapes whose every number is random.

    dtype : of the stored numbers: "float32", "float16" or "bfloat16"
    """
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, rng)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)


def randomize(model, rng):
    """Give every parameter numbers that matter: no gain of one, no bias of zero.

    Queries and keys are large enough that attention picks tokens, and embeddings that logits
    spread; an embedding that is not also the unembedding is small, so that eps counts. What
    the layers add is larger than the embedding, or a tied model would repeat its last token.
    """
    tied = model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        module, kind = name.rsplit(".", 2)[-2:]
        noise = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
        if parameter.ndim == 1:
            is_gain = kind == "weight"
            noise = 1 + 0.3 * noise if is_gain else 0.3 * noise
        elif module in ("embed_tokens", "wte"):
            noise *= 0.4 if tied else 0.1
        elif module in ("embed_positions", "wpe"):
            noise *= 0.8 if tied else 0.1
        else:
            transposed = module.startswith("c_")  # GPT-2's (in, out)
            fan_in = parameter.shape[0] if transposed else parameter.shape[1]
            noise *= GAINS.get(module, 1.0) / math.sqrt(fan_in)
        parameter.data = torch.from_numpy(noise)
