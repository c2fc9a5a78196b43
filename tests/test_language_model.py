"""Training: what it computes, that it resumes bit for bit, and that it learns."""

import errno
import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tinyflash.families import read_config
from tinyflash.training import language_model, run_files
from tinyflash.training.language_model import (
    Recipe,
    Text,
    heldout_loss,
    loss_and_activity,
    next_penalty,
    next_token_loss,
    random_weights,
    sample_batch,
    train,
)

CONFIG = read_config(
    {
        "model_type": "opt",
        "vocab_size": 67,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "ffn_dim": 40,
        "max_position_embeddings": 32,
    }
)
RECIPE = Recipe(steps=9, batch=3, length=20, warmup=2, active_share=0.2, seed=5)


def random_ids(length=3000, seed=1):
    return np.random.default_rng(seed).integers(0, 67, length).astype(np.uint16)


def without_seconds(curve):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in curve]


class Killed(Exception):
    pass


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    ids, heldout = random_ids(), random_ids(150, seed=2)
    monkeypatch.setattr(language_model, "SAVE_EVERY", 4)
    text = Text(ids, heldout)
    weights, curve = train(CONFIG, text, RECIPE, tmp_path / "a", workers=2)

    def die_at_step_6(row):
        if row["step"] == 6:
            raise Killed

    with pytest.raises(Killed):
        train(CONFIG, text, RECIPE, tmp_path / "b", report=die_at_step_6, workers=1)
    resumed, resumed_curve = train(CONFIG, text, RECIPE, tmp_path / "b", workers=1)
    assert without_seconds(curve) == without_seconds(resumed_curve)
    assert list(weights) == list(resumed)
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, resumed[name], err_msg=name)


def test_another_seed_gives_other_weights(tmp_path):
    ids = random_ids()
    first, _ = train(CONFIG, Text(ids), Recipe(2, 2, length=20, warmup=1), tmp_path / "a")
    second, _ = train(CONFIG, Text(ids), Recipe(2, 2, length=20, warmup=1, seed=1), tmp_path / "b")
    assert not np.array_equal(first["embed.weight"], second["embed.weight"])


def test_a_periodic_text_is_learned(tmp_path):
    ids = np.tile(np.arange(10, 23, dtype=np.uint16), 40)
    recipe = Recipe(steps=60, batch=4, length=26, warmup=5, peak=1e-2)
    weights, curve = train(CONFIG, Text(ids), recipe, tmp_path / "run")
    assert curve[0]["loss"] > 3.5  # near log 67 = 4.2, the loss of a guess
    assert curve[-1]["loss"] < 0.5
    assert heldout_loss(weights, CONFIG, ids[:200], 26)[0] < 0.5


def test_the_l1_term_makes_activations_zero(tmp_path):
    ids = random_ids()
    shares = {}
    for wanted in (None, 0.05):
        recipe = Recipe(steps=120, batch=2, length=20, warmup=5, peak=1e-2, active_share=wanted)
        _, curve = train(CONFIG, Text(ids), recipe, tmp_path / str(wanted))
        shares[wanted] = curve[-1]["active"]
    assert shares[0.05] < 0.15
    assert shares[None] > 2 * shares[0.05]


def test_the_loss_is_the_cross_entropy_of_the_next_token():
    weights = random_weights(CONFIG, seed=3)
    ids = random_ids(42).reshape(2, 21).astype(np.int64)
    from tinyflash.transformer import forward

    expected = []
    for row in ids:
        logits = forward(weights, CONFIG, row[:-1]).astype(np.float64)
        for t, target in enumerate(row[1:]):
            p = np.exp(logits[t]) / np.exp(logits[t]).sum()
            expected.append(-np.log(p[target]))
    assert float(next_token_loss(weights, CONFIG, ids)) == pytest.approx(
        np.mean(expected), rel=1e-5
    )


def test_the_penalty_is_added_and_the_share_counted():
    weights = random_weights(CONFIG, seed=3)
    ids = random_ids(21)[None].astype(np.int64)
    activations = []

    def tap(name, tensor):
        if name.endswith("ffn.act"):
            activations.append(tensor)

    bare = float(next_token_loss(weights, CONFIG, ids, tap))
    l1 = np.mean([np.abs(act).mean() for act in activations])
    loss, cross_entropy, shares = loss_and_activity(weights, CONFIG, ids, 0.5)
    assert cross_entropy == pytest.approx(bare, rel=1e-6)
    assert float(loss) == pytest.approx(bare + 0.5 * l1, rel=1e-6)
    np.testing.assert_allclose(shares, [(act > 0).mean() for act in activations])


def test_the_penalty_follows_the_share():
    assert next_penalty(0.2, 0.3, wanted=0.1) == pytest.approx(0.202)
    assert next_penalty(0.2, 0.05, wanted=0.1) == pytest.approx(0.2 / 1.02)
    assert next_penalty(0.2, 0.3, wanted=None) == 0.0


