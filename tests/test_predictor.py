"""The activity predictor: what it predicts, its file, its training, and the command's sentences."""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from helpers_faults import Failing
from helpers_models import CONFIGS, TOKENIZER_TEXT, write_model

from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.predictor import Predictor, logit, sigmoid
from tinyflash.flash.store import predictor_file as files
from tinyflash.flash.store import verified
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import check_store, open_store
from tinyflash.flash.store.predictor_file import read_predictors, write_predictors
from tinyflash.flash.training import run as command
from tinyflash.flash.training import run_state as predictor_run
from tinyflash.flash.training.learning import (
    Recipe,
    Recorded,
    balanced_loss,
    choose_threshold,
    first_guess,
    loss_gradients,
    train_predictor_of,
)
from tinyflash.flash.training.report import distinct_in_windows, held_by_window, measure
from tinyflash.low_rank import truncated_svd
from tinyflash.matrices.half import HalfMatrix
from tinyflash.training.tape import value_and_grad

F, D, R = 40, 24, 5


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictor")
    return convert(write_model(folder / "opt", CONFIGS["opt"]), folder / "opt.flash")


@pytest.fixture
def store(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "opt.flash")
    return open_store(tmp_path / "opt.flash")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TOKENIZER_TEXT * 16, encoding="utf-8")
    return file


def random_predictor(rng, threshold=0.3, rank=R, F=F, D=D):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float16)  # noqa: E731
    factors = HalfMatrix(draw(rank, D), "down"), HalfMatrix(draw(F, rank), "up")
    return Predictor(*factors, draw(F).astype(np.float32), threshold)


def two_predictors(seed=0):
    rng = np.random.default_rng(seed)
    return [random_predictor(rng), random_predictor(rng, threshold=0.7, rank=3)]


ABOUT = {"layers": [{"active": 0.1}, {"active": 0.2}], "text": "a text", "tokens": 9}


def planted(rng, n=1500, F=64, D=32, rank=8, noise=0.1, wanted=0.1):
    """Activity that a predictor of `rank` can mostly tell: (Recorded, projection, bias, active)."""
    projection = rng.standard_normal((F, rank)) @ rng.standard_normal((rank, D)) / rank**0.5
    projection = (projection + noise * rng.standard_normal((F, D))).astype(np.float32)
    inputs = rng.standard_normal((n, D)).astype(np.float16)
    pre = inputs.astype(np.float32) @ projection.T
    bias = -np.quantile(pre, 1 - wanted, axis=0).astype(np.float32)
    active = pre + bias > 0
    return Recorded(inputs, np.packbits(active, axis=1), F), projection, bias, active


def errors(predictor, recorded, active):
    predicted = predictor.scores(recorded.inputs.astype(np.float32)) > logit(predictor.threshold)
    return 1 - predicted[active].mean(), predicted[~active].mean()


def test_the_predicted_neurons_are_those_whose_probability_exceeds_the_threshold():
    rng = np.random.default_rng(1)
    for factors in ("float16", "arrays"):
        predictor = random_predictor(rng)
        if factors == "arrays":
            dense = predictor.down.dense(), predictor.up.dense()
            predictor = Predictor(*dense, predictor.bias, predictor.threshold)
        x = rng.standard_normal((7, D)).astype(np.float32)
        spent = TokenCounters()
        active, known = predictor.find(x, spent)
        assert known == {} and predictor.knows == () and spent.compute_ms > 0
        assert active.shape == (7, F) and active.dtype == bool and 0.1 < active.mean() < 0.95
        down, up = (
            np.asarray(predictor.down.dense() if factors == "float16" else predictor.down),
            np.asarray(predictor.up.dense() if factors == "float16" else predictor.up),
        )
        for t in range(7):
            for j in range(F):
                score = sum(
                    float(up[j, r]) * sum(float(down[r, d]) * float(x[t, d]) for d in range(D))
                    for r in range(R)
                ) + float(predictor.bias[j])
                assert active[t, j] == (1 / (1 + np.exp(-score)) > 0.3)
    assert predictor.nbytes == 4 * (R * D + F * R + F)
    assert random_predictor(rng).nbytes == 2 * (R * D + F * R) + 4 * F


