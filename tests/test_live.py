"""Fresh random models, saved by transformers and computed by both: `pytest -m live`.

Needs torch and transformers (README, "Compare with transformers"). Every run draws new models;
TINYFLASH_SEED=... repeats one.
"""

import os
import secrets
import sys

import numpy as np
import pytest
from helpers_goldens import GOLDEN, recorded

import tinyflash
from tinyflash.oracle.diff import compare
from tinyflash.oracle.hints import hint
from tinyflash.oracle.record import manifest_of

pytestmark = pytest.mark.live

FAMILIES = (
    "opt",
    "gpt2",
    "llama",
    "mistral",
    "mobilellm",
    "qwen2",
    "gemma",
    "falcon",
    "phi",
    "persimmon",
    "distilbert",
)
MODELS = 20
SEED = int(os.environ.get("TINYFLASH_SEED", secrets.randbelow(10**9)))
# Largest difference of a logit, as a share of the logits' spread; `compare` holds the root mean
# square of every tensor to 1e-5. Measured over 1400 models: 4.1e-5, root mean square 2.7e-6, and
# transformers' own largest distance from our float64 was 2.7e-5 over the first 320.
LARGEST = 1e-4


@pytest.fixture(scope="module")
def transformers_side():
    """The modules of tests/golden that run transformers."""
    sys.path.insert(0, str(GOLDEN))
    try:
        import random_configs
        import random_models
        import reference
    except ImportError as error:
        pytest.fail(
            f"The live tier compares with transformers and cannot without it ({error}): "
            'pip install -e ".[test,live]"'
        )
    finally:
        sys.path.remove(str(GOLDEN))
    assert set(FAMILIES) == set(random_configs.FAMILIES)
    return random_configs, random_models, reference


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_agree(family, dtype, transformers_side, tmp_path, capsys):
    random_configs, random_models, reference = transformers_side
    largest, rms, worst = 0.0, 0.0, (0.0, "")
    for k in range(MODELS):
        directory = tmp_path / str(k)
        rng = np.random.default_rng([SEED, k, *family.encode(), *dtype.encode()])
        config = random_configs.random_config(family, rng)
        random_models.write_checkpoint(config, rng, directory, dtype)
        theirs = reference.open_reference(directory)
        model = tinyflash.load(directory)
        ids = random_ids(model.config, rng)

        taps = reference.capture(theirs, ids)
        manifest = manifest_of(model, ids, taps, command="pytest -m live", engine="transformers")
        comparison = compare((taps, manifest), recorded(model, ids))
        which = f"TINYFLASH_SEED={SEED}, {family} {k} in {dtype}, {len(ids)} tokens"
        assert comparison.not_compared == []
        assert comparison.equal, f"{which}: {hint(comparison.first)} {comparison.first}"
        logits = comparison.rows[-1]
        assert logits.name == "logits" and logits.relative <= LARGEST, which
        largest, rms = max(largest, logits.relative), max(rms, logits.rms)
        worst = max(worst, *((row.rms, row.name) for row in comparison.rows))
        for tie in comparison.near_ties:
            assert tie["in_each_others_top_5"], f"{which}: {tie}"
            assert tie["reference_margin"] <= 2 * logits.max_abs, f"{which}: {tie}"
    with capsys.disabled():
        print(
            f"\nTINYFLASH_SEED={SEED} {family} {dtype}: {MODELS} models, logits differ by at most "
            f"{largest:.1e} of their spread, root mean square {rms:.1e}; worst tensor "
            f"{worst[1]}, root mean square {worst[0]:.1e}"
        )


def test_alibi_counts_as_in_transformers_beyond_256_tokens(transformers_side, tmp_path):
    # A bfloat16 has eight bits: key 257 counts as number 256, and slopes are rounded as well.
    random_configs, random_models, reference = transformers_side
    rng = np.random.default_rng(SEED)
    draw = random_configs.Draw(rng)
    draw.context = 700
    config = random_configs.random_falcon(draw)
    config.alibi, config.num_hidden_layers = True, 1
    random_models.write_checkpoint(config, rng, tmp_path)
    model = tinyflash.load(tmp_path)
    ids = rng.integers(0, config.vocab_size, 700).tolist()

    taps = reference.capture(reference.open_reference(tmp_path), ids)
    manifest = manifest_of(model, ids, taps, command="pytest -m live", engine="transformers")
    comparison = compare((taps, manifest), recorded(model, ids))
    assert comparison.not_compared == []
    assert comparison.equal, f"TINYFLASH_SEED={SEED}: {hint(comparison.first)} {comparison.first}"


def random_ids(config, rng):
    """A text of random length; of every five one fills the context, one is a single token."""
    length = int(rng.integers(2, config.context))
    length = {0: 1, 1: config.context}.get(int(rng.integers(5)), length)
    return rng.integers(0, config.vocab_size, length).tolist()
