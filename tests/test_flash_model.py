"""A model within a memory budget: the same text as with all weights in DRAM."""

import json

import numpy as np
import pytest
from helpers_models import CONFIGS, write_model

import tinyflash
from tinyflash.cli import main
from tinyflash.describe import describe_model
from tinyflash.flash.budget import budget_for, parse_memory, rows_by_layer
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.engine import open_engine
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.store import verified
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store
from tinyflash.flash.store.predictor_file import read_predictors, write_predictors
from tinyflash.ops import linear
from tinyflash.taps import FLASH_TAPS
from tinyflash.transformer import dense_feed_forward, forward, under_prefix

PROMPT = [3, 17, 9, 30, 8, 21, 12]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def say(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("mode", ["naive", "hybrid", "window", "all"])
@pytest.mark.parametrize("name", CONFIGS)
def test_flash_equals_dense_in_every_family_and_mode(tmp_path, name, mode):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS[name])
    dense = tinyflash.load(folder, dtype="float64")
    expected = dense.logits(PROMPT)
    store = open_store(convert(folder, tmp_path / "model.flash"))
    resident = tinyflash.load(store.path, dtype="float64").flash.budget.resident
    layers, F = store.config.layers, store.config.ffn_width
    for rows in (1, 2, F // 2, F):
        memory = resident + layers * rows * store.row_bytes
        flash = tinyflash.load(store.path, memory=memory, mode=mode, k=2, dtype="float64")
        assert flash.flash.nbytes <= memory
        for split in (len(PROMPT), 3):
            cache = flash.new_cache()
            parts = [flash.logits(PROMPT[:split], cache)]
            parts += [flash.logits([token], cache) for token in PROMPT[split:]]
            error = np.abs(np.concatenate(parts) - expected).max() / np.abs(expected).max()
            assert error <= 1e-12, (rows, split)


def test_greedy_text_equals_dense_for_the_embedded_model():
    expected = "".join(tinyflash.load("default").generate("Once", temperature=0, max_new_tokens=40))
    for mode in ("hybrid", "window"):
        model = tinyflash.load("default", memory="50%", mode=mode)
        assert "".join(model.generate("Once", temperature=0, max_new_tokens=40)) == expected


@pytest.mark.slow
def test_greedy_text_equals_dense_for_smollm2():
    settings = {"temperature": 0, "max_new_tokens": 12}
    expected = "".join(tinyflash.load("smollm2").chat().say("Why is the sky blue?", **settings))
    model = tinyflash.load("smollm2", memory="50%")
    assert model.flash.nbytes <= 0.5 * 540e6
    assert "".join(model.chat().say("Why is the sky blue?", **settings)) == expected


def test_a_model_is_converted_once_and_again_when_it_changed(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"], seed=0)
    first = tinyflash.load(folder, memory="90%").path
    assert tinyflash.load(folder, memory="85%").path == first
    write_model(folder, CONFIGS["opt"], seed=1)
    second = tinyflash.load(folder, memory="90%")
    assert second.path != first
    np.testing.assert_allclose(
        second.logits(PROMPT), tinyflash.load(folder).logits(PROMPT), rtol=1e-3, atol=1e-3
    )


def test_costs_are_counted_pass_by_pass(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"])
    model = tinyflash.load(folder, memory="100%", mode="naive")
    made = model.generate(PROMPT, max_new_tokens=4, temperature=0)
    list(made)
    store = model.flash.store
    every_byte = store.config.layers * store.config.ffn_width * store.row_bytes
    L = store.config.layers
    assert made.counts.steps == 3 and made.spent.calls == 3 * L, "the prompt's pass is not a step"
    assert model.flash.last_cost.bytes_wanted == every_byte and model.flash.last_cost.calls == L
    mean = made.spent.per_token(3)
    assert mean["bytes_wanted"] == every_byte and mean["calls"] == L
    assert sum(mean["chunk_sizes"].values()) == mean["reads"]
    assert made.spent.per_token(0) == {}


def test_what_is_kept_is_said_as_it_is(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"])
    model = tinyflash.load(folder, memory="90%")
    kept = len(model.flash.feed_forwards[0].resident)
    assert 0 < kept < model.flash.budget.rows[0]  # some of the rows are what others pass through
    assert f"{kept} of {model.config.ffn_width} neurons a layer kept" in describe_model(model)
    smooth = tmp_path / "smooth"
    write_model(smooth, CONFIGS["llama"])
    model = tinyflash.load(smooth, memory="90%", mode="window")
    assert "silu is zero almost nowhere" in describe_model(model)
    assert "projection" not in describe_model(model)


def test_everything_in_memory_reads_nothing(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["llama"])
    model = tinyflash.load(folder, memory="200%")
    model.logits(PROMPT)
    assert model.flash.last_cost.bytes_read == 0


def test_the_flash_taps_are_shown(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"])
    model, seen = tinyflash.load(folder, memory="90%", mode="window"), {}
    model.logits(PROMPT, tap=lambda name, tensor: seen.update({name: tensor}))
    for name in FLASH_TAPS:
        assert f"layers.0.{name}" in seen
    assert seen["layers.0.ffn.predicted"].shape == (7, model.config.ffn_width)
    dense = {}
    tinyflash.load(folder).logits(PROMPT, tap=lambda name, tensor: dense.update({name: tensor}))
    np.testing.assert_array_equal(seen["layers.0.ffn.predicted"], dense["layers.0.ffn.act"] != 0)
    seen.clear()
    model.logits(PROMPT)
    assert not seen


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("50%", 500), ("12.5 %", 125), ("300", 300), (300, 300), ("2KB", 2000), ("2kib", 2048)]
    + [("6.65GB", 6_650_000_000), ("1 MB", 10**6), ("1B", 1)],
)
def test_memory_is_read_as_people_write_it(text, nbytes):
    assert parse_memory(text, 1000) == nbytes


@pytest.mark.parametrize("text", ["", "half", "-3GB", "50%%", "0", "0%", "1e9", "GB", "nan"])
def test_memory_that_says_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"share such as|is nothing"):
        parse_memory(text, 1000)


def test_a_budget_holds_what_it_says(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"])
    store = open_store(convert(folder, tmp_path / "model.flash"))
    L, row = store.config.layers, store.row_bytes
    assert budget_for(store, 1000 + L * 7 * row, 1000, "hybrid").rows == (7,) * L
    assert budget_for(store, 1000 + L * 7 * row - 1, 1000, "hybrid").rows == (6,) * L
    assert budget_for(store, 10**9, 1000, "hybrid").rows == (store.config.ffn_width,) * L
    telling = store.config.ffn_width * row // 2  # the up projection of one layer
    kept = budget_for(store, 1000 + L * (telling + 5 * row // 2), 1000, "window")
    assert (kept.activity, kept.rows, kept.telling) == ("resident", (5,) * L, L * telling)
    read = budget_for(store, 1000 + L * (telling - row), 1000, "window")
    assert read.activity == "read" and read.rows == ((telling - row) // row,) * L
    with pytest.raises(ValueError, match=r"needs at least .* allow more"):
        budget_for(store, 1000 + L * row - 1, 1000, "hybrid")


def test_the_kv_cache_is_a_part_of_the_budget(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"])
    store = open_store(convert(folder, tmp_path / "model.flash"))
    config, row = store.config, store.row_bytes
    L, token = config.layers, 4 * config.layers * config.kv_heads * config.head_width
    memory = 1000 + 3 * token + L * 7 * row
    assert budget_for(store, memory, 1000, "hybrid", tokens=3).rows == (7,) * L
    assert budget_for(store, memory - 1, 1000, "hybrid", tokens=3).rows == (6,) * L
    beside = budget_for(store, 1000 + L * row, 1000, "hybrid", tokens=3)  # no neuron would fit
    assert not beside.kv_inside and beside.rows == (1,) * L

    engine = open_engine(store, memory="100%", mode="hybrid", tokens=9)
    rows = engine.budget.rows[0]
    engine.make_room_for_kv_cache(9)
    assert engine.budget.rows[0] == rows
    engine.make_room_for_kv_cache(20)
    assert engine.budget.tokens == 20 and engine.budget.rows[0] < rows
    assert len(engine.feed_forwards[0].resident) < engine.budget.rows[0]
    assert engine.nbytes + engine.budget.kv_cache <= engine.budget.memory
    assert sum(engine.components().values()) <= engine.budget.memory
    model = tinyflash.load(store.path, memory="140%")
    cache = model.new_cache(10)
    model.logits(PROMPT, cache)
    assert cache.keys[0].dtype == np.float16
    assert cache.nbytes == 10 * token


def test_layers_get_rows_as_their_windows_need_them():
    windows = [{"mean": [10, 15, 18]}, {"mean": [30, 45, 54]}]
    assert rows_by_layer(60, 100, windows) == ([15, 45], 2)
    assert rows_by_layer(59, 100, windows) == ([14, 44], 1)
    assert rows_by_layer(20, 100, windows) == ([5, 15], 0)
    assert rows_by_layer(200, 100, windows) == ([50, 100], 3)
    assert rows_by_layer(2, 100, windows) == ([1, 1], 0)


def test_the_command_converts_checks_and_generates(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "model.flash"
    write_model(folder, CONFIGS["opt"])
    assert say("convert", folder, out, "--json") == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["bundling"] == "row-column" and made["bundle_bytes"] == open_store(out).row_bytes
    assert say("convert", out, "--check") == 0
    assert "digest" in capsys.readouterr().out

    texts = []
    for model, memory in ((folder, []), (out, ["--memory", "85%"]), (folder, ["--memory", "85%"])):
        arguments = ["--model", model, *memory, "--json", "--max-new-tokens", 6]
        assert say("generate", "The", "--temperature", 0, *arguments) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        texts.append(result["text"])
        assert ("flash" in result) == bool(memory)
    assert texts[0] == texts[1] == texts[2]
    assert result["flash"]["bytes_read"] > 0

    assert say("generate", "The", "--model", out, "--memory", "85%", "--stats") == 0
    assert "bytes_read" in capsys.readouterr().out


def test_a_flash_directory_is_recorded_too(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "model.flash"
    write_model(folder, CONFIGS["opt"])
    convert(folder, out)
    for model, file in ((folder, "dense"), (out, "flash")):
        recording = tmp_path / f"{file}.safetensors"
        assert say("record", model, "--ids", "5,6,7", "--out", recording) == 0
    capsys.readouterr()
    assert say("diff", tmp_path / "dense.safetensors", recording, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equal"] and "layers.0.ffn.act" in result["not_compared"]
    verdicts = {row["name"]: row["verdict"] for row in result["rows"]}
    assert verdicts["logits"] == verdicts["layers.1.ffn.out"] == "equal"
    assert verdicts["layers.0.ffn.act"] == "missing"  # neurons that rest are not computed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "much"], "share such as 50%"),
        (["--memory", "10"], "needs at least"),
        (["--memory", "50%", "--window", "0"], "at least 1 token long"),
        (["--stats"], "statistics of flash"),
    ],
)
def test_bad_budgets_are_one_sentence(tmp_path, capsys, arguments, words):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"])
    assert say("generate", "The", "--model", folder, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_a_damaged_store_is_found(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "model.flash"
    write_model(folder, CONFIGS["opt"])
    convert(folder, out)
    file = out / "ffn.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert say("convert", out, "--check") == 2
    assert "ffn.safetensors" in capsys.readouterr().err
    assert say("convert", folder, "--check") == 2
    assert say("convert", folder) == 2
    assert say("convert", folder, out) == 2


def test_a_flipped_bit_gives_no_text(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "model.flash"
    write_model(folder, CONFIGS["opt"])
    convert(folder, out)
    assert say("generate", "The", "--model", out, "--max-new-tokens", 2) == 0
    for name in ("ffn.safetensors", "resident.safetensors"):
        file = out / name
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[-5] ^= 1
        file.write_bytes(flipped)
        capsys.readouterr()
        assert say("generate", "The", "--model", out, "--max-new-tokens", 2) == 2
        result = capsys.readouterr()
        assert name in result.err and result.out == ""
        with pytest.raises(ValueError, match=name):
            tinyflash.load(out)
        file.write_bytes(whole)
    assert say("generate", "The", "--model", out, "--max-new-tokens", 2) == 0


def test_a_store_is_verified_once(tmp_path, monkeypatch):
    folder, out = tmp_path / "model", tmp_path / "model.flash"
    write_model(folder, CONFIGS["opt"])
    convert(folder, out)
    checked = []
    original = verified.check_store
    monkeypatch.setattr(
        verified, "check_store", lambda *given: (checked.append(1), original(*given))
    )
    tinyflash.load(out)
    tinyflash.load(out)
    assert len(checked) == 1
    (out / "config.json").write_bytes((out / "config.json").read_bytes())
    tinyflash.load(out)
    assert len(checked) == 2


def test_a_store_that_breaks_during_a_run_gives_no_wrong_text(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "model.flash"
    write_model(folder, CONFIGS["opt"])
    convert(folder, out)
    model = tinyflash.load(out, memory="85%")
    pieces = model.generate(PROMPT, max_new_tokens=20, temperature=0)
    next(pieces, None)
    with open(out / "ffn.safetensors", "r+b") as file:
        file.truncate(5000)
    with pytest.raises((OSError, ValueError), match="ffn.safetensors"):
        list(pieces)


def with_predictors(store, seed=0, bias=0.0):
    """The store with random predictors of rank 3 or 4, which guess as they like."""
    rng, config = np.random.default_rng(seed), store.config
    predictors = [
        Predictor(
            rng.standard_normal((3 + i % 2, config.width)).astype(np.float32),
            rng.standard_normal((config.ffn_width, 3 + i % 2)).astype(np.float32),
            np.full(config.ffn_width, bias, dtype=np.float32),
            0.7,
        )
        for i in range(config.layers)
    ]
    window = {"mean": [config.ffn_width / 3, config.ffn_width / 2], "most": [20, 30]}
    report = {"layers": [{"window": window} for _ in predictors], "text": "none", "tokens": 0}
    return write_predictors(store, predictors, report)


def logits_of_predicted(store, model):
    """Dense logits where each feed-forward adds its predicted neurons only."""
    predictors, layers = read_predictors(store, np.float64), []
    for i, predictor in enumerate(predictors):

        def feed_forward(x, i=i, predictor=predictor):
            layer = under_prefix(model.weights, f"layers.{i}.")
            seen = {}
            dense_feed_forward(layer, store.config, x, seen.__setitem__)
            act = np.where(predictor.find(x, TokenCounters())[0], seen["ffn.act"], 0)
            return linear(act, layer("ffn.down.weight"), layer("ffn.down.bias"))

        layers.append(feed_forward)
    ids = np.array(PROMPT, dtype=np.int64)
    return forward(model.weights, store.config, ids, feed_forwards=layers)


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_predicted_neurons_are_computed_and_no_others(tmp_path, name):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS[name])
    store = with_predictors(open_store(convert(folder, tmp_path / "model.flash")))
    dense = tinyflash.load(folder, dtype="float64")
    expected = logits_of_predicted(store, dense)
    size = np.abs(expected).max()
    assert np.abs(dense.logits(PROMPT) - expected).max() > 1e-3 * size  # some were left out
    for mode in ("predictor", "window", "all"):
        for memory in ("120%", "500%"):
            model = tinyflash.load(store.path, memory=memory, mode=mode, dtype="float64")
            cache = model.new_cache(len(PROMPT))
            parts = [model.logits(PROMPT[:4], cache)]
            parts += [model.logits([token], cache) for token in PROMPT[4:]]
            assert np.abs(np.concatenate(parts) - expected).max() <= 1e-12 * size
            held = model.flash.last_cost.held
            assert held == 0 if mode == "predictor" else held > 0
            assert model.flash.components()["predictors"] == model.flash.budget.telling > 0
            if mode == "predictor":  # one cache for all layers
                assert len({id(layer.cache) for layer in model.flash.feed_forwards}) == 1


def test_the_mode_is_the_best_there_is(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, CONFIGS["opt"])
    store = open_store(convert(folder, tmp_path / "model.flash"))
    assert tinyflash.load(store.path, memory="120%").flash.mode == "hybrid"
    with pytest.raises(ValueError, match="no trained predictors; tinyflash train predictor"):
        tinyflash.load(store.path, memory="120%", mode="predictor")
    assert tinyflash.load(with_predictors(store).path, memory="120%").flash.mode == "all"


def test_reading_part_by_part_takes_twice_as_many_reads(tmp_path):
    """Mode window and mode all read the same neurons: two reads each, or one."""
    config = dict(CONFIGS["opt"], hidden_size=2048, ffn_dim=64, num_attention_heads=2)
    write_model(tmp_path / "model", config)
    store = open_store(convert(tmp_path / "model", tmp_path / "model.flash", dtype="float16"))
    store = with_predictors(store, bias=-40.0)
    assert store.row_bytes == 8192
    costs = {}
    for mode in ("window", "all"):
        model = tinyflash.load(store.path, mode=mode, k=1)
        for layer in model.flash.feed_forwards:
            layer.next = None  # nothing is read ahead, which may be in vain
        model.logits(PROMPT[:1])
        costs[mode] = model.flash.last_cost
    assert costs["window"].loaded == costs["all"].loaded > 0
    assert costs["window"].bytes_read == costs["all"].bytes_read
    assert costs["window"].chunk_sizes == {4096: 2 * costs["all"].loaded}
    assert sum(costs["all"].chunk_sizes.values()) < costs["window"].reads


def test_layers_that_share_weights_share_their_biases_too(tmp_path):
    config = dict(CONFIGS["mobilellm"], layer_sharing=True, mlp_bias=True)
    write_model(tmp_path / "model", config)
    dense = tinyflash.load(tmp_path / "model", dtype="float64")
    assert dense.config.layers == 2 * dense.config.weight_layers > 2
    expected = dense.logits(PROMPT)
    store = open_store(convert(tmp_path / "model", tmp_path / "model.flash"))
    for mode in ("hybrid", "all"):
        flash = tinyflash.load(store.path, memory="150%", mode=mode, dtype="float64")
        assert np.abs(flash.logits(PROMPT) - expected).max() <= 1e-12 * np.abs(expected).max()