def test_logit_undoes_sigmoid():
    for score in (-29.0, -3.5, 0.0, 0.1, 12.0):
        assert logit(sigmoid(score)) == pytest.approx(score, abs=1e-6)


def test_factors_that_do_not_fit_are_refused():
    rng = np.random.default_rng(2)
    good = random_predictor(rng)
    with pytest.raises(ValueError, match="does not fit together"):
        Predictor(good.down, good.up, good.bias[1:])
    with pytest.raises(ValueError, match="between 0 and 1"):
        Predictor(good.down, good.up, good.bias, 1.0)


def test_what_is_written_is_read(store):
    check_store(store)
    verified.note_verified(store)
    assert read_predictors(store) is None
    predictors = two_predictors()
    written = write_predictors(store, predictors, ABOUT)
    assert written.manifest["predictor"]["layers"][1] == {
        "rank": 3, "threshold": 0.7, "active": 0.2,
    }  # fmt: skip
    x = np.random.default_rng(3).standard_normal((4, D))
    for again in (written, open_store(store.path)):
        check_store(again)
        assert verified.noted(again) == verified.fingerprint(again)  # not hashed once more
        for dtype in (np.float32, np.float64):
            for before, after in zip(predictors, read_predictors(again, dtype), strict=True):
                assert after.threshold == before.threshold
                assert after.nbytes == before.nbytes or dtype == np.float64
                assert after.bias.dtype == dtype
                difference = before.scores(x.astype(dtype)) - after.scores(x.astype(dtype))
                assert np.array_equal(difference, np.zeros((4, F), dtype=dtype))
    assert not list(store.path.glob("*.part"))


def test_a_store_that_was_not_verified_is_not_noted_as_such(store):
    written = write_predictors(store, two_predictors(), ABOUT)
    assert verified.noted(written) is None


@pytest.mark.parametrize("call", ["fsync", "replace", "link", "open"])
@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_store_as_it_was(
    store, monkeypatch, call, trained_before, error
):
    if trained_before:
        store = write_predictors(store, two_predictors(5), ABOUT)
    before = {file.name: file.read_bytes() for file in store.path.iterdir()}
    for at in range(1, 9):
        with monkeypatch.context() as patch:
            Failing(patch, at, error, [call])
            try:
                write_predictors(store, two_predictors(6), ABOUT)
            except (OSError, KeyboardInterrupt) as caught:
                assert caught is error or str(store.path) in str(caught)
                assert {file.name: file.read_bytes() for file in store.path.iterdir()} == before
                continue
        break
    assert at > 1 or call == "link"
    assert len(read_predictors(open_store(store.path))) == 2


def test_a_killed_write_leaves_a_store_that_opens(store):
    """Killed at every change of a name, it has its old predictors, the new ones, or none."""
    held = []
    for killed in range(1, 20):
        copy = store.path.with_name(f"copy{killed}")
        shutil.copytree(store.path, copy)
        old = write_predictors(open_store(copy), two_predictors(5), ABOUT)
        pid = os.fork()
        if pid == 0:
            Failing(
                pytest.MonkeyPatch(), killed, lambda: os._exit(9), ["replace", "link", "unlink"]
            )
            write_predictors(old, two_predictors(6), ABOUT)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        left = open_store(copy)
        check_store(left)
        predictors = read_predictors(left)
        new = predictors is not None and left.manifest != old.manifest
        held.append("none" if predictors is None else "new" if new else "old")
        check_store(write_predictors(left, two_predictors(6), ABOUT))  # and it can be done again
        if code == 0:
            break
    assert held == sorted(held, key=["old", "none", "new"].index) and set(held) >= {"none", "new"}


