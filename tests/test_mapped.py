"""Mapped files to which somebody writes: noticed before the next token, and no SIGBUS."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers_models import CONFIGS, write_model
from helpers_sources import write_source

import tinyflash
from tinyflash.checkpoint.mapped import MappedFile, file_behind, files_behind
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store
from tinyflash.flash.store.predictor_file import write_predictors

IDS = [2, 5, 7, 9]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def with_predictors(store):
    rng, config = np.random.default_rng(1), store.config
    predictors = [
        Predictor(
            rng.standard_normal((3, config.width)).astype(np.float32),
            rng.standard_normal((config.ffn_width, 3)).astype(np.float32),
            np.zeros(config.ffn_width, dtype=np.float32),
        )
        for _ in range(config.layers)
    ]
    window = {"mean": [config.ffn_width / 3, config.ffn_width / 2], "most": [20, 30]}
    return write_predictors(store, predictors, {"layers": [{"window": window}] * config.layers})


# kind of model -> how it is loaded, and the files that it maps or reads
FORMATS = ("float16", "float32", "bfloat16", "shards", "bin", "gguf-F16", "gguf-Q8_0")


@pytest.fixture(scope="module", params=[*FORMATS, "store"])
def original(request, tmp_path_factory):
    """A model of one format: its path, settings to load it with, and the files of its weights."""
    folder, kind = tmp_path_factory.mktemp("mapped"), request.param
    if kind == "store":
        write_model(folder / "opt", CONFIGS["opt"])
        store = with_predictors(open_store(convert(folder / "opt", folder / "model")))
        files = [f"{part}.safetensors" for part in ("resident", "ffn", "predictor")]
        return store.path, {"memory": "98%"}, files
    family = "llama" if kind.startswith("gguf") else "opt"
    path, _ = write_source(folder / "model", family, kind)
    if path.is_file():
        return path, {}, [""]
    files = [file.name for file in path.iterdir() if file.suffix in (".safetensors", ".bin")]
    return path, {}, files


def copied(original, tmp_path):
    path, settings, names = original
    copy = tmp_path / path.name
    if path.is_file():
        shutil.copy(path, copy)
        return copy, settings, [copy]
    shutil.copytree(path, copy)
    return copy, settings, [copy / name for name in names]


def truncate(file):
    os.truncate(file, 5000)


def empty(file):
    os.truncate(file, 0)


def overwrite(file):
    times = os.stat(file)
    with open(file, "r+b") as opened:
        content = bytearray(opened.read())
        content[len(content) // 2 :] = bytes(byte ^ 0x11 for byte in content[len(content) // 2 :])
        opened.seek(0)
        opened.write(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had been


def grow(file):
    with open(file, "ab") as opened:
        opened.write(b"more")


@pytest.mark.parametrize("damage", [truncate, empty, overwrite, grow])
def test_a_change_in_place_is_noticed_before_the_next_token(original, tmp_path, damage):
    path, settings, files = copied(original, tmp_path)
    for file in files:
        whole = file.read_bytes()
        model = tinyflash.load(path, **settings)
        expected = model.logits(IDS)
        if model.flash:
            model.flash.layers.clear()  # nothing of the feed-forward is in DRAM
        damage(file)
        try:
            assert np.allclose(model.logits(IDS), expected, atol=1e-5)  # what was copied to DRAM
        except OSError as error:
            assert str(file) in str(error) and re.search("changed|it ends", str(error))
            with pytest.raises(OSError, match="changed|it ends"):
                model.logits(IDS)
        else:
            assert file_behind(model.weights["embed.weight"]) is None
        file.write_bytes(whole)


def replace(file):
    shutil.copy(file, file.with_suffix(".new"))
    os.truncate(file.with_suffix(".new"), 5000)
    os.replace(file.with_suffix(".new"), file)


@pytest.mark.parametrize("damage", [replace, os.unlink])
def test_another_file_in_its_place_does_no_harm(original, tmp_path, damage):
    path, settings, files = copied(original, tmp_path)
    model = tinyflash.load(path, **settings)
    expected = model.logits(IDS)
    for file in files:
        damage(file)
    assert np.allclose(model.logits(IDS), expected, atol=1e-5)


def test_a_file_cut_short_after_it_was_moved_is_noticed_too(original, tmp_path):
    path, settings, files = copied(original, tmp_path)
    model = tinyflash.load(path, **settings)
    mapped = [file for file in files if str(file) in {one.path for one in model.files}]
    for file in mapped:
        file.rename(file.with_suffix(".moved"))
        truncate(file.with_suffix(".moved"))
    if mapped:
        with pytest.raises(OSError, match="was changed while it was in use"):
            model.logits(IDS)


def test_a_change_in_the_middle_of_a_pass_is_noticed_at_its_end(original, tmp_path):
    path, settings, files = copied(original, tmp_path)
    for file in files:
        whole = file.read_bytes()
        model = tinyflash.load(path, **settings)
        if not (model.flash and file.name.startswith("ffn")) and model.files:
            cache = model.new_cache(8)

            def change(name, tensor, file=file):
                if name == "final_norm":
                    overwrite(file)

            with pytest.raises(OSError, match="was changed while it was in use"):
                model.logits(IDS, cache, change)
            assert cache.length == 0
        file.write_bytes(whole)


def test_every_pass_looks_and_hardly_takes_time(original, tmp_path, monkeypatch):
    path, settings, _ = copied(original, tmp_path)
    model = tinyflash.load(path, **settings)
    looks = []
    monkeypatch.setattr(MappedFile, "refuse_changed", lambda file: looks.append(file.path))
    model.logits(IDS)
    assert len(looks) == 2 * len(model.files) and len(set(looks)) == len(model.files)


def test_what_a_drafter_is_mapped_from_is_looked_at(tmp_path):
    source = tinyflash.load("default")
    from tinyflash.checkpoint.sources import embedded

    shutil.copytree(embedded("tiny-opt-drafter"), tmp_path / "drafter")
    drafter = source.drafter(str(tmp_path / "drafter"))
    truncate(tmp_path / "drafter" / "model.safetensors")
    with pytest.raises(OSError, match="drafter/model.safetensors was changed while it was in use"):
        "".join(source.generate("Once", max_new_tokens=4, temperature=0, drafter=drafter))


CUT = """
import os, sys
import numpy as np
from tinyflash.flash.store.convert import convert
hits = []
def cut(done, total):
    if done > total * float(sys.argv[3]) and not hits:
        hits.append(done)
        os.truncate(sys.argv[2], 5000)
try:
    convert(sys.argv[1], sys.argv[1] + ".flash", progress=cut)
except (OSError, ValueError) as error:
    print(type(error).__name__, error)
print(len(hits), os.path.exists(sys.argv[1] + ".flash"))
"""


def test_a_source_cut_short_is_not_converted(tmp_path):
    path, _ = write_source(tmp_path / "model", "opt", "float16")
    weights = path / "model.safetensors"
    command = [sys.executable, "-c", CUT, str(path), str(weights), "0.3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, -7)  # a page that is touched at once is a SIGBUS: mapped.py
    if done.returncode == 0:
        assert "was changed" in done.stdout and done.stdout.endswith("1 False\n")


def test_files_behind_arrays(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(64)))
    array = MappedFile(tmp_path / "a").array()
    views = [array[3:], array.view("<u4").reshape(4, 4).T, array[::2]]
    assert {file.path for file in files_behind(views)} == {str(tmp_path / "a")}
    assert len(files_behind(views)) == 1 and not array.flags.writeable
    assert files_behind([array.copy(), np.zeros(3, dtype=np.float32)]) == []
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty is empty"):
        MappedFile(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="absent cannot be read"):
        MappedFile(tmp_path / "absent")
