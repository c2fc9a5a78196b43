"""Converting under bad conditions: little DRAM, a full disk, kill -9, somebody else at work."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers_models import LLAMA_CONFIG, OPT_CONFIG, write_model
from helpers_pytorch_bin import write_bin
from helpers_sources import gguf_name, write_llama_gguf, write_source
from helpers_systems import needs_locks
from safetensors.numpy import load_file, save_file

from tinyflash.checkpoint.mapped import file_behind
from tinyflash.config import weight_shapes
from tinyflash.families import read_config
from tinyflash.flash.store import convert as convert_module
from tinyflash.flash.store import writing as unfinished
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import check_store, is_store, open_store

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(request, monkeypatch):
    """That files reach the disk is one test's business."""
    if "on_the_disk" not in request.node.name:
        monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "model", OPT_CONFIG)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names(directory):
    return {path.name for path in directory.iterdir()}


# What is asked for.


def test_progress_counts_every_byte_once_and_ends_at_all(tmp_path, source):
    told = []
    out = convert(source, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    files = [source / "model.safetensors", out / "resident.safetensors", out / "ffn.safetensors"]
    total = sum(file.stat().st_size for file in files)
    assert told == sorted(told) and told[-1] == (total, total)
    assert {all_bytes for _, all_bytes in told} == {total} and len(told) > 20


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bundling": "diagonal"}, "Bundling is row-column or plain, not 'diagonal'"),
        ({"dtype": "int8"}, "float16, bfloat16, float32 or keep, not 'int8'"),
    ],
)
def test_settings_that_mean_nothing(tmp_path, source, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        convert(source, tmp_path / "out", **settings)
    assert names(tmp_path) == {"model"}


def test_models_that_are_refused(tmp_path, source):
    out = tmp_path / "out"
    store = convert(source, tmp_path / "store")
    with pytest.raises(ValueError, match="store is a flash directory already; convert the checkp"):
        convert(store, out)
    with pytest.raises(FileNotFoundError, match="There is no '.*absent' here"):
        convert(tmp_path / "absent", out)
    config = source / "config.json"
    for change, sentence in [
        ({"model_type": "bert"}, "is an encoder"),
        ({"model_type": "mixtral"}, "no model type 'mixtral'"),
        ({"ffn_dim": 41}, r"fc1.weight is 40 × 24 .* calls for 41 × 24"),
        ({"num_hidden_layers": 3}, "no tensor named .*layers.2"),
        ({"num_hidden_layers": 1}, r"holds 16 tensors that config.json does not call for"),
    ]:
        config.write_text(json.dumps(OPT_CONFIG | change))
        with pytest.raises(ValueError, match=sentence):
            convert(source, out)
    config.write_text(json.dumps(OPT_CONFIG))
    tensors = load_file(source / "model.safetensors")
    bad = tensors | {name: a.astype(np.int32) for name, a in tensors.items() if ".fc" in name}
    save_file(bad, source / "model.safetensors")
    with pytest.raises(ValueError, match="fc.* is of type int32 and cannot be a weight"):
        convert(source, out)
    assert names(tmp_path) == {"model", "store"}


def test_what_the_config_says_twice_is_left_out(tmp_path, source):
    tensors = load_file(source / "model.safetensors")
    tied = tensors["model.decoder.embed_tokens.weight"].copy()
    save_file(tensors | {"lm_head.weight": tied}, source / "model.safetensors")
    store = open_store(convert(source, tmp_path / "out"))
    assert "lm_head.weight" not in load_file(store.path / "resident.safetensors")


# Little DRAM.

MEDIUM = LLAMA_CONFIG | {
    "vocab_size": 20_000,
    "hidden_size": 256,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 32,
    "intermediate_size": 2048,
    "tie_word_embeddings": True,
}
CONVERT_AND_MEASURE = """
import gguf, json, resource, sys
import tinyflash.checkpoint.gguf_tokenizer
from tinyflash.flash.store import convert as module
source, out, dtype, leaky = sys.argv[1:]
if leaky == "leaky":
    module.let_go = lambda array: None
def resident(key):
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return 1024 * sum(int(lines[k].split()[0]) for k in key.split("+"))
before = resident("RssAnon+RssFile")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # VmHWM, the peak of RssAnon + RssFile (+ RssShmem), begins anew
module.convert(source, out, dtype=dtype)
print(resident("VmHWM") - before)
"""


def write_medium(directory, kind):
    """A model of 40 MB, holes where the file system can have them."""
    config = read_config(MEDIUM)
    if kind.startswith("gguf"):
        zeros = {name: np.zeros(s, dtype=np.float32) for name, s in weight_shapes(config).items()}
        path = directory.with_suffix(".gguf")
        write_llama_gguf(path, gguf.GGMLQuantizationType[kind[5:]], MEDIUM, weights=zeros)
        return path
    from tinyflash.families import tensor_names

    places = tensor_names(config)
    shapes = {places[name].name: shape for name, shape in weight_shapes(config).items()}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(MEDIUM))
    if kind == "bin":
        zeros = {name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}
        write_bin(directory / "pytorch_model.bin", zeros)
        return directory
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return directory


