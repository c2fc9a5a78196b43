"""Files: JSON read with one sentence of refusal, digests, and writing whole or not at all.

Whatever the system refuses here is one sentence that names the file. What is written takes its
name when it is on the disk and not before; until then it has a name that nobody can guess, and no
link that somebody put there is followed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

Content = bytes | str | Callable[[IO[bytes]], object]  # what a file gets, or who writes it

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.part")  # names of files in the making
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
PLAINLY = getattr(os, "O_BINARY", 0)  # and would translate ends of lines


def printable(text: str) -> str:
    """A name from a file that nobody vouches for, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


@contextmanager
def naming(path: str | Path, done: str = "read") -> Iterator[None]:
    """What the system refuses in this block is one sentence that names the file.

    done  : "read", "written", ...
    raises: the same kind of OSError with the same errno: `PATH cannot be read: Permission denied.`
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.strerror is None:  # it is a sentence of ours already
            raise
        kind = type(OSError(error.errno, error.strerror))  # FileNotFoundError, PermissionError ...
        told = kind(f"{path} cannot be {done}: {error.strerror}.")
        told.errno = error.errno
        raise told from error


def files_in(directory: str | Path, *patterns: str) -> list[Path]:
    """The files of a directory whose names fit one of the patterns, sorted.

    raises: OSError, one sentence, if the directory cannot be read: `Path.glob` would find none
    """
    with naming(directory):
        names = sorted(os.listdir(directory))
    fitting = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return [Path(directory) / name for name in fitting]


def read_bytes(path: str | Path) -> bytes:
    """All bytes of a file. Raises OSError, one sentence that names it, if it cannot be read."""
    with naming(path), open(path, "rb") as file:
        return file.read()


def read_text(path: str | Path) -> str:
    """A text file. Raises OSError if it cannot be read, ValueError if it is not in UTF-8."""
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}); convert it and try "
            "again."
        ) from None


def read_json(path: str | Path, unique_keys: bool = False) -> dict:
    """The dictionary in a JSON file. Raises OSError, or ValueError as `json_object`."""
    return json_object(read_bytes(path), Path(path), unique_keys)


def json_object(text: bytes, path: Path, unique_keys: bool = False) -> dict:
    """A JSON dictionary from a file. Raises ValueError if it is not one, or has a name twice."""
    try:
        value = json_value(text, unique_keys)
    except ValueError as error:
        raise ValueError(f"{path}: damaged JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged JSON: a dictionary is expected")
    return value


def json_value(text: bytes | str, unique_keys: bool = False) -> Any:
    """Whatever a JSON text holds. Raises ValueError for one that is damaged, or too deep."""

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict:
        values = {}
        for name, value in pairs:
            if name in values:
                raise ValueError(f"the name {printable(name)} occurs twice")
            values[name] = value
        return values

    try:
        return json.loads(text, object_pairs_hook=no_duplicates if unique_keys else None)
    except RecursionError:
        raise ValueError("it is a list in a list in a list, too deep to be read") from None


def digest(path: str | Path, report: Callable[[int], object] = lambda nbytes: None) -> str:
    """SHA-256 of a file in hexadecimal; `report` is told the bytes of each piece read."""
    sha256 = hashlib.sha256()
    with naming(path), open(path, "rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            report(len(piece))
    return sha256.hexdigest()


def write_whole(
    path: str | Path, content: Content, parents: bool = False, mode: int = 0o666
) -> None:
    """Write one file whole or not at all, as `write_files`."""
    write_files({Path(path): content}, parents, mode)


def write_json(
    path: str | Path, value: object, indent: int | None = None, parents: bool = False
) -> None:
    """Write a JSON file whole or not at all, as `write_files`."""
    write_whole(path, json.dumps(value, indent=indent) + "\n", parents)


def write_files(contents: Mapping[Path, Content], parents: bool = False, mode: int = 0o666) -> None:
    """Write files whole, all of them or none, and have them reach the disk.

    They take their names in the order of `contents`: put last what makes the others count. After
    an error or Ctrl-C everything is as it was before, directories made for them included; a kill
    between two names leaves the first with its new content.

    contents : path -> bytes, a str, or a function that writes to the binary file it is given
    parents  : whether directories that are missing are made
    mode     : who may read and write them, before the umask
    raises   : OSError, one sentence that names the file; ValueError if something that is no file
               stands at its place
    """
    made, unfinished = [], {}
    try:
        for path, content in contents.items():
            refuse_odd(path)
            made += make_parents(path) if parents else []
            unfinished[path] = unguessable(path)
            with naming(path, "written"), new_file(unfinished[path], mode) as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        take_names(unfinished)
    except BaseException:
        for temporary in unfinished.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        for directory in reversed(made):
            with suppress(OSError):
                directory.rmdir()
        raise


def take_names(unfinished: Mapping[Path, Path]) -> None:
    """Give finished files (final name -> present name) their names; after an error, none has."""
    new, kept = [], {}  # names that were not there before; and what stood at the others
    try:
        for path, temporary in unfinished.items():
            with naming(path, "written"):
                if path.exists():
                    keep(path, kept, alone=len(unfinished) == 1)
                else:
                    new.append(path)
                os.replace(temporary, path)
        for directory in {path.parent for path in unfinished}:
            flush(directory)
    except BaseException:
        with suppress(OSError):
            for path, old in kept.items():
                os.replace(old, path)
            for path in new:
                if not unfinished[path].exists():  # it has been renamed
                    path.unlink(missing_ok=True)
        raise
    finally:
        for old in 2 * [*kept.values()]:  # tried twice: nobody comes after us to do it
            with suppress(OSError):
                old.unlink(missing_ok=True)


def keep(path: Path, kept: dict[Path, Path], alone: bool) -> None:
    """Give a file that is to be replaced a second name, and note it in `kept`.

    Where the file system has no second names the file gets another one instead, unless it is
    replaced alone: then nothing can be left half replaced.
    """
    old = unguessable(path)
    try:
        os.link(path, old)
    except (OSError, AttributeError):
        if alone:
            return
        os.rename(path, old)
    kept[path] = old


def new_file(path: str | Path, mode: int = 0o666) -> IO[bytes]:
    """A binary file to write that was not there before; no link at its place is followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS | PLAINLY
    return os.fdopen(os.open(path, flags, mode), "wb")


