"""Nothing is replaced, emptied or written to that tinyflash did not write for the same purpose."""

import hashlib
import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
from helpers_faults import Failing
from helpers_models import CONFIGS, TOKENIZER_TEXT, write_model

from tinyflash.bench import disk, disk_profile
from tinyflash.cli import main
from tinyflash.directories import own_directory
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store
from tinyflash.flash.store.thresholds import write_thresholds
from tinyflash.flash.training import run as predictor_run
from tinyflash.flash.training import run_state
from tinyflash.training import run_files
from tinyflash.training.run_files import forget


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "opt", CONFIGS["opt"])
    convert(folder / "opt", folder / "store")
    (folder / "text").write_text(TOKENIZER_TEXT * 40)
    return folder


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(models / "opt", tmp_path / "opt")
    shutil.copytree(models / "store", tmp_path / "store")
    shutil.copy(models / "text", tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(place):
    """The digest of every file but those of the cache, and where every link leads."""
    found = {}
    for path in sorted(place.rglob("*")):
        if "cache" in path.parts:
            continue
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


LM = ["train", "lm", "--config", "opt/config.json", "--text", "text", "--steps", "1"]
LM += ["--batch", "2", "--length", "16", "--out"]
DRAFTER = ["train", "drafter", "opt", "--text", "text", "--tokens", "300", "--steps", "1"]
DRAFTER += ["--batch", "8", "--layers", "0", "--out"]
RECORD = ["record", "opt", "--ids", "2,5,7", "--out"]
DISK = ["bench", "disk", ".", "--json"]
PREDICTOR = ["train", "predictor", "store", "--text", "text", "--ranks", "2", "--epochs", "1"]


@pytest.mark.parametrize(
    "command",
    [
        [*RECORD, "opt/config.safetensors"],  # its manifest would be config.json
        [*RECORD, "opt/model.safetensors"],
        [*RECORD, "store/flash.safetensors"],
        [*RECORD, "store/ffn.safetensors"],
        [*RECORD, "store/resident.safetensors"],
        [*RECORD, "notes.safetensors"],
        [*RECORD, "link.safetensors"],
        [*DISK, "--out", "opt/config.json"],
        [*DISK, "--out", "store/flash.json"],
        [*DISK, "--out", "text"],
        [*DISK, "--out", "link.json"],
        [*DISK, "--plot", "photo.png"],
        [*DISK, "--plot", "opt/model.safetensors"],
        [*LM, "opt"],
        [*LM, "store"],
        [*LM, "."],
        [*LM, "text"],
        [*LM, "thesis"],  # whose .training is somebody's
        [*LM, "linked"],  # whose .training leads elsewhere
        [*DRAFTER, "opt"],
        [*DRAFTER, "papers"],
        [*DRAFTER, "thesis"],
        [*DRAFTER, "linked"],
        [*PREDICTOR],
        ["convert", "opt", "thesis"],  # whose .part is somebody's
        ["convert", "opt", "papers"],
        ["convert", "opt", "store"],
    ],
    ids=lambda command: " ".join([*command[:2], command[-1]]),
)
def test_what_others_wrote_is_left_as_it_is(place, capsys, monkeypatch, command):
    (place / "notes.json").write_text('{"mine": true}')
    (place / "link.safetensors").symlink_to("opt/model.safetensors")
    (place / "link.json").symlink_to("opt/config.json")
    (place / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"of the family")
    for name in ("thesis.training", "thesis.part", "papers", "store.training"):
        (place / name).mkdir()
        (place / name / "tokenizer.json").write_text("mine")
        (place / name / "layer.notes").write_text("mine")
    (place / "elsewhere").mkdir()
    (place / "linked.training").symlink_to("elsewhere")
    monkeypatch.setattr(disk, "measure_disk", lambda *_, **__: pytest.fail("measured for nothing"))
    before = everything(place)
    assert main(command) == 2
    assert everything(place) == before
    assert not any((place / "elsewhere").iterdir())
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("tinyflash: ") and "Traceback" not in said
    for words in ("left alone", "in the way", "exists already"):
        if words in said:
            break
    else:
        pytest.fail(said)


def test_what_tinyflash_wrote_is_replaced(place, capsys, monkeypatch):
    profile = {
        "name": "a", "date": "2026-01-01", "system": "s", "seconds": 1, "file_bytes": 1, "load": [],
        "cold": [{"chunk": 4096, "threads": 1, "bytes_per_second": 1e9}],
        "sustained": [{"chunk": 4096, "threads": 1, "bytes_per_second": 1e9}],
    }  # fmt: skip
    monkeypatch.setattr(disk, "measure_disk", lambda *_, **__: profile)
    for command in (
        [*RECORD, "nine.safetensors"],
        [*DISK, "--out", "disk.json", "--plot", "disk.png"],
        [*LM, "trained"],
    ):
        for _ in range(2):
            assert main(command) == 0, capsys.readouterr().err
    assert disk_profile.is_plot(place / "disk.png")


# The directories of runs.


def test_the_state_of_a_run_is_cleared_of_what_a_killed_writer_left(place):
    state = place / "store.training"
    state.mkdir()
    (state / "run.json").write_text("{}")
    (state / ".stream.safetensors.0123456789abcdef.part").write_text("half")
    (state / ".mine.part").write_text("mine")
    with own_directory(state, run_state.is_state, "training predictors"):
        assert {path.name for path in state.iterdir()} == {"run.json", ".mine.part"}


def test_forgetting_a_run_deletes_its_own_files_only(place, capsys):
    state = place / "store.training"
    state.mkdir()
    (state / "run.json").write_text("{}")
    for name in ("layer.0.safetensors", "stream.safetensors", "layer.notes", "layer.x.safetensors"):
        (state / name).write_text("mine")
    forget(state, run_state.state_files(1))
    assert {path.name for path in state.iterdir()} == {"layer.notes", "layer.x.safetensors"}


def test_what_cannot_be_deleted_of_a_finished_run_is_still_known_to_be_its_own(place, monkeypatch):
    names = ("run.json", "layer.0.safetensors", "stream.safetensors")
    for at in (1, 2, 3):
        state = place / f"{at}.training"
        state.mkdir()
        for name in names:
            (state / name).write_text("{}")
        (state / ".run.json.0123456789abcdef.part").write_text("{}")
        with monkeypatch.context() as patch:
            Failing(patch, at, OSError(5, "Input/output error"), ["unlink"])
            run_files.forget(state, names)
        assert (state / "run.json").exists()
        with own_directory(state, run_state.is_state, "training predictors"):
            run_files.forget(state, names)
        assert not state.exists()
    (place / "left.training").mkdir()
    (place / "left.training" / ".run.json.0123456789abcdef.part").write_text("{}")
    with own_directory(place / "left.training", run_state.is_state, "training predictors"):
        pass


def test_nothing_is_left_of_a_run_that_did_not_begin(place):
    with pytest.raises(ZeroDivisionError):
        with own_directory(place / "new" / "x.training", lambda path: False, "training"):
            raise ZeroDivisionError
    assert not (place / "new" / "x.training").exists()


SECOND = """
import sys
from pathlib import Path
from tinyflash.directories import own_directory
try:
    with own_directory(Path(sys.argv[1]), lambda path: True, "training"):
        print("in")
except ValueError as error:
    print(error)
"""


def test_two_runs_do_not_share_a_state(place):
    state = place / "x.training"
    command = [sys.executable, "-c", SECOND, str(state)]
    with own_directory(state, lambda path: True, "training"):
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.startswith(f"Another process is training in {state}; wait for it")
        (state / "run.json").touch()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "in\n" and state.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_thresholds_come_with_their_predictors_or_not_at_all(place, monkeypatch, error):
    """A training that breaks off has not changed what the directory says, nor its text."""
    before = everything(place)
    with monkeypatch.context() as patch:
        patch.setattr(predictor_run, "write_predictors", Mock(side_effect=error))
        assert main([*PREDICTOR, "--sparsity", "0.8"]) in (2, 130)
    after = {name: of for name, of in everything(place).items() if ".training" not in str(name)}
    assert after == before
    assert main([*PREDICTOR, "--sparsity", "0.8"]) == 0
    manifest = open_store(place / "store").manifest
    assert len(manifest["thresholds"]) == len(manifest["predictor"]["layers"]) == 2


def test_predictors_of_a_changed_store_are_not_written(place, capsys, monkeypatch):
    """Somebody sets other thresholds while predictors are trained for the old ones."""
    train_layers = predictor_run.train_layers

    def meanwhile(store, *given):
        made = train_layers(store, *given)
        write_thresholds(open_store(store.path), [0.5] * store.config.layers)
        return made

    monkeypatch.setattr(predictor_run, "train_layers", meanwhile)
    assert main(PREDICTOR) == 2
    assert "flash.json was changed by somebody else meanwhile" in capsys.readouterr().err
    assert open_store(place / "store").manifest["thresholds"] == [0.5, 0.5]
