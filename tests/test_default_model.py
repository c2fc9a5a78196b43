"""The embedded model in data/tiny-opt: it opens offline, is small and sparse, and writes words."""

import json
import re

import numpy as np
import pytest

import tinyflash
from tinyflash.checkpoint.sources import embedded
from tinyflash.evaluate import perplexity


@pytest.fixture(scope="module")
def model():
    return tinyflash.load("default")


@pytest.fixture(scope="module")
def heldout():
    return (embedded("tiny-opt").parent / "heldout.txt").read_text(encoding="utf-8")


def test_it_is_small(model):
    assert (embedded("tiny-opt") / "model.safetensors").stat().st_size <= 12e6
    assert model.nbytes <= 12e6
    assert model.config.family == "opt" and model.config.activation == "relu"


def test_few_neurons_fire(model, heldout):
    shares = {}

    def tap(name, tensor):
        if name.endswith("ffn.act"):
            shares[name] = np.mean(tensor != 0, dtype=np.float64)

    model.logits(model.encode(heldout)[:512], tap=tap)
    assert len(shares) == model.config.layers
    assert 0.005 < np.mean(list(shares.values())) <= 0.10


def test_sparsity_cost_less_than_three_percent():
    folder = embedded("tiny-opt")
    sparse = json.loads((folder / "training_curve.json").read_text())
    plain = json.loads((folder / "training_curve_plain.json").read_text())
    assert sparse[-1]["step"] == plain[-1]["step"]
    assert sparse[-1]["heldout_loss"] < 1.03 * plain[-1]["heldout_loss"]
    assert np.mean(sparse[-1]["heldout_active"]) <= 0.10


def test_heldout_perplexity_is_that_of_the_training_record(model, heldout):
    recorded = json.loads((embedded("tiny-opt") / "training_curve_continued.json").read_text())[-1]
    measured = perplexity(model, heldout[:60_000])
    # Other windows than in training, and the weights rounded to float16: near, not equal.
    assert measured.nats == pytest.approx(recorded["heldout_loss"], abs=0.25)
    shuffled = "".join(np.random.default_rng(0).permutation(list(heldout[:5_000])))
    assert perplexity(model, shuffled).nats > measured.nats + 1


def test_what_it_writes_is_made_of_words(model, heldout):
    vocabulary = set(re.findall(r"[a-z]+", heldout.lower()))
    text = "".join(model.generate("Once upon a time", max_new_tokens=200, seed=3))
    words = re.findall(r"[a-z]+", text.lower())
    assert len(words) > 60
    assert np.mean([word in vocabulary for word in words]) > 0.8


@pytest.mark.live
def test_transformers_loads_it_and_agrees(model, heldout):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded("tiny-opt")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(heldout[:800])["input_ids"]
    assert ids == model.encode(heldout[:800])
    with torch.no_grad():
        theirs = reference(torch.tensor([ids])).logits[0].numpy()
    ours = model.logits(ids)
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs.std()
    np.testing.assert_array_equal(ours.argmax(axis=-1), theirs.argmax(axis=-1))
