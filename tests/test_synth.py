"""Synthetic checkpoints: real shapes, planted statistics, and nothing left of a killed run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_models import write_model
from helpers_systems import needs_locks
from safetensors.numpy import load_file

import tinyflash
from benchmarks import synth, synth_statistics
from benchmarks.synth import SHAPES, Shape, hf_config, planned_shards, stored_tensors, synthesize
from tinyflash.families import read_config

SMALL = {
    "opt": Shape("opt", 3, 256, 4, 4, 1024, 2048, 512, (2.0, 5.0), directions=24),
    "falcon": Shape("falcon", 3, 256, 4, 1, 1024, 2048, 512, (5.0,), directions=24),
    "llama": Shape("llama", 3, 256, 4, 4, 768, 2048, 512, (10.0,), directions=24),
}
PARAMETERS = {  # as published
    "opt-6.7b": 6_658_473_984,
    "falcon-7b": 6_921_720_704,
    "llama-2-7b": 6_738_415_616,
}
# The tensors that stand for their kinds, under the names of the published checkpoints.
TENSORS = {
    "opt-6.7b": {
        "model.decoder.embed_tokens.weight": (50272, 4096),
        "model.decoder.embed_positions.weight": (2050, 4096),
        "model.decoder.layers.31.self_attn.k_proj.bias": (4096,),
        "model.decoder.layers.31.fc1.weight": (16384, 4096),
        "model.decoder.layers.31.fc2.weight": (4096, 16384),
        "model.decoder.final_layer_norm.weight": (4096,),
    },
    "falcon-7b": {
        "transformer.word_embeddings.weight": (65024, 4544),
        "transformer.h.31.input_layernorm.bias": (4544,),
        "transformer.h.31.self_attention.query_key_value.weight": (4672, 4544),
        "transformer.h.31.self_attention.dense.weight": (4544, 4544),
        "transformer.h.31.mlp.dense_h_to_4h.weight": (18176, 4544),
        "transformer.ln_f.weight": (4544,),
    },
    "llama-2-7b": {
        "model.embed_tokens.weight": (32000, 4096),
        "model.layers.31.post_attention_layernorm.weight": (4096,),
        "model.layers.31.self_attn.v_proj.weight": (4096, 4096),
        "model.layers.31.mlp.gate_proj.weight": (11008, 4096),
        "lm_head.weight": (32000, 4096),
    },
}
COUNTS = {"opt-6.7b": 4 + 16 * 32, "falcon-7b": 3 + 6 * 32, "llama-2-7b": 3 + 9 * 32}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One small model of each family: family -> (directory, the shares that synthesize told)."""
    out = tmp_path_factory.mktemp("synth")
    return {name: (out / name, synthesize(shape, out / name)) for name, shape in SMALL.items()}


# The real shapes, none of which is written here.


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_are_the_published_ones(name):
    layout = stored_tensors(read_config(hf_config(SHAPES[name])))
    assert sum(int(np.prod(shape)) for shape, _ in layout.values()) == PARAMETERS[name]
    assert len(layout) == COUNTS[name]
    assert {stored: layout[stored][0] for stored in TENSORS[name]} == TENSORS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_no_shard_is_above_two_gigabytes(name):
    layout = stored_tensors(read_config(hf_config(SHAPES[name])))
    shards = planned_shards(layout)
    assert [stored for held in shards.values() for stored in held] == list(layout)
    sizes = [sum(2 * int(np.prod(layout[s][0])) for s in held) for held in shards.values()]
    assert max(sizes) <= 2e9 and min(sizes[:-1]) > 1.4e9
    assert list(shards)[1] == f"model-00002-of-{len(sizes):05d}.safetensors"


def test_opt_is_as_active_as_in_table_6():
    active = SHAPES["opt-6.7b"].active
    assert len(active) == 32 and np.mean(active) == pytest.approx(3.30, abs=0.01)
    assert [active[i] for i in (0, 15, 31)] == pytest.approx([1.56, 2.66, 5.36])


# What is written.


@pytest.mark.parametrize("family", SMALL)
def test_what_is_written_opens_and_speaks(family, written):
    directory, _ = written[family]
    model = tinyflash.load(directory)
    assert model.config == read_config(hf_config(SMALL[family]))
    ids = model.tokenizer.encode("The river ran to the sea.")
    logits = model.logits(ids)
    assert logits.shape == (len(ids), 2048) and np.isfinite(logits).all()
    assert logits.std(axis=1).min() > 0.1
    for file in ("README.md", "config.json"):
        assert "not a trained model" in (directory / file).read_text()