def flip(store):
    with open(store.path / files.FILE, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def of_other_sizes(store):
    rng = np.random.default_rng(7)
    other = replace(store, config=replace(store.config, ffn_width=F + 1))
    odd = [random_predictor(rng, F=F + 1) for _ in range(2)]
    write_predictors(other, odd, ABOUT)


def of_more_layers(store):
    manifest = json.loads((store.path / "flash.json").read_text())
    manifest["predictor"]["layers"].append(manifest["predictor"]["layers"][0])
    files.write_manifest(store.path, manifest)


def of_another_rank(store):
    manifest = json.loads((store.path / "flash.json").read_text())
    manifest["predictor"]["layers"][0]["rank"] += 1
    files.write_manifest(store.path, manifest)


def without_threshold(store):
    manifest = json.loads((store.path / "flash.json").read_text())
    manifest["predictor"]["layers"][0]["threshold"] = None
    files.write_manifest(store.path, manifest)


def without_file(store):
    manifest = json.loads((store.path / "flash.json").read_text())
    del manifest["files"][files.FILE]
    files.write_manifest(store.path, manifest)


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (flip, "SHA-256"),
        (of_other_sizes, "does not hold the predictors of this model"),
        (of_more_layers, "one predictor for each of 2 layers"),
        (of_another_rank, "does not hold the predictors of this model"),
        (without_threshold, "one predictor for each of 2 layers"),
        (without_file, "train the predictors again"),
    ],
)
def test_damage_is_one_sentence(store, damage, sentence):
    store = write_predictors(store, two_predictors(), ABOUT)
    damage(store)
    with pytest.raises(ValueError, match=sentence) as refusal:
        read_predictors(open_store(store.path))
    assert str(refusal.value).count(". ") == 0


def test_what_does_not_fit_is_not_written(store):
    before = sorted(file.name for file in store.path.iterdir())
    rng = np.random.default_rng(8)
    with pytest.raises(ValueError, match="each of 2 layers"):
        write_predictors(store, [random_predictor(rng)], ABOUT)
    with pytest.raises(ValueError, match="this model takes"):
        write_predictors(store, [random_predictor(rng, F=F + 1) for _ in range(2)], ABOUT)
    good = random_predictor(rng)
    large = Predictor(good.down.dense() * 1e6, good.up, good.bias)
    with pytest.raises(ValueError, match="Inf or NaN"):
        write_predictors(store, [good, large], ABOUT)
    assert sorted(file.name for file in store.path.iterdir()) == before


def test_the_balanced_loss_is_its_formula():
    rng = np.random.default_rng(9)
    scores, active = rng.standard_normal((6, 10)), rng.random((6, 10)) < 0.2
    p = active.mean()
    by_hand = 0.0
    for s, fired in zip(scores.ravel(), active.ravel(), strict=True):
        by_hand += np.log1p(np.exp(-s)) / (2 * p) if fired else np.log1p(np.exp(s)) / (2 * (1 - p))
    assert balanced_loss(scores, active, p) == pytest.approx(by_hand / 60, rel=1e-6)
    zero = np.zeros((6, 10), dtype=np.float64)
    assert balanced_loss(zero, active, p) == pytest.approx(np.log(2), rel=1e-6)
    fired_part = balanced_loss(np.where(active, 0.0, -800.0), active, p)
    assert fired_part == pytest.approx(np.log(2) / 2, rel=1e-6)  # both kinds weigh the same


def test_gradients_by_hand_are_the_tapes():
    rng = np.random.default_rng(10)
    factors = {
        "down": rng.standard_normal((R, D)).astype(np.float32),
        "up": rng.standard_normal((F, R)).astype(np.float32),
        "bias": rng.standard_normal(F).astype(np.float32),
    }
    x = rng.standard_normal((11, D)).astype(np.float32)
    active = rng.random((11, F)) < 0.2

    def loss(traced):
        scores = (x @ traced["down"].T) @ traced["up"].T + traced["bias"]
        return balanced_loss(scores, active, 0.2)

    _, expected = value_and_grad(loss, factors)
    found = loss_gradients(factors, x, active, 0.2)
    for name, gradient in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], gradient, rtol=2e-5, atol=1e-6)
    wrong = loss_gradients(factors, x, ~active, 0.2)  # the comparison can fail
    assert not np.allclose(wrong["up"], expected["up"], rtol=2e-2, atol=1e-4)


def test_the_svd_is_nearly_the_best_copy():
    rng = np.random.default_rng(11)
    matrix = rng.standard_normal((60, 30)).astype(np.float32) @ np.diag(0.8 ** np.arange(30))
    matrix = matrix.astype(np.float32)
    for rank in (1, 7, 30):
        down, up = truncated_svd(matrix, rank)
        assert down.shape == (rank, 30) and up.shape == (60, rank)
        np.testing.assert_allclose(down @ down.T, np.eye(rank), atol=1e-5)
        best = np.sqrt(np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2))
        assert np.linalg.norm(matrix - up @ down) <= 1.02 * best + 1e-3


