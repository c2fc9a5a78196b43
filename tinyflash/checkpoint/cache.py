"""The user's cache: the user's alone, and filled by one process at a time.

What lies in it is trusted: models that were fetched, flash directories, notes of what was verified.
So its directories are for the user only (0700), and one that another user may write is not used.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyflash.files import NO_LINKS, PLAINLY, naming
from tinyflash.streams import note

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

POLL = 0.2  # seconds between two looks at a lock where nobody wakes us


def cache_directory() -> Path:
    """Where fetched models stay: tinyflash/ in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyflash"


def private_directory(path: Path) -> Path:
    """A directory of the cache, made if it is not there: the user's alone; returns it.

    raises: OSError, one sentence, if it cannot be made, or others may write to it
    """
    for directory in [*reversed(path.parents), path]:
        ours = directory == path or directory == cache_directory()
        if not ours and directory.exists():
            continue
        with naming(directory, "made"):
            directory.mkdir(mode=0o700, exist_ok=True)
        if ours:
            keep_others_out(directory)
    return path


def keep_others_out(directory: Path) -> None:
    """Take from others what they may do in a directory of ours; OSError if it is not ours."""
    if not hasattr(os, "getuid"):  # Windows keeps users apart by other means
        return
    with naming(directory):
        state, link, parent = os.stat(directory), os.lstat(directory), os.stat(directory.parent)
    whose, me = f"{directory} is in the cache, whose files are trusted", os.getuid()
    others = {state.st_uid, link.st_uid} - {0, me}
    if others and (me != 0 or parent.st_mode & 0o002):  # root may be given a user's directory
        raise OSError(f"{whose}, and belongs to another user; set XDG_CACHE_HOME to your own.")
    if state.st_mode & 0o077:
        try:
            os.chmod(directory, stat.S_IMODE(state.st_mode) & 0o700)
        except OSError:
            if state.st_mode & 0o022:
                raise OSError(
                    f"{whose}, and others may write to it; run chmod 700 on it, or set "
                    "XDG_CACHE_HOME."
                ) from None


@contextmanager
def one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Do something in the cache while no other process does the same; others wait for their turn.

    The lock is a file in locks/; it is free when whoever held it ends, however that comes about.

    path  : of what is made
    what  : what is done, for the line that says that we wait: "converting default for flash"
    raises: OSError, one sentence, if the cache cannot be written
    """
    private_directory(path.parent)
    lock = private_directory(cache_directory() / "locks") / f"{path.name}.lock"
    with naming(lock, "written"):
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | NO_LINKS | PLAINLY, 0o600)
    try:
        if not take(handle):
            note(f"Another process is {what}; waiting for it.")
            wait(handle)
        yield
    finally:
        with suppress(OSError):
            os.close(handle)  # and with it the lock


def take(handle: int) -> bool:
    """Take a lock if it is free; True, too, where there are no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except (OSError, ImportError):  # a file system or a system without locks
        return True
    return True


def wait(handle: int) -> None:
    """Wait until a lock is ours."""
    while not take(handle):
        time.sleep(POLL)
