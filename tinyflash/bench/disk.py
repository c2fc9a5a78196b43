"""How fast this machine's flash is read, by size of a read and number of threads.

    tinyflash bench disk [PATH]

This measures the curve of LLM in a flash, Fig. 2b, on your disk. Many disks give more while they
are rested than after some busy seconds, and a short test sees the better figure only. So all is
measured twice, before and after a load that takes what the disk has, and both are kept.
"""

import os
import platform
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

import numpy as np

from tinyflash.bench.disk_profile import (
    draw_profile,
    figure_class,
    is_plot,
    refuse_to_replace,
    save_figure,
    save_profile,
)
from tinyflash.costs.device_profile import load_profile
from tinyflash.flash.reading.direct_io import BLOCK, aligned_empty
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.progress import quiet

CHUNKS = tuple(1024 * n for n in (4, 8, 16, 32, 64, 256, 1024))  # bytes of one read
THREADS = (1, 4, 16, 32)
SECONDS = 60.0
FILE_BYTES = 2 << 30
BATCH_BYTES = 64 << 20  # what one call reads, at most
BATCH_READS = 256  # and how many reads a thread does in it, at most
PIECE_BYTES = 16 << 20  # written at once
SPARE_BYTES = 64 << 20  # left free on the disk
LOAD_STEPS = 20  # the load is so many measurements long
DESCRIPTORS = ("/proc/{pid}/fd", "/dev/fd")  # Linux: other processes can open it, too; macOS


