"""Makes the goldens: tiny random checkpoints, and what transformers computes from them.

By hand, in an environment with exactly these versions, from the repository's root; all of them,
or those that are named:

    PYTHONPATH=. python tests/golden/make_goldens.py [NAME ...]
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from cases import CASES, NEW_TOKENS, NINE, WINDOW
from random_models import write_checkpoint
from reference import attention_entropy, capture, greedy, open_reference

import tinyflash
from tinyflash.oracle.diff import top_two_margins
from tinyflash.oracle.record import manifest_of, write_recording

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0"}
HERE = Path(__file__).parent
SMALLEST_MARGIN = 0.005  # of the likeliest token in 64: a thousand times the tolerance of a logit
DISTINCT_TOKENS = 16  # among the 64: a model that repeats itself tests little


def main(names):
    """Make the cases, each under the seed that gives comfortable margins."""
    have = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    if have != VERSIONS:
        sys.exit(f"The goldens are made with {VERSIONS}, and this environment has {have}.")
    for name in names or CASES:
        seed = next(seed for seed in range(1000) if make(name, *CASES[name], seed))
        nbytes = sum(file.stat().st_size for file in (HERE / name).iterdir())
        print(f"{name}: seed {seed}, {nbytes / 1e3:.0f} kB", flush=True)


def make(name, config, dtype, seed):
    """Write the case `name` under one seed; False if such a case could hide a fault."""
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    rng = np.random.default_rng([seed, *name.encode()])
    write_checkpoint(config, rng, directory, dtype)
    hf_model = open_reference(directory)
    first = 0 if config.bos_token_id is None else config.bos_token_id
    nine = [first, *(int(token) for token in rng.integers(3, config.vocab_size - 1, NINE - 1))]
    taps = capture(hf_model, nine)
    if not shows_faults(taps):
        return False
    written = {}
    if config.model_type == "distilbert":  # it fills in words and continues nothing
        if top_two_margins(taps["logits"]).min() < SMALLEST_MARGIN:
            return False
    else:
        ids, margins = greedy(hf_model, nine, NEW_TOKENS)
        if min(margins) < SMALLEST_MARGIN or len(set(ids)) < DISTINCT_TOKENS:
            return False
        written = {"greedy": {"ids": ids, "margins": margins}}

    model = tinyflash.load(directory)
    texts = {"nine": nine}
    if dtype == "float32":
        texts["one"] = [first]
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
            manifest |= written
        write_recording(directory / f"{text}.safetensors", taps, manifest)
    return True


def shows_faults(taps):
    """Whether logits spread, and attention neither looks everywhere alike nor at one token."""
    shares = [attention_entropy(taps[name]) for name in taps if name.endswith("attn.pattern")]
    return np.std(taps["logits"]) >= 1 and 0.2 < min(shares) and max(shares) < 0.8


if __name__ == "__main__":
    main(sys.argv[1:])