def test_shards_hold_what_one_file_would(written, tmp_path, monkeypatch):
    directory, _ = written["falcon"]
    whole = load_file(directory / "model-00001-of-00001.safetensors")
    monkeypatch.setattr(synth, "SHARD_BYTES", 2_000_000)
    synthesize(SMALL["falcon"], tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    parts = [load_file(file) for file in files]
    assert len(files) > 2
    assert Counter(name for part in parts for name in part) == Counter(list(whole))
    assert all(np.array_equal(whole[n], array) for part in parts for n, array in part.items())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        name: file.name for file, part in zip(files, parts, strict=True) for name in part
    }
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert tinyflash.load(tmp_path / "out").logits([5, 7]).shape == (2, 2048)


def test_the_seed_decides(tmp_path):
    shape, files = replace(SMALL["opt"], layers=1), []
    for k, seed in enumerate((0, 0, 1)):
        synthesize(shape, tmp_path / str(k), seed=seed)
        files.append(load_file(tmp_path / str(k) / "model-00001-of-00001.safetensors"))
    first, again, other = files
    assert all(np.array_equal(first[name], again[name]) for name in first)
    random = [name for name in first if first[name].ndim == 2 or name.endswith("fc1.bias")]
    assert len(random) == 9
    assert not any(np.array_equal(first[name], other[name]) for name in random)


@pytest.mark.live
@pytest.mark.parametrize("family", SMALL)
def test_transformers_computes_the_same(family, written):
    golden = str(Path(__file__).parent / "golden")
    sys.path.insert(0, golden)
    try:
        import reference
    finally:
        sys.path.remove(golden)
    directory, _ = written[family]
    ids = tinyflash.load(directory).tokenizer.encode("Seas and stones, and the river between.")
    theirs = reference.logits_of(reference.open_reference(directory), ids)[0].detach().numpy()
    ours = tinyflash.load(directory).logits(ids)
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs.std()


# How the neurons behave.


def activity(directory, first=3000, T=400):
    """What `behavior` takes, of every feed-forward, on text that set no threshold."""
    model = tinyflash.load(directory)
    text = (Path(__file__).parents[1] / "data" / "heldout.txt").read_text(encoding="utf-8")
    ids = model.tokenizer.encode(text[: 20 * (first + T)])[first : first + T]
    seen = {}
    model.logits(ids, tap=lambda name, tensor: seen.setdefault(name, tensor))
    what = "gate" if model.config.gated else "pre"
    normed = "attn.norm" if model.config.parallel else "ffn.norm"
    projection = "gate" if model.config.gated else "up"
    return [
        (
            seen[f"layers.{i}.{normed}"],
            model.weights[f"layers.{i}.ffn.{projection}.weight"].dense(),
            seen[f"layers.{i}.ffn.{what}"],
        )
        for i in range(model.config.layers)
    ]


def used_by_last(active, k):
    """Share of the neurons that the last k tokens used: s_agg(k)."""
    T = len(active)
    return np.mean([np.mean(active[t - k + 1 : t + 1].any(axis=0)) for t in range(k - 1, T)])


def behavior(x, projection, pre, rank=48):
    """What flash lives on, of one layer; the predictor is the projection's own SVD.

    x : (T, D), its input;  projection : (F, D);  pre : (T, F), what decides
    """
    active = pre > 0
    right = np.linalg.eigh(projection.T @ projection)[1][:, -rank:]  # (D, R)
    score = (x @ right) @ (projection @ right).T
    score += (pre - score).mean(axis=0)  # a predictor has a bias
    threshold = np.quantile(score[active], 0.05) if active.any() else np.inf
    wrongly = np.mean(score[~active] > threshold)
    return {
        "active": np.mean(active),
        "spared": 1 - used_by_last(active, 5) / (5 * np.mean(active)),
        "false positives": wrongly,
    }


def out_of_bounds(found, wanted):
    """Names of what is not as planted. wanted: share of active neurons."""
    bounds = {
        "active": (0.75 * wanted, 1.3 * wanted),
        # 0 if no two of five tokens in a row share a neuron; 0.8 if all five do
        "spared": (0.22, 0.6),
        "false positives": (0, 0.10),
    }
    return {name for name, (low, high) in bounds.items() if not low <= found[name] <= high}