@pytest.mark.parametrize(
    ("kind", "dtype", "leaky"),
    [
        ("safetensors", "keep", False),
        ("safetensors", "float32", False),
        ("bin", "keep", False),
        ("gguf-F16", "keep", False),
        ("gguf-Q4_0", "float16", False),
        ("safetensors", "keep", True),
        ("gguf-F16", "keep", True),
    ],
)
def test_dram_holds_a_layer_and_not_the_model(tmp_path, kind, dtype, leaky):
    source = write_medium(tmp_path / "medium", kind)
    arguments = [str(source), str(tmp_path / "out"), dtype, "leaky" if leaky else "tight"]
    done = subprocess.run(
        [sys.executable, "-c", CONVERT_AND_MEASURE, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(done.stdout)
    print(f"{kind} {dtype} {'leaky' if leaky else ''}: {peak / 1e6:.1f} MB more at the peak")
    layer = 3 * 256 * 2048 * 2
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) > 40e6
    if leaky:
        assert peak > 30e6  # so the measure would see it
    else:
        assert peak < layer + 12e6


def test_every_kind_of_mapped_tensor_is_let_go(tmp_path):
    for kind in ("float16", "bin", "shards", "gguf-F16"):
        path, _ = write_source(tmp_path / kind, "llama", kind)
        checkpoint = convert_module.open_checkpoint(path)
        for name in checkpoint.names():
            tensor = checkpoint[name]
            if not kind.startswith("gguf") or "q_proj" not in name and "k_proj" not in name:
                assert file_behind(tensor.array.T[1:]) is not None, (kind, name)
    assert file_behind(np.zeros(3, dtype=np.float32)) is None


# A full disk.


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB: tmpfs, where this process may mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    mounted = (
        hasattr(os, "geteuid")
        and os.geteuid() == 0
        and subprocess.run(mount, capture_output=True).returncode == 0
    )
    yield disk if mounted else None
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


FULL = r"^The disk is full: .*out takes [\d,]+ bytes, and [\d,]+ are free there now that nothing"


@pytest.mark.parametrize("reserving", [True, False])
def test_a_full_disk_is_said_in_one_sentence_and_cleaned_up(
    tmp_path, small_disk, monkeypatch, reserving
):
    big = write_model(tmp_path / "big", OPT_CONFIG | {"ffn_dim": 4000})
    small = write_model(tmp_path / "small", OPT_CONFIG)
    disk = small_disk or tmp_path / "disk"
    if not reserving:  # as on a file system that cannot
        monkeypatch.setattr(unfinished, "reserve", lambda handle, nbytes: None)
    if small_disk is None:  # no right to mount one: the same errors without it
        room_for(monkeypatch, 256 << 10)
    told = [0]
    with pytest.raises(OSError, match=FULL) as raised:
        convert(big, disk / "out", progress=lambda done, total: told.append(total - done))
    assert "\n" not in str(raised.value)
    assert names(disk) == set()
    if small_disk:
        feed_forward = open_store(convert(big, tmp_path / "fits")).ffn_path.stat().st_size
        known = reserving and hasattr(os, "posix_fallocate")
        assert (told[-1] == feed_forward) == known  # if it can be known before, it is
        check_store(open_store(convert(small, disk / "out")))


def test_the_disk_may_fill_up_at_any_byte(tmp_path, source, monkeypatch):
    needed = sum(map(len, contents(convert(source, tmp_path / "reference")).values()))
    needed += len(unfinished.SAYS)  # which is deleted in the end
    for room in (0, 1, 5000, needed // 2, needed - 4096, needed - 1):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=FULL):
            room_for(patch, room)
            convert(source, tmp_path / "out")
        assert names(tmp_path) == {"model", "reference"}
    room_for(monkeypatch, needed)
    convert(source, tmp_path / "out")


def room_for(monkeypatch, nbytes):
    """Have new_file() give files that take so many bytes in all, and reserve() nothing."""
    monkeypatch.setattr(unfinished, "reserve", lambda handle, nbytes: None)

    class Full:
        def __init__(self, path):
            self.file = open(path, "xb")

        def write(self, data):
            nonlocal nbytes
            nbytes -= len(data)
            if nbytes < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    monkeypatch.setattr(unfinished, "new_file", Full)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "bad flash")])
