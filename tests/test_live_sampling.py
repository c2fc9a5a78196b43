"""Penalties and cuts held to the logits processors of transformers: `pytest -m live`."""

import json
import os
import secrets

import numpy as np
import pytest
from helpers_models import CONFIGS, write_model

import tinyflash
from tinyflash.generation_config import read_recommended
from tinyflash.sampling import next_distribution
from tinyflash.settings import Sampling

pytestmark = pytest.mark.live

SEED = int(os.environ.get("TINYFLASH_SEED", secrets.randbelow(10**9)))
V, ROUNDS = 97, 400


def random_settings(rng):
    """Settings under the names of generation_config.json; each is there or not."""
    drawn = {
        "temperature": float(rng.uniform(0.3, 2)),
        "top_k": int(rng.integers(1, V + 20)),
        "top_p": float(rng.uniform(0.05, 1)),
        "min_p": float(rng.uniform(0, 0.5)),
        "repetition_penalty": float(rng.uniform(0.5, 2)),
        "no_repeat_ngram_size": int(rng.integers(1, 4)),
        "suppress_tokens": rng.integers(0, V, rng.integers(1, 9)).tolist(),
    }
    return {name: value for name, value in drawn.items() if rng.random() < 0.6}


def theirs(settings, text, logits, prompt):
    """The distribution after transformers' processors, as its `generate` puts them in a row."""
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 4, "n_head": 1, "n_layer": 1, "n_positions": 8, "vocab_size": V}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes))
    config = GenerationConfig(do_sample=True, **settings)
    config, _ = model._prepare_generation_config(config)
    config.top_k = settings.get("top_k")  # where nothing is said it would be 50
    model._prepare_special_tokens(config, False, device="cpu")
    processors = model._get_logits_processor(config, input_ids_seq_length=len(prompt))
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    return torch.softmax(processors(torch.tensor([text]), scores), dim=-1)[0].numpy()


def test_the_distribution_is_that_of_transformers(tmp_path):
    rng = np.random.default_rng(SEED)
    for number in range(ROUNDS):
        settings = random_settings(rng)
        logits = (3 * rng.standard_normal(V)).astype(np.float32)
        text = rng.integers(0, V // 2, rng.integers(1, 30)).tolist()
        prompt, new = text[:1], text[1:]
        (tmp_path / "generation_config.json").write_text(
            json.dumps({"do_sample": True, **settings})
        )
        sampling = read_recommended(tmp_path, context=V).sampling({})
        ours = next_distribution(logits, sampling, prompt, new)
        np.testing.assert_allclose(
            ours,
            theirs(settings, text, logits, prompt),
            rtol=1e-9,
            atol=1e-12,
            err_msg=f"TINYFLASH_SEED={SEED}, round {number}: {settings}",
        )


def test_a_penalty_after_the_cuts_would_be_seen():
    """The negative control: penalties must come before temperature, and over prompt and answer."""
    rng, parted = np.random.default_rng(SEED), 0
    settings = {"temperature": 0.5, "top_k": 10, "repetition_penalty": 1.5}
    for _ in range(20):
        logits = (3 * rng.standard_normal(V)).astype(np.float32)
        text = rng.integers(0, V, 60).tolist()
        expected = theirs(settings, text, logits, text[:30])
        good = next_distribution(logits, Sampling(**settings), text[:30], text[30:])
        forgot = next_distribution(logits, Sampling(**settings), [], text[30:])
        np.testing.assert_allclose(good, expected, rtol=1e-9, atol=1e-12)
        parted += not np.allclose(forgot, expected, atol=1e-3)
    assert parted > 10


@pytest.mark.parametrize("name", ["opt", "gpt2", "qwen2"])
def test_greedy_texts_with_a_recommendation_are_those_of_transformers(name, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    rng = np.random.default_rng(SEED)
    write_model(tmp_path, CONFIGS[name], seed=4)
    for number in range(10):
        settings = random_settings(rng) | {"eos_token_id": 2, "pad_token_id": 2}
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        model = tinyflash.load(tmp_path, dtype="float64")
        prompt = rng.integers(3, 300, 5).tolist()
        made = model.generate(prompt, max_new_tokens=30)
        list(made)
        reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
        said = reference.generate(torch.tensor([prompt]), max_new_tokens=30)[0, 5:].tolist()
        said = said[: said.index(2)] if 2 in said else said
        assert made.ids == said, f"TINYFLASH_SEED={SEED}, text {number}: {settings}"