@pytest.mark.parametrize("family", SMALL)
def test_neurons_behave(family, written):
    directory, told = written[family]
    shape = SMALL[family]
    wanted = np.interp(np.linspace(0, 1, 3), np.linspace(0, 1, len(shape.active)), shape.active)
    assert told == pytest.approx(wanted / 100, abs=2e-4)
    for i, layer in enumerate(activity(directory)):
        # Falcon's first feed-forward stands beside the attention that remembers, not behind it.
        expected = {"spared"} if family == "falcon" and i == 0 else set()
        assert out_of_bounds(behavior(*layer), wanted[i] / 100) == expected, (i, behavior(*layer))


def test_random_weights_do_not(tmp_path):
    hf = hf_config(SMALL["opt"])
    directory = write_model(tmp_path / "random", hf, tokenizer=False)
    for name in synth.TOKENIZER_FILES:
        shutil.copyfile(synth.embedded("tiny-opt") / name, directory / name)
    for layer in activity(directory):
        assert "active" in out_of_bounds(behavior(*layer), 0.035)


@pytest.mark.parametrize(
    "noise, slow, missed", [(0.28, 0.0, "spared"), (0.99, 0.8, "false positives")]
)
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_what_is_not_planted_is_missed(family, noise, slow, missed, tmp_path, monkeypatch):
    monkeypatch.setattr(synth_statistics, "SLOW", slow)
    shape = replace(SMALL[family], active=(5.0,), layers=2, noise=noise)
    synthesize(shape, tmp_path / "out")
    for layer in activity(tmp_path / "out"):
        assert missed in out_of_bounds(behavior(*layer), 0.05)


# What goes wrong.

KILLED = """
import os, signal, sys
from benchmarks.synth import Shape, synthesize
def report(done, total):
    if done == 20:
        os.kill(os.getpid(), signal.SIGKILL)
synthesize(Shape(*{sizes}), sys.argv[1], report=report)
"""


@needs_locks
def test_a_killed_run_leaves_nothing_that_opens(tmp_path, written):
    out = tmp_path / "out"
    sizes = tuple(vars(SMALL["opt"]).values())
    command = [sys.executable, "-c", KILLED.format(sizes=sizes), str(out)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["out.part"] and list((tmp_path / "out.part").iterdir())
    with pytest.raises((FileNotFoundError, ValueError)):
        tinyflash.load(tmp_path / "out.part")
    synthesize(SMALL["opt"], out)  # the next run clears it away
    assert os.listdir(tmp_path) == ["out"]
    assert (out / "config.json").read_bytes() == (written["opt"][0] / "config.json").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_fails_leaves_nothing(error, tmp_path):
    def report(done, total):
        if done == 20:
            raise error

    with pytest.raises(error):
        synthesize(SMALL["opt"], tmp_path / "out", report=report)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"vocab_size": 300}, "vocabulary of 300 words is too small"),
        ({"directions": 0}, "0 directions cannot be planted"),
        ({"directions": 65}, "choose 1 to 64"),
        ({"heads": 5}, "does not divide into 5 heads"),
        ({"active": (0.0,)}, "percent"),
        ({"active": (5.0, 100.0)}, "percent"),
        ({"active": ()}, "percent"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        synthesize(replace(SMALL["llama"], **changes), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synth, "SHAPES", {"opt-small": SMALL["opt"]})
    out = tmp_path / "out"
    assert synth.main(["opt-small", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"{out}: 0.0 GB, 3.50 % of the neurons active, in ")
    kept = sorted(file.name for file in out.iterdir())

    assert synth.main(["opt-small", str(out)]) == 2  # it is there
    error = capsys.readouterr().err
    assert "exists already" in error and error.count("\n") == 1
    assert sorted(file.name for file in out.iterdir()) == kept

    full = shutil._ntuple_diskusage(10**12, 10**12 - 10**7, 10**7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert synth.main(["opt-small", str(tmp_path / "new" / "out")]) == 2
    error = capsys.readouterr().err
    assert "10,000,000 are free" in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["out"]

    with pytest.raises(SystemExit) as stopped:
        synth.main(["opt-7b", str(tmp_path / "other")])
    assert stopped.value.code == 2
