"""FATReLU: thresholds reach the sparsity that is wanted, and flash with them equals dense."""

import json
import shutil

import numpy as np
import pytest
from helpers_goldens import largest_relative
from helpers_models import CONFIGS, random_weights, write_model

import tinyflash
from benchmarks.fatrelu import counted_by_engine, held_by_token, measure, read_by_token
from tinyflash.families import read_config
from tinyflash.flash.activity import exact_note
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store, resident_weights
from tinyflash.flash.store.predictor_file import FILE as PREDICTOR
from tinyflash.flash.store.thresholds import thresholds_of, write_thresholds
from tinyflash.flash.store.verified import fingerprint, noted, verify_once
from tinyflash.flash.training import fatrelu
from tinyflash.flash.training.fatrelu import calibrate, with_thresholds
from tinyflash.training.language_model import next_token_loss
from tinyflash.training.tape import value_and_grad
from tinyflash.weights import bytes_of

# As in test_flash_feed_forward.py.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")

EXACT = 1e-12
WITHIN = 0.006  # of the wanted sparsity: SiLU's activations crowd at its minimum of -0.2785
FAMILIES = ("opt", "llama", "gpt2")  # ReLU; SiLU, gated; GELU


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """family -> (directory of a random model, its flash directory)."""
    place = tmp_path_factory.mktemp("models")
    paths = {name: write_model(place / name, CONFIGS[name], seed=3) for name in FAMILIES}
    return {
        name: (path, convert(path, place / f"{name}.flash", dtype="float32"))
        for name, path in paths.items()
    }


@pytest.fixture
def store(models, tmp_path):
    """A flash directory of the gated model, to write into."""
    return open_store(shutil.copytree(models["llama"][1], tmp_path / "llama.flash"))


def texts(seed=0, count=3, length=80):
    """Sequences of random token ids."""
    return list(np.random.default_rng(seed).integers(4, 300, (count, length)))


def dense_activity(model, sequences):
    """Who fires in a dense model: bool (tokens, F) for each layer.

    A gated activation is not zero unless that of its gate is, so `ffn.act` tells.
    """
    seen = [[] for _ in range(model.config.layers)]

    def tap(name, tensor):
        if name.endswith("ffn.act"):
            seen[int(name.split(".")[1])].append(tensor != 0)

    for ids in sequences:
        model.logits(ids, tap=tap)
    return [np.concatenate(active) for active in seen]


def resting(models, family, thresholds, sequences):
    """Share of neurons at rest in each layer of the dense model, with thresholds."""
    model = tinyflash.load(models[family][0])
    model.weights = with_thresholds(model.weights, thresholds)
    return [1 - active.mean() for active in dense_activity(model, sequences)]


# Calibration.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_the_wanted_sparsity_is_reached_in_every_layer(family, sparsity, models):
    steps = []
    thresholds = calibrate(
        open_store(models[family][1]), texts(), sparsity, lambda *done: steps.append(done)
    )
    assert steps == [(1, 2), (2, 2)]
    shares = resting(models, family, thresholds, texts())
    for threshold, share in zip(thresholds, shares, strict=True):
        if family == "opt" and sparsity == 0.3:  # half of its neurons rest without
            assert threshold == 0 and 0.4 < share < 0.6
        else:
            assert threshold > 0 and abs(share - sparsity) <= WITHIN


def test_a_wrong_quantile_does_not_pass_the_test_above(models, monkeypatch):
    right = fatrelu.quantile
    monkeypatch.setattr(fatrelu, "quantile", lambda counts, share: right(counts, 1 - share))
    thresholds = calibrate(open_store(models["llama"][1]), texts(), 0.6)
    for share in resting(models, "llama", thresholds, texts()):
        assert abs(share - 0.6) > 0.1


def test_later_layers_are_calibrated_behind_the_thresholds_of_earlier_ones(models, monkeypatch):
    store = open_store(models["llama"][1])
    right = calibrate(store, texts(), 0.9)
    monkeypatch.setattr(fatrelu, "with_threshold", lambda layer, i, threshold: layer)
    wrong = calibrate(store, texts(), 0.9)
    assert wrong[0] == right[0] and wrong[1] != right[1]
    monkeypatch.undo()
    shares = resting(models, "llama", wrong, texts())
    assert abs(shares[1] - 0.9) > abs(resting(models, "llama", right, texts())[1] - 0.9)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.77, 0.999])
def test_quantiles_of_a_histogram_are_those_of_its_numbers(share):
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal(40_001).astype(np.float32) * rng.choice([1e-20, 1, 1e9], 40_001)
    counts = fatrelu.histogram(numbers[:17].reshape(1, 17)) + fatrelu.histogram(numbers[17:])
    assert counts.sum() == len(numbers)
    found = fatrelu.quantile(counts, share)
    assert abs(np.mean(np.abs(numbers) < found) - share) <= 2e-3
    assert np.isclose(found, np.quantile(np.abs(numbers), share), rtol=5e-3)


