"""What was verified is what is read: the state of files, and notes of what was found right.

A flipped bit in the weights makes no error by itself, only other text. Hashing 13 GB takes long, so
what was verified is noted in the user's cache by the number, size and times of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import nullcontext
from pathlib import Path

from tinyflash.checkpoint.cache import cache_directory, private_directory
from tinyflash.files import digest, naming, read_json, write_whole

TICK = 0.02  # seconds: the clocks that file systems read go on every 1 to 10 ms
COARSE = 2.0  # seconds: some file systems keep whole seconds, or every other one


def state_of(file: str | Path | int) -> list[int]:
    """What changes when a file does: its number, size, and times of change, as JSON has it.

    file  : a path, or the descriptor of an open file
    raises: OSError, one sentence, if there is no such file
    """
    with naming(file) if not isinstance(file, int) else nullcontext():
        status = os.stat(file)
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def was_written(path: str | Path, opened: list[int], now: list[int]) -> bool:
    """Whether somebody wrote to an open file: deleting it, or giving it another name, is not that.

    opened, now: from `state_of` of its descriptor;  path: the name by which it was opened
    """
    if now[1:3] != opened[1:3]:
        return True
    try:
        return now != opened and state_of(path)[0] == opened[0]
    except FileNotFoundError:
        return False


def settled(states: list[list[int]]) -> bool:
    """Whether a change from now on would show in the times of these files.

    One that comes within the same tick of the clock would not. So this waits for the next one.

    states: from `state_of`
    """
    # The time of change is set by the system alone; Windows keeps the time of writing only.
    times = [state[3] if os.name == "posix" else state[2] for state in states]
    coarse = all(time_ns % 1_000_000_000 == 0 for time_ns in times)
    left = max(times) / 1e9 + (COARSE if coarse else TICK) - time.time()
    if 0 < left <= COARSE:
        time.sleep(left)
    return left <= COARSE  # the clock of a file server may be ahead of ours


def right_once(path: Path, sha256: str) -> bool:
    """Whether a file has this digest: looked at when it is first used and when it has changed.

    raises: OSError, one sentence, if it cannot be read
    """
    before = {path.name: state_of(path)}
    if noted(path) == before:
        return True
    lasting = settled([*before.values()])
    right = digest(path) == sha256
    if right and lasting and before == {path.name: state_of(path)}:
        note(path, before)
    return right


def noted(path: Path) -> dict | None:
    """What was noted of a file or directory when it was last found right, or None."""
    try:
        private_directory(note_of(path).parent)
        return read_json(note_of(path))
    except (OSError, ValueError):
        return None


def note(path: Path, states: dict) -> None:
    """Note the states in which a file, or the files of a directory, were found right.

    Without a cache nothing is noted, which costs time, not correctness.
    """
    try:
        private_directory(note_of(path).parent)
        write_whole(note_of(path), json.dumps(states), mode=0o600)
    except (OSError, ValueError):
        return


def note_of(path: Path) -> Path:
    """Where the note of a file or directory lies, by its path."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    return cache_directory() / "verified" / f"{name}.json"