def unguessable(path: Path) -> Path:
    """A name beside `path` for a file in the making."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")


def refuse_odd(path: Path) -> None:
    """Raise a ValueError if something that is no plain file stands where one is to be written."""
    with naming(path, "written"):
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise ValueError(f"{path} is {kind}, and is left alone; choose another name.")


def refuse_foreign(path: str | Path, ours: Callable[[Path], bool], what: str) -> None:
    """Raise a ValueError if a file would be replaced that is not of the kind to be written.

    ours : tells whether an existing file is; an error on the way means that it is not
    what : the kind, for the message: "a device profile"
    """
    path = Path(path)
    refuse_odd(path)
    if not path.exists():
        return
    try:
        same = ours(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        same = False
    if not same:
        raise ValueError(
            f"{path} is there already and is not {what} that tinyflash wrote, so it is left alone; "
            "choose another name, or delete it first."
        )


def make_parents(path: Path) -> list[Path]:
    """Make the directories that a file is to lie in; returns those that were not there."""
    missing = []
    for directory in path.parents:
        if directory.exists():
            break
        missing.append(directory)
    made = []
    for directory in reversed(missing):
        with naming(directory, "made"):
            directory.mkdir(exist_ok=True)
        made.append(directory)
    return made


def flush(directory: str | Path) -> None:
    """Have the names in a directory reach the disk, where a system lets us ask for that."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    with naming(directory, "written"):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems have no such thing
                raise
        finally:
            os.close(handle)


def to_install(requirement: str, extra: str) -> str:
    """How to get a package that an extra of tinyflash names, for a message.

    >>> to_install("shtab", "completion")
    'pip install "shtab" (or, in a clone of tinyflash, pip install -e ".[completion]")'
    """
    return f'pip install "{requirement}" (or, in a clone of tinyflash, pip install -e ".[{extra}]")'