@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 1.5, float("nan")])
def test_a_sparsity_that_means_nothing_is_refused(sparsity, models):
    with pytest.raises(ValueError, match="between 0 and 1") as error:
        calibrate(open_store(models["opt"][1]), texts(), sparsity)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("sequences", [[], [np.empty(0, dtype=np.int64)]])
def test_no_text_is_refused(sequences, models):
    with pytest.raises(ValueError, match="no token"):
        calibrate(open_store(models["opt"][1]), sequences, 0.5)


# Flash equals dense.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows, told", [(3, "read"), (300, "resident")])
@pytest.mark.parametrize("sparsity", [0.4, 0.8])
def test_flash_with_thresholds_equals_dense(family, rows, told, sparsity, models, tmp_path):
    path, flash = models[family]
    store = open_store(shutil.copytree(flash, tmp_path / "copy.flash"))
    thresholds = calibrate(store, texts(), sparsity)
    store = write_thresholds(store, thresholds)
    dense = tinyflash.load(path, dtype="float64")
    dense.weights = with_thresholds(dense.weights, thresholds)
    ids = texts(seed=5, count=1, length=30)[0]
    expected = dense.logits(ids)
    active = dense_activity(dense, [ids])

    memory = bytes_of(resident_weights(store, np.float64)) + 2 * rows * store.row_bytes
    flash = tinyflash.load(store.path, memory=memory, mode="window", k=3, dtype="float64")
    assert flash.flash.budget.activity == told
    cache = flash.new_cache()
    pieces, costs = [], []
    for first, n in [(0, 20), *ONE_BY_ONE]:
        pieces.append(flash.logits(ids[first : first + n], cache))
        costs.append(flash.flash.last_cost)
    assert largest_relative(expected, np.concatenate(pieces)) <= EXACT
    assert flash.flash.feed_forwards[0].exact_note == ""
    assert sum(cost.fired for cost in costs) == sum(map(np.count_nonzero, active))
    for t, cost in enumerate(costs[1:], start=20):
        assert cost.wanted == sum(np.count_nonzero(layer[t]) for layer in active)
    assert np.mean(active) < 1.15 - sparsity


ONE_BY_ONE = [(t, 1) for t in range(20, 30)]


def test_flash_that_forgets_the_thresholds_does_not_pass_the_test_above(models):
    path, flash = models["llama"]
    thresholds = calibrate(open_store(flash), texts(), 0.4)
    dense = tinyflash.load(path, dtype="float64")
    dense.weights = with_thresholds(dense.weights, thresholds)
    forgetful = tinyflash.load(flash, mode="window", k=3, dtype="float64")
    ids = texts(seed=5, count=1, length=30)[0]
    assert largest_relative(dense.logits(ids), forgetful.logits(ids)) > 1e-6
    assert forgetful.flash.feed_forwards[0].exact_note


@pytest.mark.parametrize("family", FAMILIES)
def test_a_threshold_of_zero_is_none(family, models):
    model = tinyflash.load(models[family][0], dtype="float64")
    ids = texts(count=1)[0]
    without = model.logits(ids)
    model.weights = with_thresholds(model.weights, [0, 0])
    np.testing.assert_array_equal(model.logits(ids), without)


def test_the_note_on_activity_is_empty_with_a_threshold():
    config = read_config(CONFIGS["llama"])
    assert exact_note(config) and not exact_note(config, 0.1)


# In a flash directory.


def test_thresholds_are_written_and_read_back(store):
    assert thresholds_of(store) is None
    before = store.manifest
    written = write_thresholds(store, [0.1, 2])
    assert thresholds_of(written) == [float(np.float32(0.1)), 2.0]
    assert thresholds_of(open_store(store.path)) == thresholds_of(written)
    assert written.manifest | {"thresholds": None} == before  # nothing else has changed
    assert thresholds_of(write_thresholds(written, None)) is None


def test_a_write_that_fails_leaves_the_old_thresholds(store, monkeypatch):
    store = write_thresholds(store, [0.1, 0.2])
    content = (store.path / "flash.json").read_bytes()

    def full(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="full"):
            write_thresholds(store, [0.3, 0.4])
    assert (store.path / "flash.json").read_bytes() == content
    assert thresholds_of(open_store(store.path)) == thresholds_of(store)
    write_thresholds(store, [0.3, 0.4])  # what the failure left behind is in nobody's way


def test_other_thresholds_take_predictors_away(store):
    file = store.path / PREDICTOR
    file.write_bytes(b"{}      ")
    manifest = dict(store.manifest) | {"predictor": {"layers": []}}
    manifest["files"] = manifest["files"] | {
        PREDICTOR: {"bytes": 8, "sha256": "not looked at, for it ends in .safetensors"}
    }
    (store.path / "flash.json").write_text(json.dumps(manifest))
    same = write_thresholds(open_store(store.path), None)
    assert "predictor" in same.manifest and file.exists()
    other = write_thresholds(same, [0.1, 0.2])
    assert "predictor" not in other.manifest and PREDICTOR not in other.manifest["files"]
    assert not file.exists() and noted(other) is None