def measure_disk(
    path=".",
    *,
    seconds=SECONDS,
    chunks=CHUNKS,
    threads=THREADS,
    progress=None,
    file_bytes=FILE_BYTES,
):
    """Measure random reads on the disk that holds `path`, with a FlashReader.

    A third of the time goes to the combinations of chunk and threads while the disk is rested
    (cold), a third to a load of the largest chunk with most threads, a third to the combinations
    again, the largest first, while the disk is still at its limits (sustained).

    path      : a directory, or a file beside which the test file is written; it is removed again
    seconds   : of reading, in all
    chunks    : bytes of one read, multiples of 4096
    threads   : how many reads may be in flight
    progress  : function (done, total, **numbers)
    file_bytes: of the test file: random numbers, so that nothing can compress or share them
    returns   : dict, the device profile: name, date, system, seconds, file_bytes; under "cold"
                and "sustained" a list of {"chunk", "threads", "bytes_per_second"}, under "load"
                the bytes a second, step by step
    raises    : ValueError or OSError, one sentence: no such place, no room, not to be written
    """
    directory = directory_of(path)
    refuse_impossible(seconds, chunks, threads, file_bytes)
    combinations = [(chunk, count) for chunk in sorted(chunks) for count in sorted(threads)]
    cell_seconds = seconds / 3 / len(combinations)
    done, total = 0, -(-file_bytes // PIECE_BYTES) + 2 * len(combinations) + LOAD_STEPS

    def step(**numbers):
        nonlocal done
        done += 1
        if progress:
            progress(done, total, **numbers)

    with ExitStack() as stack:
        file = stack.enter_context(trial_file(directory, file_bytes, step))
        readers = {n: stack.enter_context(FlashReader(file, threads=n)) for n in threads}
        out = aligned_empty((max(*chunks, min(BATCH_BYTES, file_bytes // 4)),), np.uint8)
        out.fill(0)  # now it takes DRAM, and not while we measure

        def measure(chunk, count, seconds):
            speed = random_read_speed(readers[count], file_bytes, chunk, seconds, out)
            step(GB_per_second=speed / 1e9)
            return {"chunk": chunk, "threads": count, "bytes_per_second": speed}

        cold = [measure(*both, cell_seconds) for both in combinations]
        load = [measure(*combinations[-1], seconds / 3 / LOAD_STEPS) for _ in range(LOAD_STEPS)]
        sustained = [measure(*both, cell_seconds) for both in reversed(combinations)]
    return {
        "name": platform.node() or "this machine",
        "date": date.today().isoformat(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "seconds": seconds,
        "file_bytes": file_bytes,
        "cold": cold,
        "load": [cell["bytes_per_second"] for cell in load],
        "sustained": sustained[::-1],
    }


def random_read_speed(reader, file_bytes, chunk, seconds, out):
    """Bytes a second of random reads of one size; drawing the places is not counted.

    Only every other chunk of the file is read: no two of them touch, and none become one read.

    file_bytes: of the file that `reader` reads, at least two chunks
    out       : uint8, room for what one call reads: one chunk or more
    """
    rng = np.random.default_rng()  # other places each time: no cache knows them
    places = file_bytes // chunk // 2
    count = min(BATCH_READS * reader.threads, out.nbytes // chunk, places)
    room = out[: count * chunk].reshape(count, chunk)
    reader.counters.take()
    while reader.counters.seconds < seconds:
        reader.read_rows(0, chunk, 2 * rng.choice(places, count, replace=False), room)
    counted = reader.counters.take()
    return counted.bytes_wanted / counted.seconds


def directory_of(path):
    """The directory that `path` is or lies in; FileNotFoundError if there is no such path."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a directory or a file on the disk.")
    return path if path.is_dir() else path.parent


def refuse_impossible(seconds, chunks, threads, file_bytes):
    """Refuse, in one sentence, what cannot be measured."""
    if not seconds > 0 or not chunks or not threads or min(threads) < 1:
        raise ValueError("To measure a disk takes some seconds, a chunk and a thread at least.")
    if any(chunk % BLOCK or not BLOCK <= chunk <= file_bytes // 4 for chunk in chunks):
        raise ValueError(
            f"A chunk is a multiple of {BLOCK} bytes, and at most {file_bytes // 4}, a quarter "
            "of the test file."
        )


@contextmanager
def trial_file(directory, nbytes, step=lambda: None):
    """A file of random bytes in `directory`, for the length of a `with` block; gives its path.

    step  : called after each piece written
    raises: OSError, one sentence, if there is no room or it may not be written
    """
    free = shutil.disk_usage(directory).free
    if free < nbytes + SPARE_BYTES:
        raise OSError(
            f"{directory} has {free / 1e9:.1f} GB free, and the test file needs "
            f"{(nbytes + SPARE_BYTES) / 1e9:.1f} GB; make room, or name a place on another disk."
        )
    with ExitStack() as stack:
        try:
            file, path = stack.enter_context(temporary_file(directory))
            fill(file, nbytes, step)
        except OSError as error:
            raise OSError(f"No test file in {directory}: {error.strerror}.") from error
        yield path


@contextmanager
def temporary_file(directory):
    """A file to write, and the path to open it by, for the length of a `with` block.

    It has no name in the directory, so it is gone afterwards, even if this process is killed. It
    is opened through its descriptor; on Windows, where that cannot be done, it has a name.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        for folder in DESCRIPTORS:
            path = Path(folder.format(pid=os.getpid()), str(file.fileno()))
            if path.exists():
                yield file, path
                return
    handle, name = tempfile.mkstemp(dir=directory, prefix="tinyflash-", suffix=".trial")
    try:
        with open(handle, "wb") as file:
            yield file, Path(name)
    finally:
        os.unlink(name)


def fill(file, nbytes, step):
    """Write random bytes, and wait until the disk has them."""
    rng = np.random.Generator(np.random.SFC64(time.time_ns()))
    for begin in range(0, nbytes, PIECE_BYTES):
        file.write(rng.bytes(min(PIECE_BYTES, nbytes - begin)))
        step()
    file.flush()
    os.fsync(file.fileno())


def bench_disk(path=".", *, seconds=SECONDS, out=None, plot=None, progress=quiet):
    """Measure a disk as `measure_disk` does, save the profile and draw it.

    path    : a directory or a file on the disk
    out     : the profile to write, or None;  plot : a PNG to draw, or None
    returns : the profile
    raises  : ValueError or OSError, one sentence; what cannot be written or drawn is said before
              the minutes of measuring
    """
    if plot:
        figure_class()
        refuse_to_replace(plot, is_plot, "a plot")
    if out:
        refuse_to_replace(out, load_profile, "a device profile")
    with progress("Disk", "steps") as report:
        profile = measure_disk(path, seconds=seconds, progress=report)
    if out:
        save_profile(profile, out)
    if plot:
        save_figure(draw_profile(profile), plot, dpi=150)
    return profile
