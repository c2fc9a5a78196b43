"""Measuring a disk: what the profile says, and that the test file is gone whatever happens."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
from helpers_systems import needs_queue

from benchmarks import reader_against_fio
from tinyflash.bench import disk
from tinyflash.bench.disk import measure_disk, trial_file
from tinyflash.bench.disk_profile import draw_profile, save_profile
from tinyflash.cli import main
from tinyflash.costs.device_profile import load_profile
from tinyflash.flash.reading.direct_io import aligned_empty
from tinyflash.flash.reading.reader import FlashReader

MIB = 1 << 20
SMALL = {"seconds": 0.02, "chunks": (16_384, 4096), "threads": (1, 3), "file_bytes": MIB}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def small(monkeypatch):
    """`tinyflash bench disk` itself, made short."""
    whole = measure_disk
    monkeypatch.setattr(
        disk,
        "measure_disk",
        lambda path, seconds, progress: whole(path, progress=progress, **SMALL),
    )


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return measure_disk(tmp_path_factory.mktemp("disk"), **SMALL)


def test_a_profile_has_every_combination_cold_and_sustained(tmp_path):
    (tmp_path / "model").write_bytes(b"here already")
    steps = []

    def progress(done, total, **numbers):
        steps.append((done, total))
        assert "model" in os.listdir(tmp_path)

    profile = measure_disk(tmp_path / "model", progress=progress, **SMALL)
    for phase in ("cold", "sustained"):
        cells = [(cell["chunk"], cell["threads"]) for cell in profile[phase]]
        assert cells == [(4096, 1), (4096, 3), (16_384, 1), (16_384, 3)]
        assert all(cell["bytes_per_second"] > 0 for cell in profile[phase])
    assert len(profile["load"]) == disk.LOAD_STEPS and min(profile["load"]) > 0
    assert profile["file_bytes"] == MIB and profile["name"] and len(profile["date"]) == 10
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    assert os.listdir(tmp_path) == ["model"], "the test file is gone"


def test_speed_is_bytes_over_seconds_and_no_two_reads_become_one(tmp_path):
    out = aligned_empty((MIB,), np.uint8)
    calls = []

    class Watched(FlashReader):
        def read_rows(self, base, row_bytes, rows, room):
            super().read_rows(base, row_bytes, rows, room)
            assert set(self.counters.chunk_sizes) == {row_bytes}, "neighbors were merged"
            assert room.shape == (len(rows), row_bytes) and np.all(rows % 2 == 0)
            self.counters.seconds = 0.5 * (len(calls) + 1)  # a clock of our own
            calls.append(len(rows))

    with trial_file(tmp_path, MIB) as file, Watched(file, threads=2) as reader:
        speed = disk.random_read_speed(reader, MIB, 4096, 0.9, out)
    assert calls == [128, 128]  # every other of 256 chunks; 0.9 seconds take two calls
    assert speed == 2 * 128 * 4096 / 1.0


def test_the_test_file_cannot_be_compressed(tmp_path):
    with trial_file(tmp_path, 3 * MIB + 5) as file:
        data = np.fromfile(file, dtype=np.uint8)
    assert len(data) == 3 * MIB + 5
    pages = data[: 768 * 4096].reshape(768, 4096)
    assert len(np.unique(pages[:, :8].copy().view(np.uint64))) == 768, "no page like another"
    counts = np.bincount(data, minlength=256)
    assert counts.min() > 0.9 * counts.mean()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_the_test_file_is_removed_when_measuring_fails(tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(disk, "random_read_speed", fail)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(type(error)):
        measure_disk(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == [] and len(os.listdir("/dev/fd")) == before


def test_a_killed_measurement_leaves_no_file(tmp_path):
    program = (
        "import sys, time\n"
        "from tinyflash.bench.disk import trial_file\n"
        "with trial_file(sys.argv[1], 1 << 20):\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(9e9, 8e9, 1e9))
    with pytest.raises(OSError, match=r"has 1\.0 GB free, and the test file needs 2\.2 GB; make"):
        measure_disk(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_is_said_in_one_sentence(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(OSError, match=r"^No test file in .*: No space left on device\.$"):
        measure_disk(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"seconds": 0}, "takes some seconds"),
        ({"seconds": float("nan")}, "takes some seconds"),
        ({"threads": ()}, "a thread at least"),
        ({"threads": (4, 0)}, "a thread at least"),
        ({"chunks": (5000,)}, "a multiple of 4096 bytes, and at most 262144"),
        ({"chunks": (MIB,)}, "a multiple of 4096 bytes, and at most 262144"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        measure_disk(tmp_path, **(SMALL | change))


def test_a_place_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        measure_disk(tmp_path / "nowhere", **SMALL)


# Profiles


def test_a_profile_is_saved_and_loaded_again(tmp_path, profile):
    save_profile(profile, tmp_path / "disk.json")
    assert load_profile(tmp_path / "disk.json") == profile
    assert os.listdir(tmp_path) == ["disk.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "\xff",
        lambda text: text.replace('"cold"', '"warm"'),
        lambda text: text.replace('"chunk": 4096', '"chunk": 0'),
        lambda text: text.replace('"threads": 3', '"threads": "three"'),
        lambda text: json.dumps(json.loads(text) | {"sustained": []}),
        lambda text: json.dumps(json.loads(text) | {"name": None}),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path, profile, damage):
    path = tmp_path / "disk.json"
    save_profile(profile, path)
    path.write_bytes(damage(path.read_text()).encode("latin-1"))
    with pytest.raises(ValueError, match=r"disk\.json is not a device profile .* measure one with"):
        load_profile(path)


def test_a_profile_that_cannot_be_written_leaves_nothing(tmp_path, profile):
    with pytest.raises(TypeError):
        save_profile(profile | {"name": object()}, tmp_path / "disk.json")
    with pytest.raises(FileNotFoundError, match="There is no directory"):
        save_profile(profile, tmp_path / "nowhere" / "disk.json")
    assert os.listdir(tmp_path) == []


def test_the_curves_show_the_profile(profile):
    (axis,) = draw_profile(profile).axes
    drawn = {(line.get_label(), line.get_linestyle()): line for line in axis.lines}
    line = drawn["3 threads", "-"]
    assert list(line.get_xdata()) == [4, 16]
    speeds = [c["bytes_per_second"] / 1e9 for c in profile["sustained"] if c["threads"] == 3]
    assert list(line.get_ydata()) == speeds
    assert len(axis.lines) == 4  # cold and sustained, for both thread counts
    assert "KiB" in axis.get_xlabel() and "GB/s" in axis.get_ylabel()


# The command


def test_it_writes_what_it_is_told_to(tmp_path, small, capsys):
    out, plot = str(tmp_path / "disk.json"), str(tmp_path / "disk.png")
    profile = disk.bench_disk(tmp_path, seconds=1, out=out, plot=plot)
    assert load_profile(out) == profile
    assert (tmp_path / "disk.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["disk.json", "disk.png"]
    assert capsys.readouterr().out == ""


def test_the_command_shows_a_table_or_json(tmp_path, small, capsys):
    command = ["bench", "disk", str(tmp_path), "--seconds", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 threads" in printed and "16 KiB" in printed
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cold"]


def test_it_refuses_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "measure_disk", lambda *a, **b: pytest.fail("it measured"))
    with pytest.raises(FileNotFoundError, match="There is no directory .*nowhere"):
        disk.bench_disk(tmp_path, out=str(tmp_path / "nowhere" / "disk.json"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(ValueError, match="Drawing needs matplotlib; install it with"):
        disk.bench_disk(tmp_path, plot=str(tmp_path / "disk.png"))


@needs_queue
def test_the_reader_is_measured_against_fio_in_turn(tmp_path, monkeypatch):
    order = []

    def ours(reader, file_bytes, chunk, seconds, out):
        order.append(("tinyflash", chunk, reader.by_queue is not None))
        return (10, 20, 900)[sum(other == order[-1] for other in order[:-1])]

    def fio(file, chunk, threads, seconds, queued):
        assert os.path.getsize(file) == MIB and threads == 3
        order.append(("fio", chunk, queued))
        return 25

    monkeypatch.setattr(reader_against_fio, "random_read_speed", ours)
    monkeypatch.setattr(reader_against_fio, "fio_speed", fio)
    results = reader_against_fio.measure(
        tmp_path, threads=3, rounds=3, seconds=1, file_bytes=MIB, progress=lambda *done: None
    )
    ways = [(r["chunk"], r["queued"]) for r in results]
    assert {chunk for chunk, _ in ways} == {16_384, 65_536} and (16_384, False) in ways
    assert order == 3 * [(name, *way) for way in ways for name in ("tinyflash", "fio")]
    medians = {"threads": 3, "tinyflash": 20, "fio": 25, "ratio": 0.8}
    assert results[0] == {"chunk": 16_384, "queued": False} | medians