def test_a_store_need_not_be_verified_again(store, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    verify_once(store)
    written = write_thresholds(store, [0.1, 0.2])
    assert noted(written) == fingerprint(written)


@pytest.mark.parametrize(
    "thresholds, words",
    [
        ([0.1], "one of 1"),
        ([0.1, 0.2, 0.3], "one of 3"),
        (0.1, "not 0.1"),
        ({"0": 0.1, "1": 0.2}, "not {"),
        ([0.1, -0.2], "layer 1 is -0.2"),
        ([float("nan"), 0.1], "layer 0 is nan"),
        ([0.1, float("inf")], "layer 1 is inf"),
        (["0.1", 0.1], "layer 0 is '0.1'"),
        ([0.1, True], "layer 1 is True"),
    ],
)
def test_what_are_no_thresholds_is_refused(thresholds, words, store):
    before = (store.path / "flash.json").read_bytes()
    weights = random_weights(store.config)
    for attempt in (
        lambda: write_thresholds(store, thresholds),
        lambda: with_thresholds(weights, thresholds),
    ):
        with pytest.raises(ValueError) as error:
            attempt()
        assert words in str(error.value) and str(error.value).count(". ") == 0
    assert (store.path / "flash.json").read_bytes() == before
    damaged = json.loads(before) | {"thresholds": thresholds}
    (store.path / "flash.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError):
        thresholds_of(open_store(store.path))


# Training through a threshold.


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_gradient_passes_the_neurons_that_fire_and_no_others(family):
    config = read_config(CONFIGS[family])
    weights = {n: w.astype(np.float64) for n, w in random_weights(config, seed=1).items()}
    thresholds = {f"layers.{i}.ffn.threshold": np.array(0.25) for i in range(config.layers)}
    ids = np.array([texts(length=9)[0][:9]])

    def loss(some):
        return next_token_loss({**weights, **some, **thresholds}, config, ids)

    part = "gate" if config.gated else "up"
    name = f"layers.1.ffn.{part}.weight"
    gradient = value_and_grad(loss, {name: weights[name]})[1][name]
    model_rests = no_gradient = 0
    rng = np.random.default_rng(0)
    for _ in range(12):  # against differences
        j, d = rng.integers(config.ffn_width), rng.integers(config.width)
        step = np.zeros_like(weights[name])
        step[j, d] = 1e-6
        high, low = (loss({name: weights[name] + sign * step}) for sign in (1, -1))
        difference = float(high - low) / 2e-6
        assert abs(difference - gradient[j, d]) <= 1e-6 + 1e-4 * abs(difference)
        model_rests += difference == 0
        no_gradient += gradient[j, d] == 0
    assert model_rests == no_gradient
    assert np.any(gradient != 0)


# The benchmark's counts.


def test_read_and_held_are_the_papers_sets():
    active = np.random.default_rng(2).random((20, 13)) < 0.3
    sets = [set(np.flatnonzero(row)) for row in active]
    for k in (1, 2, 5, 30):
        read, held = read_by_token(active, k), held_by_token(active, k)
        for t in range(20):
            before = set().union(*sets[max(0, t - k) : t])
            assert read[t] == len(sets[t] - before)
            assert held[t] == len(set().union(*sets[max(0, t - k + 1) : t + 1]))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_bytes_by_count_are_the_engines(family, k, models):
    path, flash = models[family]
    store = open_store(flash)
    thresholds = calibrate(store, texts(), 0.8)
    model = tinyflash.load(path, dtype="float32")
    model.weights = with_thresholds(model.weights, thresholds)
    ids = texts(seed=6, count=1, length=25)[0]
    read = sum(read_by_token(active, k) for active in dense_activity(model, [ids]))
    counted = counted_by_engine(store, thresholds, ids, k)
    fetched = store.row_bytes * (len(store.parts) - 1) // len(store.parts)
    assert np.abs(counted - read * fetched).sum() <= 0.02 * counted.sum()  # its cache is float16
    assert thresholds_of(open_store(flash)) is None


def test_the_benchmark_measures_what_it_calibrates(models):
    path, flash = models["llama"]
    store = open_store(flash)
    done = []
    whole, sparse = measure(
        store, texts(), texts(), (0, 0.7), lambda *numbers: done.append(numbers)
    )
    assert done[-1] == (4, 4)
    assert whole["thresholds"] is None and whole["active"] == 1 == whole["held_5"]
    assert whole["window_1_bytes"] == 0 and whole["without_bytes"] * 3 == whole["dense_bytes"] * 2
    assert sparse["thresholds"] == calibrate(store, texts(), 0.7)
    assert abs(sparse["active"] - 0.3) < 0.02
    assert 0 < sparse["window_5_bytes"] < sparse["window_1_bytes"] < sparse["without_bytes"]
    model, losses = tinyflash.load(path), []
    for result in (whole, sparse):
        if result["thresholds"]:
            model.weights = with_thresholds(model.weights, result["thresholds"])
        for ids in texts():
            logits = model.logits(ids[:-1]).astype(np.float64)
            log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            losses.append(-log_p[np.arange(len(ids) - 1), ids[1:]])
        assert np.isclose(result["perplexity"], np.exp(np.mean(losses)), rtol=1e-4)
        losses.clear()
