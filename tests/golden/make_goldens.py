"""Makes the goldens: tiny random checkpoints, and what transformers computes from them.

By hand, in an environment with exactly these versions, from the repository's root:

    PYTHONPATH=. python tests/golden/make_goldens.py
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from random_models import write_checkpoint
from reference import attention_entropy, capture, greedy, open_reference
from transformers import GPT2Config, LlamaConfig, MistralConfig, OPTConfig

import tinyflash
from tinyflash.oracle.record import manifest_of, write_recording

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0"}
HERE = Path(__file__).parent
NINE, NEW_TOKENS = 9, 64
CONTEXT = NINE + NEW_TOKENS
WINDOW = 5  # of Mistral: shorter than nine tokens
SMALLEST_MARGIN = 0.005  # of the likeliest token in 64: a thousand times the tolerance of a logit
DISTINCT_TOKENS = 16  # among the 64: a model that repeats itself tests little

OPT = {
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "max_position_embeddings": CONTEXT,
}
LLAMA = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": CONTEXT}

GPT2 = GPT2Config(
    vocab_size=181, n_embd=33, n_layer=2, n_head=3, n_inner=85, n_positions=CONTEXT,
    layer_norm_epsilon=3e-5, bos_token_id=180, eos_token_id=180,
)  # fmt: skip
OPT_PLAIN = OPTConfig(
    vocab_size=211, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, ffn_dim=70,
    word_embed_proj_dim=36, **OPT,
)  # fmt: skip
LLAMA_GQA = LlamaConfig(
    vocab_size=151, hidden_size=30, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, head_dim=8, intermediate_size=58, rms_norm_eps=2e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, **LLAMA,
)  # fmt: skip
MISTRAL = MistralConfig(
    vocab_size=167, hidden_size=40, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, head_dim=6, intermediate_size=46, rms_norm_eps=1e-5,
    sliding_window=WINDOW,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **LLAMA,
)  # fmt: skip

# directory -> config, dtype of the stored numbers
CASES = {
    "opt": (OPT_PLAIN, "float32"),
    # norms after each part, and embeddings narrower than the model
    "opt-350m": (
        OPTConfig(
            vocab_size=199, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, ffn_dim=74,
            word_embed_proj_dim=22, do_layer_norm_before=False, **OPT,
        ),
        "float32",
    ),
    # no biases, no gains, logits from a matrix of their own
    "opt-bare": (
        OPTConfig(
            vocab_size=173, hidden_size=28, num_hidden_layers=3, num_attention_heads=7, ffn_dim=62,
            word_embed_proj_dim=28, enable_bias=False, layer_norm_elementwise_affine=False,
            tie_word_embeddings=False, **OPT,
        ),
        "float32",
    ),
    "gpt2": (GPT2, "float32"),
    # heads share keys and values, and are wider than D/H
    "llama": (LLAMA_GQA, "float32"),
    # of the wavelengths 6, 16, 40, 100, 250 the first is kept, two are blended, two divided
    "llama3": (
        LlamaConfig(
            vocab_size=157, hidden_size=28, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=10, intermediate_size=54, rms_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 41,
            },
            **LLAMA,
        ),
        "float32",
    ),
    "llama-biases": (
        LlamaConfig(
            vocab_size=163, hidden_size=36, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=3, head_dim=4, intermediate_size=50, rms_norm_eps=1e-6,
            attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **LLAMA,
        ),
        "float32",
    ),
    # every frequency divided; all heads share one key head
    "llama-linear": (
        LlamaConfig(
            vocab_size=139, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=1, head_dim=12, intermediate_size=42, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}, **LLAMA,
        ),
        "float32",
    ),
    "mistral": (MISTRAL, "float32"),
}  # fmt: skip
for name in ("opt", "gpt2", "llama", "mistral"):
    for dtype in ("float16", "bfloat16"):
        CASES[f"{name}-{dtype}"] = (CASES[name][0], dtype)


def main():
    """Make every case, under the seed that gives comfortable margins."""
    have = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    if have != VERSIONS:
        sys.exit(f"The goldens are made with {VERSIONS}, and this environment has {have}.")
    for name, (config, dtype) in CASES.items():
        seed = next(seed for seed in range(1000) if make(name, config, dtype, seed))
        nbytes = sum(file.stat().st_size for file in (HERE / name).iterdir())
        print(f"{name}: seed {seed}, {nbytes / 1e3:.0f} kB")


def make(name, config, dtype, seed):
    """Write the case `name` under one seed; False if such a case could hide a fault."""
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    rng = np.random.default_rng([seed, *name.encode()])
    write_checkpoint(config, rng, directory, dtype)
    hf_model = open_reference(directory)
    bos = config.bos_token_id
    nine = [bos, *(int(token) for token in rng.integers(3, config.vocab_size - 1, NINE - 1))]
    if not shows_faults(capture(hf_model, nine)):
        return False
    ids, margins = greedy(hf_model, nine, NEW_TOKENS)
    if min(margins) < SMALLEST_MARGIN or len(set(ids)) < DISTINCT_TOKENS:
        return False

    model = tinyflash.load(directory)
    texts = {"nine": nine}
    if dtype == "float32":
        texts["one"] = [bos]
        if model.config.window:
            texts["window"] = nine[:WINDOW]
    for text, text_ids in texts.items():
        taps = capture(hf_model, text_ids)
        manifest = manifest_of(
            model,
            text_ids,
            taps,
            command="PYTHONPATH=. python tests/golden/make_goldens.py",
            engine="transformers",
            versions={**VERSIONS, "numpy": np.__version__},
        )
        manifest["checkpoint"]["name"] = name
        manifest["seed"] = seed
        if text == "nine":
            manifest["greedy"] = {"ids": ids, "margins": margins}
        write_recording(directory / f"{text}.safetensors", taps, manifest)
    return True


def shows_faults(taps):
    """Whether logits spread, and attention neither looks everywhere alike nor at one token."""
    shares = [attention_entropy(taps[name]) for name in taps if name.endswith("attn.pattern")]
    return np.std(taps["logits"]) >= 1 and 0.2 < min(shares) and max(shares) < 0.8


if __name__ == "__main__":
    main()