def test_beginning_with_the_svd_beats_random_factors(monkeypatch):
    rng = np.random.default_rng(12)
    recorded, projection, bias, active = planted(rng)
    wanted = Recipe(rank=8, epochs=2)

    def needless(predictor):
        threshold = choose_threshold(predictor, recorded, 0.05)
        return errors(Predictor(predictor.down, predictor.up, predictor.bias, threshold),
                      recorded, active)[1]  # fmt: skip

    with_svd = needless(train_predictor_of(recorded, projection, bias, wanted))
    monkeypatch.setattr(
        "tinyflash.flash.training.learning.truncated_svd",
        lambda matrix, rank, seed: (
            rng.standard_normal((rank, 32)).astype(np.float32),
            rng.standard_normal((64, rank)).astype(np.float32),
        ),
    )
    without = needless(train_predictor_of(recorded, projection, bias, wanted))
    assert with_svd < 0.05 < 2 * with_svd + 0.1 < without


def test_training_lowers_the_loss():
    rng = np.random.default_rng(13)
    recorded, projection, bias, active = planted(rng, noise=0.6)
    recipe = Recipe(rank=8, epochs=4)
    x = recorded.inputs.astype(np.float32)
    share = recorded.share()
    assert share == active.mean()
    first = first_guess(projection, bias, x, active, share, recipe)
    before = balanced_loss(x @ first["down"].T @ first["up"].T + first["bias"], active, share)
    after = balanced_loss(
        train_predictor_of(recorded, projection, bias, recipe).scores(x), active, share
    )
    assert after < 0.97 * before < before < np.log(2)


def test_the_threshold_misses_what_it_may_on_its_own_text():
    rng = np.random.default_rng(14)
    recorded, projection, bias, active = planted(rng, noise=0.5)
    trained = train_predictor_of(recorded, projection, bias, Recipe(rank=8))
    few = 1 / np.count_nonzero(active)
    for wanted in (0.01, 0.05, 0.3):
        threshold = choose_threshold(trained, recorded, wanted)

        def missed(threshold):
            moved = Predictor(trained.down, trained.up, trained.bias, threshold)
            return errors(moved, recorded, active)[0]

        assert wanted - few - 1e-9 <= missed(threshold) <= wanted + 1e-9
        assert missed(sigmoid(logit(threshold) + 0.3)) > wanted + few  # a fault would be seen
        assert missed(sigmoid(logit(threshold) - 0.3)) < wanted - few


def test_a_layer_in_which_nobody_fires():
    rng = np.random.default_rng(15)
    recorded, projection, bias, _ = planted(rng, n=40)
    silent = Recorded(recorded.inputs, np.zeros_like(recorded.bits), recorded.F)
    trained = train_predictor_of(silent, projection, bias - 100, Recipe(rank=4))
    assert choose_threshold(trained, silent, 0.05) == 0.5
    measured = measure(trained, silent, [40])
    assert measured["active"] == measured["false_negatives"] == 0
    assert np.isfinite(trained.bias).all()


def test_measured_shares_and_windows_are_what_counting_gives():
    rng = np.random.default_rng(16)
    lengths = [20, 13, 16]
    recorded, projection, bias, active = planted(rng, n=sum(lengths), noise=0.8)
    trained = train_predictor_of(recorded, projection, bias, Recipe(rank=4))
    measured = measure(trained, recorded, lengths)
    predicted = trained.scores(recorded.inputs.astype(np.float32)) > 0
    assert measured["active"] == pytest.approx(active.mean())
    assert measured["predicted"] == pytest.approx(predicted.mean())
    assert measured["false_negatives"] == pytest.approx((~predicted[active]).mean())
    assert measured["false_positives"] == pytest.approx(predicted[~active].mean())
    for k in range(1, 13):
        held = [
            len(set(np.flatnonzero(part[t - k + 1 : t + 1].any(axis=0))))
            for part in np.split(predicted, np.cumsum(lengths)[:-1])
            for t in range(k - 1, len(part))
        ]
        assert measured["window"]["mean"][k - 1] == pytest.approx(np.mean(held))
        assert measured["window"]["most"][k - 1] == max(held)
    json.dumps(measured)


