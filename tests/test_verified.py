"""What was verified is what is read: digests, notes of them, and the user's cache."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from helpers_models import CONFIGS, write_model

import tinyflash
from tinyflash.checkpoint import cache, noted
from tinyflash.checkpoint.cache import one_at_a_time, private_directory
from tinyflash.checkpoint.hub import SMALL_FILES
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import find_model
from tinyflash.cli import main
from tinyflash.commands.common import open_model
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.store import directory, verified
from tinyflash.flash.store.cached import store_of
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store
from tinyflash.flash.store.manifest import SEAL, seal_of
from tinyflash.flash.store.predictor_file import write_predictors
from tinyflash.flash.store.thresholds import write_thresholds
from tinyflash.flash.store.verified import check_anew, refuse_changed_store, verify_once

IDS = [2, 5, 7, 9]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    source = write_model(folder / "opt", CONFIGS["opt"])
    store = open_store(convert(source, folder / "opt.flash"))
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
    write_predictors(store, predictors, {"layers": [{"window": window}] * config.layers})
    return source, store.path


@pytest.fixture
def store(models, tmp_path):
    shutil.copytree(models[1], tmp_path / "opt.flash")
    return open_store(tmp_path / "opt.flash")


def flip(path, at=-9):
    """Change a bit of a file in place."""
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


# Changed while it is verified.


@pytest.mark.parametrize(
    "name", ["resident.safetensors", "ffn.safetensors", "predictor.safetensors"]
)
def test_what_changes_while_it_is_verified_is_not_noted(store, name):
    sizes = {name: about["bytes"] for name, about in store.manifest["files"].items()}
    names = list(sizes)
    behind = sum(sizes[other] for other in names[: names.index(name) + 1])
    changed = []

    def progress(done, total):
        if done >= behind and not changed:
            changed.append(done)
            flip(store.path / name)

    verify_once(store, progress)
    assert changed and verified.noted(store) is None
    with pytest.raises(OSError, match=f"{name} was changed while it was opened; try again"):
        refuse_changed_store(store)
    with pytest.raises(ValueError, match=f"{name} is damaged: its SHA-256"):
        tinyflash.load(store.path)


def test_what_changes_between_opening_and_reading_is_refused(store, monkeypatch):
    read_config = directory.read_config
    for name in sorted(store.manifest["files"]) + ["flash.json"]:

        def change(*given, name=name):
            os.utime(store.path / name)  # not a byte of it: but somebody was at work there
            return read_config(*given)

        with monkeypatch.context() as patch:
            patch.setattr(directory, "read_config", change)
            with pytest.raises(OSError, match=f"{name} was changed while it was opened"):
                tinyflash.load(store.path)
    tinyflash.load(store.path)


def test_a_change_within_a_tick_of_the_clock_is_waited_for_or_not_noted(store, monkeypatch):
    path = store.path / "ffn.safetensors"
    os.utime(path)
    began = time.time()
    verify_once(store)
    assert time.time() - path.stat().st_ctime > noted.TICK > 0 and time.time() - began < 2
    assert verified.noted(store) == verified.fingerprint(store)
    # A clock that is behind the file's: nobody can tell when the tick is over.
    os.utime(path)
    monkeypatch.setattr(noted.time, "time", lambda: began - 100)
    verify_once(store)
    assert verified.noted(store) != verified.fingerprint(store)


def test_whole_seconds_are_a_coarse_clock(monkeypatch):
    now, slept = 1_700_000_000.25, []
    monkeypatch.setattr(noted.time, "time", lambda: now)
    monkeypatch.setattr(noted.time, "sleep", slept.append)
    second = 1_000_000_000
    assert noted.settled([[1, 1, 0, 1_700_000_000 * second]]) and slept.pop() == 1.75
    assert noted.settled([[1, 1, 0, 1_700_000_000 * second + 1]]) and not slept
    assert noted.settled([[1, 1, 0, int(now * second) - 5_000_000]])
    assert slept.pop() == pytest.approx(0.015, abs=1e-3)
    assert not noted.settled([[1, 1, 0, 1_700_000_009 * second]]) and not slept


# flash.json.


def every_change(value):
    """Every JSON value that differs from this one in one number, word, key or place."""
    if isinstance(value, dict):
        for name in value:
            yield {other: value[other] for other in value if other != name}
            for changed in every_change(value[name]):
                yield value | {name: changed}
        yield value | {"more": 1}
    elif isinstance(value, list):
        yield value[:-1]
        for i, one in enumerate(value):
            for changed in every_change(one):
                yield [*value[:i], changed, *value[i + 1 :]]
    elif isinstance(value, bool) or value is None:
        yield 1
    elif isinstance(value, str):
        yield value + "x"
    else:
        yield value * 1.0000001 + 1e-9
        yield str(value)


def test_every_change_of_flash_json_is_noticed(store, capsys):
    file = store.path / "flash.json"
    manifest = json.loads(file.read_text())
    assert manifest[SEAL] == seal_of(manifest)
    count = 0
    for changed in every_change(manifest):
        if SEAL not in changed:
            continue
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"flash\.json (was changed|is of format|is damaged)"):
            open_store(store.path)
        count += 1
    assert count > 100
    for verb in (["convert", "--check"], ["generate", "a", "--model"]):
        assert main([*verb, str(store.path)]) == 2
        assert "flash.json" in capsys.readouterr().err
    file.write_text(json.dumps(manifest, indent=7))  # the same in other spaces
    open_store(store.path)


def test_thresholds_are_written_with_their_digest(store):
    store = write_thresholds(store, [0.1] * store.config.layers)
    manifest = json.loads((store.path / "flash.json").read_text())
    assert manifest[SEAL] == seal_of(manifest) and list(manifest)[-1] == SEAL
    manifest["thresholds"][0] = 0.2
    (store.path / "flash.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="flash.json was changed after it was written"):
        tinyflash.load(store.path)


def unsealed(store):
    """What an earlier tinyflash would have written: no digest of flash.json."""
    file = store.path / "flash.json"
    manifest = json.loads(file.read_text())
    del manifest[SEAL]
    file.write_text(json.dumps(manifest))
    return manifest


def test_an_older_directory_opens_and_is_held_to_what_it_first_said(store, capsys):
    manifest = unsealed(store)
    model = tinyflash.load(store.path, memory="98%")
    assert model.flash.mode == "all"
    tinyflash.load(store.path)
    manifest["predictor"]["layers"][0]["threshold"] = 0.99
    (store.path / "flash.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"flash\.json was changed after the directory was verif"):
        tinyflash.load(store.path)
    assert main(["convert", "--check", str(store.path)]) == 2
    assert main(["generate", "a", "--model", str(store.path)]) == 2
    assert capsys.readouterr().err.count("was changed after the directory was verified") == 2


def test_another_older_directory_in_its_place_is_another_one(store, models):
    unsealed(store)
    verify_once(open_store(store.path))
    shutil.rmtree(store.path)
    shutil.copytree(models[1], store.path)
    manifest = unsealed(store)
    manifest["predictor"]["layers"][0]["threshold"] = 0.99
    (store.path / "flash.json").write_text(json.dumps(manifest))
    check_anew(open_store(store.path))


def test_any_key_that_an_older_directory_lacks_or_has_odd_is_a_sentence(store):
    manifest = unsealed(store)
    file, refused = store.path / "flash.json", 0
    for changed in every_change(manifest):
        file.write_text(json.dumps(changed))
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
        try:
            tinyflash.load(store.path, memory="98%").logits(IDS)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert "\n" not in str(error) and str(store.path) in str(error), error
    assert refused > 60


# The flash directory of a model, in the cache.


def test_a_flash_directory_is_found_by_all_that_its_text_depends_on(models, tmp_path):
    source = shutil.copytree(models[0], tmp_path / "model")
    found = [store_of(source)]
    assert store_of(source) == found[0]
    for name in SMALL_FILES:
        if (source / name).exists():
            (source / name).write_bytes((source / name).read_bytes() + b"\n")
        else:  # of those that are read only if nothing better is there
            (source / name).write_text("{}")
        found.append(store_of(source))
        assert store_of(source) == found[-1], name
    os.utime(
        source / "model.safetensors", ns=(0, (source / "model.safetensors").stat().st_mtime_ns)
    )
    found.append(store_of(source))  # times can be set; that they were set shows
    assert len(set(found)) == len(found) == len(SMALL_FILES) + 2
    (source / "notes.txt").write_text("not of the model")
    assert store_of(source) == found[-1]


def test_what_is_damaged_in_the_cache_says_how_it_is_made_again(models):
    out = store_of(models[0])
    flip(out / "ffn.safetensors")
    with pytest.raises(ValueError, match=f"delete {out}, and it is made again") as refusal:
        tinyflash.load(models[0], memory="95%")
    assert "ffn.safetensors is damaged" in str(refusal.value)
    shutil.rmtree(out)
    tinyflash.load(models[0], memory="95%")


def test_an_edited_model_runs_from_flash_as_it_does_from_dram(models, tmp_path):
    source = shutil.copytree(models[0], tmp_path / "model")
    before = tinyflash.load(source, memory="95%").logits(IDS)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"activation_function": "gelu"}))
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    flash, dense = tinyflash.load(source, memory="95%"), tinyflash.load(source)
    assert np.allclose(flash.logits(IDS), dense.logits(IDS), atol=1e-4)
    assert not np.allclose(flash.logits(IDS), before, atol=1e-2)
    assert flash.eos_ids == dense.eos_ids >= {1, 3}


FOUR = """
import os, sys
from tinyflash.cli import main
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        sys.stdout = open(os.devnull, "w")
        os._exit(main(["generate", "a", "--model", sys.argv[1], "--memory", "95%", "--json",
                       "--max-new-tokens", "2"]))
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""


