"""The FlashReader's speed against fio's: random reads by as many threads, on the same file.

    python -m benchmarks.reader_against_fio [PATH] [--json]      (needs fio, a Debian package)

fio is the usual yardstick for disks, written in C. Its engine psync does what the threads of a
FlashReader do: each asks for one piece with a direct `pread`, waits for it, and asks for the next.
Its engine libaio hands lists of reads to Linux, as a ReadQueue. Reader and fio are measured in
turn, so that a busy moment of the machine strikes both; figures are medians. (fio reads into
ordinary pages. Where the reader is ahead, it is because of its huge ones.)
"""

import argparse
import json
import shutil
import statistics
import subprocess
from contextlib import ExitStack

import numpy as np

from tinyflash import terminal
from tinyflash.bench.disk import directory_of, random_read_speed, trial_file
from tinyflash.flash.reading.direct_io import aligned_empty
from tinyflash.flash.reading.read_queue import IN_FLIGHT, open_queue
from tinyflash.flash.reading.reader import FlashReader

CHUNKS = (16 << 10, 64 << 10)  # bytes
BATCH_BYTES = 64 << 20  # what one call of the reader reads, at most


def fio_speed(file, chunk, threads, seconds, queued):
    """Bytes a second that fio reads from a file, in whole seconds of time."""
    by_threads = ("--ioengine=psync", f"--numjobs={threads}")
    by_queue = ("--ioengine=libaio", f"--iodepth={IN_FLIGHT}")
    command = [
        *("fio", "--name=randread", f"--filename={file}", "--rw=randread", f"--bs={chunk}"),
        *(by_queue if queued else by_threads),
        *("--direct=1", "--thread", "--readonly"),
        *("--time_based", f"--runtime={seconds}", "--norandommap", "--randrepeat=0"),
        *("--group_reporting", "--output-format=json"),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise OSError(f"fio failed: {done.stderr.strip() or done.stdout.strip()}")
    return json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"]


def measure(path, *, threads, rounds, seconds, file_bytes, progress):
    """Both speeds for each of CHUNKS, by threads and by a queue: medians, taken in turn.

    returns: list of {"chunk", "queued", "threads", "tinyflash", "fio"} in bytes a second, "ratio"
    """
    results = []
    with ExitStack() as stack:
        file = stack.enter_context(trial_file(directory_of(path), file_bytes))
        readers = {False: stack.enter_context(FlashReader(file, threads=threads))}
        if queue := open_queue():
            readers[True] = stack.enter_context(FlashReader(file, threads=threads, queue=queue))
        out = aligned_empty((BATCH_BYTES,), np.uint8)
        out.fill(0)
        ways = [(chunk, queued) for chunk in CHUNKS for queued in readers]
        speeds = {way: ([], []) for way in ways}
        for done in range(rounds):
            for chunk, queued in ways:
                ours, fios = speeds[chunk, queued]
                ours.append(random_read_speed(readers[queued], file_bytes, chunk, seconds, out))
                fios.append(fio_speed(file, chunk, threads, seconds, queued))
            progress(done + 1, rounds)
    for (chunk, queued), measured in speeds.items():
        ours, fios = map(statistics.median, measured)
        results.append(
            {"chunk": chunk, "queued": queued, "threads": threads, "tinyflash": ours, "fio": fios}
            | {"ratio": ours / fios}
        )
    return results


def main():
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", default=".", help="where to write the test file")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("fio") is None:
        parser.error("fio is not installed; on Debian: apt-get install fio")
    with terminal.progress("Reader and fio", "rounds") as report:
        results = measure(
            options.path,
            threads=options.threads,
            rounds=options.rounds,
            seconds=options.seconds,
            file_bytes=2 << 30,
            progress=report,
        )
    if options.json:
        print(json.dumps(results))
        return
    rows = [
        (f"{r['chunk'] >> 10} KiB", f"a queue of {IN_FLIGHT}" if r["queued"] else "threads")
        + (f"{r['tinyflash'] / 1e9:.2f}", f"{r['fio'] / 1e9:.2f}", f"{r['ratio']:.2f}")
        for r in results
    ]
    header = ("one read", "by", "tinyflash, GB/s", "fio, GB/s", "ratio")
    terminal.table(f"Random reads, {options.threads} threads", header, rows)


if __name__ == "__main__":
    main()