def test_a_window_of_one_token_holds_what_it_uses():
    predicted = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=bool)
    held = distinct_in_windows(predicted)
    assert held[:, 0].tolist() == [1, 1, 2] and held[:, 1].tolist() == [1, 2, 2]
    assert held[2, 2] == 3
    assert held_by_window([held])["mean"][:3] == [4 / 3, 2.0, 3.0]


def train(store, file, report=None, **settings):
    """`train_predictor` on a store and a text; `report` is told of its layers."""

    @contextmanager
    def progress(what, unit=None):
        silent = lambda done, total, **numbers: None  # noqa: E731
        yield report if report and what == "Predictors" else silent

    given = {"model": str(store.path), "text": [str(file)], "ranks": "6", "progress": progress}
    return command.train_predictor(**given | settings)


def test_the_command_trains_every_layer(store, text):
    result = train(store, text)
    json.dumps(result)
    assert len(result["layers"]) == 2 and result["tokens"]["train"] > result["tokens"]["heldout"]
    trained = open_store(store.path)
    check_store(trained)
    assert [predictor.rank for predictor in read_predictors(trained)] == [6, 6]
    assert trained.manifest["predictor"]["layers"] == result["layers"]
    assert trained.manifest["predictor"]["tokens"] == result["tokens"]["train"]
    for layer in result["layers"]:
        assert len(layer["window"]["mean"]) == len(layer["window"]["most"]) == 12
        # The text repeats itself, so what is held out is like what was learned.
        assert layer["false_negatives"] < 0.1 and layer["false_positives"] < 0.5
    assert not os.path.exists(f"{store.path}.training")


def test_what_is_recorded_is_what_the_model_does(store):
    from tinyflash.flash.reading.reader import FlashReader
    from tinyflash.flash.store.directory import resident_weights
    from tinyflash.flash.training.layer_by_layer import embedded_sequences, layer_weights
    from tinyflash.model import load

    ids = [np.array([2, 17, 9, 30, 8, 21], dtype=np.int64), np.array([2, 5], dtype=np.int64)]
    model, weights = load(store.path), resident_weights(store)
    taps = [{}, {}]
    dense = load(store.path.parent / "opt") if (store.path.parent / "opt").exists() else None
    assert dense is None and model.flash
    stream = embedded_sequences(weights, store.config, ids)
    for n, sequence in enumerate(ids):
        model.logits(sequence, tap=taps[n].__setitem__)
    with FlashReader(store.ffn_path) as reader:
        for i in range(2):
            layer = layer_weights(store, reader, weights, i)
            recorded = command.record_layer(layer, store.config, i, stream)
            x, active = recorded.batch(slice(0, 8))
            seen = np.concatenate([tap[f"layers.{i}.ffn.norm"] for tap in taps])
            np.testing.assert_allclose(x, seen, rtol=2e-3, atol=1e-3)
            pre = seen @ layer[f"layers.{i}.ffn.up.weight"].T + layer[f"layers.{i}.ffn.up.bias"]
            clear = np.abs(pre) > 1e-4
            assert np.array_equal(active[clear], (pre > 0)[clear])
            for n in range(2):
                np.testing.assert_allclose(
                    stream[n], taps[n][f"layers.{i}.resid_post"], rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(store, text, tmp_path, killed_after):
    whole = tmp_path / "whole.flash"
    shutil.copytree(store.path, whole)
    expected = train(open_store(whole), text)

    def kill(done, total, **numbers):
        if done == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, text, kill)
    assert read_predictors(open_store(store.path)) is None
    done = []
    resumed = train(store, text, lambda *progress, **numbers: done.append(progress))
    assert done == [(2, 2)][: 2 - killed_after]
    assert resumed["layers"] == expected["layers"]
    assert (store.path / files.FILE).read_bytes() == (whole / files.FILE).read_bytes()


def test_another_run_is_not_resumed_by_mistake(store, text):
    def kill(done, total, **numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, text, kill)
    with pytest.raises(ValueError, match="whose recipes differ"):
        train(store, text, ranks="5")
    state = store.path.with_name(f"{store.path.name}.training")
    (state / predictor_run.STREAM).write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be resumed from"):
        train(store, text)