def test_four_processes_that_convert_the_same_model_at_once(models):
    done = subprocess.run(
        [sys.executable, "-c", FOUR, str(models[0])], capture_output=True, text=True
    )
    # Whether one has to wait for another, and says so, is chance here; see the next test.
    assert done.stdout.strip() == "[0, 0, 0, 0]", done.stderr


HOLDER = """
import sys, time
from pathlib import Path
from tinyflash.checkpoint.cache import cache_directory, one_at_a_time
with one_at_a_time(cache_directory() / "x", "making x"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_a_killed_holder_blocks_nobody(capfd, monkeypatch, system):
    path = cache.cache_directory() / "x"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert holder.stdout.readline() == "held\n"
    if system == "windows":
        fake_windows(monkeypatch)
    looks = []

    def killed(seconds):
        looks.append(seconds)
        holder.kill()
        holder.wait()

    monkeypatch.setattr(cache.time, "sleep", killed)
    with one_at_a_time(path, "making x"):
        pass
    assert len(looks) == 1 and holder.returncode == -signal.SIGKILL
    assert capfd.readouterr().err == "Another process is making x; waiting for it.\n"


def fake_windows(monkeypatch):
    """msvcrt's lock, which is one of its own, made of fcntl's."""
    fcntl = cache.fcntl

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(handle, mode, nbytes):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PermissionError(13, "Permission denied") from error

    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    monkeypatch.setattr(cache, "fcntl", None)


# Whose the cache is.


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_cache_is_the_users_alone(models):
    old = os.umask(0o022)
    try:
        tinyflash.load(models[0], memory="95%")
    finally:
        os.umask(old)
    there = [cache.cache_directory(), *cache.cache_directory().rglob("*")]
    assert len(there) > 10 and {path.suffix for path in there} >= {".json", ".flash", ".lock"}
    for path in there:
        assert permissions(path) == (0o700 if path.is_dir() else 0o600), path


def test_a_cache_that_others_could_read_is_closed_to_them(store):
    cache.cache_directory().mkdir(parents=True)
    (cache.cache_directory() / "verified").mkdir()
    for path in (cache.cache_directory(), cache.cache_directory() / "verified"):
        path.chmod(0o777)
    verify_once(store)
    assert permissions(cache.cache_directory()) == 0o700
    assert permissions(cache.cache_directory() / "verified") == 0o700


def test_a_note_in_a_directory_of_another_user_is_not_believed(store, monkeypatch):
    verify_once(store)
    assert verified.noted(store) == verified.fingerprint(store)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    theirs = [os.stat(cache.cache_directory()).st_uid == 0]  # root's are as good as ours
    real = os.stat

    def stat_of(path, **settings):
        state = real(path, **settings)
        if str(path) == str(cache.cache_directory() / "verified"):
            state = os.stat_result([*state[:4], 54321, *state[5:]])
        return state

    monkeypatch.setattr(os, "stat", stat_of)
    assert verified.noted(store) is None and theirs
    with pytest.raises(OSError, match="verified is in the cache, .* belongs to another user"):
        private_directory(cache.cache_directory() / "verified")


def test_a_lock_is_no_way_to_write_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    locks = private_directory(cache.cache_directory() / "locks")
    (locks / "x.lock").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="x.lock cannot be written"):
        with one_at_a_time(cache.cache_directory() / "x", "making x"):
            pass
    assert not (tmp_path / "gone").exists()


# Once.


@pytest.mark.parametrize("source", ["a model", "a flash directory"])
def test_a_model_is_found_opened_and_verified_once(models, source):
    """Whatever `generate --memory` shows on the way; the first time it also converts."""
    once = (find_model, open_checkpoint, open_store, verify_once)
    names = {function.__code__: function.__name__ for function in once}
    calls = Counter()

    def count(frame, event, argument):
        if event == "call" and frame.f_code in names:
            calls[names[frame.f_code]] += 1

    path = models[source != "a model"]
    sys.setprofile(count)
    try:
        open_model(str(path), memory="120%")
    finally:
        sys.setprofile(None)
    expected = {"find_model", "open_store", "verify_once"}
    expected |= {"open_checkpoint"} if source == "a model" else set()
    assert calls == dict.fromkeys(expected, 1)