def test_ctrl_c_and_other_errors_leave_nothing_either(tmp_path, source, error):
    def interrupt(done, total):
        if done > total / 2:
            raise error

    with pytest.raises(type(error)) as raised:
        convert(source, tmp_path / "out", progress=interrupt)
    assert raised.value is error
    assert names(tmp_path) == {"model"}


@needs_locks
def test_files_are_on_the_disk_before_the_directory_has_its_name(tmp_path, source, monkeypatch):
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        events.append(path.name)
        real_fsync(handle)
        assert path.is_dir() or path.stat().st_size > 0

    def rename(old, new):
        events.append("rename")
        real_rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    out = convert(source, tmp_path / "out")
    last = ["ffn.safetensors", "flash.json", "out.part", "rename", tmp_path.name]
    assert events[-5:] == last
    assert {*events} == names(out) | {"out.part", "rename", tmp_path.name}


# kill -9.

# Forks one child a moment: the child kills itself at that call of a function that changes or
# reports something.
KILL_AT_EVERY_MOMENT = """
import os, signal, sys
from tinyflash.flash.store import writing as unfinished
from tinyflash.flash.store.convert import convert
source, folder, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
moment = 0
while True:
    out = os.path.join(folder, f"out{moment}")
    pid = os.fork()
    if pid == 0:
        calls = 0
        def tick(*_):
            global calls
            calls += 1
            if calls > moment:
                os.kill(os.getpid(), signal.SIGKILL)
        def ticking(function):
            def call(*arguments, **settings):
                tick()
                result = function(*arguments, **settings)
                tick()
                return result
            return call
        unfinished.new_file = ticking(unfinished.new_file)
        os.fsync = ticking(lambda handle: None)  # a killed process is no power cut
        os.rename, os.posix_fallocate = ticking(os.rename), ticking(os.posix_fallocate)
        convert(source, out, progress=tick)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status):
        print(moment, os.waitstatus_to_exitcode(status))
        break
    moment += step
"""


@needs_locks
def test_killed_at_any_moment_it_leaves_nothing_half_written_that_opens(tmp_path, source):
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", KILL_AT_EVERY_MOMENT, str(source), str(folder), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    moments, code = map(int, done.stdout.split())
    assert code == 0 and moments > 60
    reference = contents(folder / f"out{moments}")
    assert is_store(folder / f"out{moments}")
    states = {"nothing": 0, "part": 0, "whole": 0}
    for moment in range(0, moments, 3):
        out, part = folder / f"out{moment}", folder / f"out{moment}.part"
        if out.exists():  # killed after the rename
            states["whole"] += 1
            assert contents(out) == reference
        elif part.exists():
            states["part"] += 1
            try:
                open_store(part)
            except (FileNotFoundError, ValueError):
                continue
            assert contents(part) == reference  # killed just before the rename
        else:
            states["nothing"] += 1
    assert states["part"] > 20 and states["whole"] > 0
    # What was left is in nobody's way.
    for moment in (9, moments // 6 * 3, moments - 9):
        out = folder / f"out{moment}"
        if not out.exists():
            convert(source, out)
        assert contents(out) == reference
        assert not (folder / f"out{moment}.part").exists()


# Somebody else.


def test_two_conversions_into_one_place(tmp_path, source):
    out = tmp_path / "out"
    refused = []

    def second(done, total):
        if done in (total, 0) or not refused:
            with pytest.raises(ValueError, match="nother process is writing .*out"):
                convert(source, out)
            refused.append(done)

    convert(source, out, progress=second)
    assert len(refused) >= 2
    check_store(open_store(out))
    assert names(tmp_path) == {"model", "out"}


def test_two_processes_into_one_place(tmp_path, source):
    program = (
        "import sys; from tinyflash.flash.store.convert import convert; convert(*sys.argv[1:])"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, str(source), str(out)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    assert "nother process is writing" in "".join(said) or "exists already" in "".join(said)
    check_store(open_store(out))
    assert names(tmp_path) == {"model", "out"}


@needs_locks
def test_a_second_writer_that_comes_between_rename_and_lock(tmp_path):
    out, part = tmp_path / "out", tmp_path / "out.part"
    with pytest.raises(ValueError, match="Another process is writing"):
        out.mkdir()
        unfinished.locked(part, out)
    assert names(tmp_path) == {"out"}
    real_open = os.open

    def opening(path, flags):
        handle = real_open(path, flags)
        os.rename(part, tmp_path / "elsewhere")  # the first writer is done
        return handle

    out.rmdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opening)
        with pytest.raises(ValueError, match="Another process is writing"):
            unfinished.locked(part, out)
    assert names(tmp_path) == {"elsewhere"}


@pytest.mark.parametrize("kind", ["file", "directory", "full directory", "dangling link"])
def test_a_place_that_is_taken_is_left_alone(tmp_path, source, kind):
    out = tmp_path / "out"

    def take():
        if kind == "file":
            out.write_text("mine")
        elif kind == "dangling link":
            out.symlink_to(tmp_path / "gone")
        else:
            out.mkdir()
        if kind == "full directory":
            (out / "mine").write_text("mine")

    def take_at_the_end(done, total):
        if done == total:
            take()

    if kind in ("file", "full directory"):
        with pytest.raises(ValueError, match="out was not there before and is now"):
            convert(source, out, progress=take_at_the_end)
        assert names(tmp_path) == {"model", "out"}
    else:
        take()
    with pytest.raises(ValueError, match="out exists already; choose another place"):
        convert(source, out)
    assert names(tmp_path) == {"model", "out"} and not is_store(out)
    if kind == "full directory":
        assert contents(out) == {"mine": b"mine"}


@needs_locks
def test_files_of_others_in_an_unfinished_directory_are_not_deleted(tmp_path, source):
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "ffn.safetensors").write_bytes(b"left by a killed conversion")
    (part / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"out.part is in the way: it is no unfinished work of"):
        convert(source, tmp_path / "out")
    (part / unfinished.MARK).touch()
    with pytest.raises(ValueError, match=r"thesis.tex is not of an unfinished conversion; move"):
        convert(source, tmp_path / "out")
    assert names(part) == {"ffn.safetensors", "thesis.tex", unfinished.MARK}
    (part / "thesis.tex").unlink()
    convert(source, tmp_path / "out")
    assert names(tmp_path) == {"model", "out"}
    part.write_bytes(b"a file")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ValueError, match="out.part is in the way: it is no directory; move it"):
        convert(source, tmp_path / "out")
    assert part.read_bytes() == b"a file"