def test_ranks_are_a_number_or_groups(store):
    config = replace(store.config, layers=8, width=4096, ffn_width=16384)
    parse = command.parse_ranks
    assert parse("128", config) == [128] * 8
    assert parse("6x128,2x1024", config) == [128] * 6 + [1024] * 2
    assert parse(None, config) == [128] * 7 + [1024]
    assert parse(None, replace(config, layers=32)) == [128] * 28 + [1024] * 4
    llama = parse(None, replace(config, family="llama", layers=32, gated=True))
    assert llama == [256] * 14 + [1024] * 4 + [256] * 14
    falcon = replace(config, family="falcon", layers=32, width=4544)
    assert parse(None, falcon) == [256] * 28 + [1136] * 4  # D/4, where the paper has 1152
    assert parse(None, replace(config, width=192)) == [48] * 8
    for bad in ("", "x", "128,", "3x", "2x128", "0x1,8x2", "-8", "8x0", "8x5000", "1.5"):
        with pytest.raises(ValueError):
            parse(bad, config)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"ranks": "3x6"}, "for 3 layers, and the model has 2"),
        ({"ranks": "100"}, "between 1 and 24"),
        ({"false_negatives": 1.0}, "--false-negatives is a share"),
        ({"sparsity": -1.0}, "--sparsity is a share"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"tokens": 100}, "--tokens must be at least 320, not 100"),
        ({"tokens": 400}, "--tokens 400 is 4 sequences of 89 tokens.* give --tokens 1780 or more"),
        ({"text": ["nowhere.txt"]}, "nowhere.txt"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(store, text, settings, sentence):
    before = (store.path / "flash.json").read_bytes()
    with pytest.raises((ValueError, OSError), match=sentence):
        train(store, text, **settings)
    assert (store.path / "flash.json").read_bytes() == before


CHEAP = [
    *({"tokens": tokens} for tokens in (0, 100, 400, 1779)),
    *({"ranks": ranks} for ranks in ("0", "99", "6x9", "many")),
    *({"text": [text]} for text in ("nowhere", "short", "empty")),
    *({"heldout": text} for text in ("nowhere", "short", "empty")),
    *({"epochs": 0}, {"sparsity": 2.0}, {"false_negatives": 0.0}),
    *({"model": model} for model in ("nowhere", "mute", "llama")),
]


@pytest.mark.parametrize("converted_before", [True, False])
@pytest.mark.parametrize("settings", CHEAP)
def test_what_can_be_known_is_refused_before_weights_are_read(
    store, text, settings, converted_before, monkeypatch, tmp_path
):
    def too_late(*arguments, **settings):
        raise AssertionError("the weights were read before it was refused")

    for name in ("open_or_convert", "verify_once", "calibrate", "train_predictors"):
        monkeypatch.setattr(command, name, too_late)
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "opt", CONFIGS["opt"])
    write_model(tmp_path / "mute", CONFIGS["opt"], tokenizer=False)
    write_model(tmp_path / "llama", CONFIGS["llama"])  # in which no neuron rests
    (tmp_path / "short").write_text("Once")
    (tmp_path / "empty").write_text("")
    given = {} if converted_before else {"model": "opt"}
    with pytest.raises((ValueError, OSError)):
        train(store, text, **given | settings)


def test_a_short_heldout_text_is_refused(store, text, tmp_path):
    (tmp_path / "short.txt").write_text("Once")
    with pytest.raises(ValueError, match="--heldout gives 0 sequences"):
        train(store, text, heldout=str(tmp_path / "short.txt"))


def test_where_no_neuron_rests_thresholds_come_first(tmp_path, text):
    store = open_store(convert(write_model(tmp_path / "m", CONFIGS["llama"]), tmp_path / "l.flash"))
    with pytest.raises(ValueError, match="There is nothing to predict"):
        train(store, text)
    result = train(store, text, sparsity=0.9)
    for layer in result["layers"]:
        assert layer["active"] == pytest.approx(0.1, abs=0.03)
    assert open_store(store.path).manifest["thresholds"] is not None
    assert len(read_predictors(open_store(store.path))) == 2
