"""Directories that tinyflash makes for itself: marked, locked, and nobody else's files in them.

What is unfinished lies in such a directory: a conversion in OUT.part, a training in OUT.training.
It is used again, and cleared away in the end, only if it is known to be tinyflash's own. No link is
followed to it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyflash.files import NO_LINKS, UNFINISHED, naming

try:
    import fcntl
except ImportError:  # Windows, where directories cannot be opened either
    fcntl = None


@contextmanager
def own_directory(path: Path, ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """A directory in which one run keeps its state, to be used by nobody else meanwhile.

    It is made if it is not there, and removed again if it is left empty.

    ours  : tells by its files whether a directory that is not empty was made for the same purpose
    what  : the purpose, for messages: "training a drafter"
    raises: ValueError, and touches nothing, if it is somebody else's, or in use; OSError
    """
    handle = made_and_locked(path, what)
    try:
        names = [file.name for file in path.iterdir() if not UNFINISHED.fullmatch(file.name)]
        if names and not ours(path):
            raise ValueError(
                f"{path} is in the way: its files are not of tinyflash's {what}; move it away, or "
                "choose another place."
            )
        clear_leftovers(path)
        yield path
    finally:
        with suppress(OSError):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if handle is not None:
            with suppress(OSError):
                os.close(handle)  # and with it the lock


def made_and_locked(path: Path, what: str) -> int | None:
    """Make a directory if it is not there, and lock it; returns the lock, an open descriptor.

    raises: ValueError if it is a link or another user's, or another process has it
    """
    with naming(path, "made"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir()
    refuse_another_users(path)
    if fcntl is None or not hasattr(os, "O_DIRECTORY"):
        return None
    handle = opened(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):  # nobody has moved it since
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks
        return handle
    os.close(handle)
    raise ValueError(f"Another process is {what} in {path}; wait for it, or choose another place.")


def opened(path: Path) -> int:
    """A descriptor of a directory. Raises ValueError if it is a link or something else."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | NO_LINKS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            refuse_odd_directory(path)
        with naming(path):
            raise


def refuse_another_users(path: Path) -> None:
    """Raise a ValueError if a path is no directory of ours: a link, a file, another user's."""
    refuse_odd_directory(path)
    if hasattr(os, "getuid") and os.lstat(path).st_uid != os.getuid() != 0:
        raise ValueError(f"{path} is in the way: it belongs to another user; choose another place.")


def refuse_odd_directory(path: Path) -> None:
    """Raise a ValueError if a path is a link or no directory."""
    with naming(path):
        mode = os.lstat(path).st_mode
    if not stat.S_ISDIR(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no directory"
        raise ValueError(f"{path} is in the way: it is {kind}; move it away.")


def clear_leftovers(path: Path) -> None:
    """Delete what killed writers left under names of files in the making."""
    for file in path.iterdir():
        if UNFINISHED.fullmatch(file.name):
            with naming(file, "deleted"):
                file.unlink()