def test_a_whole_directory_called_part_is_left_alone(tmp_path, source):
    whole = contents(convert(source, tmp_path / "out.part"))
    with pytest.raises(ValueError, match=r"out.part is in the way: it is no unfinished work of"):
        convert(source, tmp_path / "out")
    assert contents(tmp_path / "out.part") == whole and names(tmp_path) == {"model", "out.part"}
    convert(source, tmp_path / "elsewhere")
    (tmp_path / "out2.part").symlink_to("elsewhere")  # nothing is written through a link
    (tmp_path / "out3.part").symlink_to("nowhere")
    for name in ("out2", "out3"):
        with pytest.raises(ValueError, match=f"{name}.part is in the way: it is a symbolic link"):
            convert(source, tmp_path / name)
    assert contents(tmp_path / "elsewhere") == whole and not (tmp_path / "nowhere").exists()


def test_links_in_an_unfinished_directory_are_not_followed(tmp_path, source):
    (tmp_path / "victim").write_bytes(b"mine")
    part = tmp_path / "out.part"

    def plant(done, total):
        link = part / "ffn.safetensors"
        if not os.path.lexists(link):
            link.symlink_to(tmp_path / "victim")

    with pytest.raises(OSError, match="ffn.safetensors cannot be written: File exists"):
        convert(source, tmp_path / "out", progress=plant)
    assert (tmp_path / "victim").read_bytes() == b"mine" and names(tmp_path) == {"model", "victim"}


def test_a_part_directory_of_another_user_is_left_alone(tmp_path, source, monkeypatch):
    (tmp_path / "out.part").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(ValueError, match="out.part is in the way: it belongs to another user"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("what", ["changed", "deleted"])
def test_a_source_that_changes_meanwhile_is_not_converted(tmp_path, source, name, what):
    hits = []

    def change(done, total):
        if done > total / 2 and not hits:
            hits.append(done)
            os.utime(source / name) if what == "changed" else (source / name).unlink()

    with pytest.raises(OSError, match=f"{name} was changed while it was (converted|in use)"):
        convert(source, tmp_path / "out", progress=change)
    assert names(tmp_path) == {"model"}


def test_gguf_names_of_the_helper_are_those_of_the_format():
    assert gguf_name("layers.1.ffn.up.weight") == "blk.1.ffn_up.weight"
    assert gguf_name("embed.weight") == "token_embd.weight"
