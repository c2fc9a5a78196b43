"""The FlashReader's speed against fio's: random reads by as many threads, on the same file.

    python -m tinyflash.bench.reader_against_fio [PATH] [--json]      (needs fio, a Debian package)

fio is the usual yardstick for disks, written in C. Its engine psync does what a FlashReader does:
each thread asks for one piece with a direct `pread`, waits for it, and asks for the next. The two
are measured in turn, so that a busy moment of the machine strikes both; figures are medians. (fio
reads into ordinary pages. Where the reader is ahead, it is because of its huge ones.)
"""

import argparse
import json
import shutil
import statistics
import subprocess

import numpy as np

from tinyflash import terminal
from tinyflash.bench.disk import directory_of, random_read_speed, trial_file
from tinyflash.flash.direct_io import aligned_empty
from tinyflash.flash.reader import FlashReader

CHUNKS = (16 << 10, 64 << 10)  # bytes
BATCH_BYTES = 64 << 20  # what one call of the reader reads, at most


def fio_speed(file, chunk, threads, seconds):
    """Bytes a second that fio reads from a file, in whole seconds of time."""
    command = [
        *("fio", "--name=randread", f"--filename={file}", "--rw=randread", f"--bs={chunk}"),
        *("--ioengine=psync", "--direct=1", f"--numjobs={threads}", "--thread", "--readonly"),
        *("--time_based", f"--runtime={seconds}", "--norandommap", "--randrepeat=0"),
        *("--group_reporting", "--output-format=json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"fio failed: {done.stderr.strip() or done.stdout.strip()}")
    return json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"]


def measure(path, *, threads, rounds, seconds, file_bytes, progress):
    """Both speeds for each of CHUNKS: medians over `rounds`, taken in turn.

    returns: list of {"chunk", "threads", "tinyflash", "fio"} in bytes a second, and "ratio"
    """
    results = []
    with (
        trial_file(directory_of(path), file_bytes) as file,
        FlashReader(file, threads=threads) as reader,
    ):
        out = aligned_empty((BATCH_BYTES,), np.uint8)
        out.fill(0)
        speeds = {(chunk, name): [] for chunk in CHUNKS for name in ("tinyflash", "fio")}
        for done in range(rounds):
            for chunk in CHUNKS:
                ours = random_read_speed(reader, file_bytes, chunk, seconds, out)
                speeds[chunk, "tinyflash"].append(ours)
                speeds[chunk, "fio"].append(fio_speed(file, chunk, threads, seconds))
            progress(done + 1, rounds)
    for chunk in CHUNKS:
        ours, fios = (statistics.median(speeds[chunk, name]) for name in ("tinyflash", "fio"))
        results.append(
            {"chunk": chunk, "threads": threads, "tinyflash": ours, "fio": fios}
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
        (f"{r['chunk'] >> 10} KiB", f"{r['tinyflash'] / 1e9:.2f}", f"{r['fio'] / 1e9:.2f}")
        + (f"{r['ratio']:.2f}",)
        for r in results
    ]
    header = ("one read", "tinyflash, GB/s", "fio, GB/s", "ratio")
    terminal.table(f"Random reads, {options.threads} threads", header, rows)


if __name__ == "__main__":
    main()