def test_batches_depend_on_seed_and_step_alone():
    ids = random_ids()
    np.testing.assert_array_equal(sample_batch(ids, RECIPE, 4), sample_batch(ids, RECIPE, 4))
    assert not np.array_equal(sample_batch(ids, RECIPE, 4), sample_batch(ids, RECIPE, 5))
    assert sample_batch(ids, RECIPE, 4).shape == (3, 21)


def test_every_window_of_the_text_can_be_drawn():
    ids = np.arange(22, dtype=np.uint16)  # two windows of 21
    starts = {int(row[0]) for step in range(20) for row in sample_batch(ids, RECIPE, step)}
    assert starts == {0, 1}


@pytest.mark.parametrize(
    ("ids", "recipe", "words"),
    [
        (random_ids(20), RECIPE, "fewer than one training sequence"),
        (random_ids(), Recipe(steps=1, length=33), "does not fit the model's context"),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path, ids, recipe, words):
    with pytest.raises(ValueError, match=words):
        train(CONFIG, Text(ids), recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_shape_or_recipe_is_not_resumed(tmp_path):
    from dataclasses import replace

    train(CONFIG, Text(random_ids()), replace(RECIPE, steps=3), tmp_path)
    with pytest.raises(ValueError, match=r"recipe differs in steps"):
        train(CONFIG, Text(random_ids()), RECIPE, tmp_path)
    wider = replace(CONFIG, ffn_width=44)
    with pytest.raises(ValueError, match=r"config differs in ffn_width"):
        train(wider, Text(random_ids()), replace(RECIPE, steps=3), tmp_path)


def test_a_damaged_state_is_said(tmp_path):
    train(CONFIG, Text(random_ids()), RECIPE, tmp_path)
    path = tmp_path / run_files.STATE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be resumed"):
        train(CONFIG, Text(random_ids()), RECIPE, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda run, arrays: {"run": "[" * 100_000},
        lambda run, arrays: {"run": "[]"},
        lambda run, arrays: {"run": json.dumps(run | {"step": -1})},
        lambda run, arrays: {"run": json.dumps(run | {"step": "x"})},
        lambda run, arrays: {"run": json.dumps(run | {"curve": [3]})},
        lambda run, arrays: {"run": json.dumps(run | {"curve": [run["curve"][0]] * 20})},
        lambda run, arrays: {"run": json.dumps(run | {"seconds": None})},
        lambda run, arrays: {"run": json.dumps(run | {"penalty": []})},
        lambda run, arrays: {"run": json.dumps({k: v for k, v in run.items() if k != "penalty"})},
        lambda run, arrays: arrays.update({"surprise": arrays.popitem()[1]}),
        lambda run, arrays: arrays.update({"weights/surprise": arrays.popitem()[1]}),
        lambda run, arrays: arrays.update({"third/x": np.zeros(1, dtype=np.float32)}),
        lambda run, arrays: arrays.update({next(iter(arrays)): np.zeros(1, dtype=np.float32)}),
    ],
)
def test_a_state_that_is_none_of_ours_is_said(tmp_path, change):
    train(CONFIG, Text(random_ids()), RECIPE, tmp_path)
    path = tmp_path / run_files.STATE
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    metadata = change(json.loads(metadata["run"]), arrays) or metadata
    save_file(arrays, path, metadata)
    with pytest.raises(ValueError, match="cannot be resumed from") as refused:
        train(CONFIG, Text(random_ids()), RECIPE, tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_more_weights_than_memory_are_refused_before_one_is_drawn():
    from dataclasses import replace

    with pytest.raises(ValueError, match=r"this machine has [\d.,]+ GB; choose smaller sizes"):
        random_weights(replace(CONFIG, vocab_size=2**39), 0)


def test_a_write_that_breaks_off_leaves_the_old_state(tmp_path, monkeypatch):
    train(CONFIG, Text(random_ids()), RECIPE, tmp_path)
    before = (tmp_path / run_files.STATE).read_bytes()

    def full_disk(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    weights, optimizer, run = run_files.load_state(tmp_path)
    with pytest.raises(OSError, match="training_state.safetensors cannot be written: No space"):
        run_files.save_state(tmp_path, weights, optimizer, run)
    assert (tmp_path / run_files.STATE).read_bytes() == before
    assert os.listdir(tmp_path) == [run_files.STATE]


def test_the_state_keeps_the_curve_as_data(tmp_path):
    _, curve = train(CONFIG, Text(random_ids()), RECIPE, tmp_path)
    _, _, run = run_files.load_state(tmp_path)
    assert run["curve"] == json.loads(json.dumps(curve))
    assert [row["step"] for row in curve] == list(range(1, 10))
    assert {"loss", "active", "tokens", "seconds", "learning_rate"} <= set(curve[0])
