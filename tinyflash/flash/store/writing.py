"""A directory that is either whole or not there, whatever happens while it is being written.

Its files are digested on the way out and on the disk before the directory gets its name.
"""

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress

from tinyflash.directories import fcntl, opened, refuse_another_users
from tinyflash.files import flush, naming, new_file

FULL = (errno.ENOSPC, errno.EDQUOT)
MARK = "UNFINISHED"  # a file in the directory as long as it is not whole
SAYS = b"tinyflash is writing this directory, or was killed while it did.\n"


@contextmanager
def whole_or_nothing(out, names, nbytes):
    """Give a directory to write into; when all is written it takes the name `out`.

    It is `out` with `.part` behind its name, and locked as long as its writer lives. After an
    error or Ctrl-C nothing is left of it. After kill -9 or a power cut it is left, unlocked and
    under that name; the next writer to the same `out` clears it away, if a file in it says that it
    was left so. (Where a directory cannot be locked, on Windows, it has to be deleted by hand.)

    out    : Path that must not exist
    names  : of all files that may be written, so that nobody else's are ever deleted
    nbytes : how many they take, for the message
    raises : ValueError if `out` exists, something else is called `.part`, or another process is
             writing to it; OSError if the disk is full
    """
    if os.path.lexists(out):
        raise ValueError(f"{out} exists already; choose another place, or delete it first.")
    with naming(out.parent, "made"):
        out.parent.mkdir(parents=True, exist_ok=True)
    part, names = out.with_name(f"{out.name}.part"), {*names, MARK}
    handle = locked(part, out)
    try:
        clear(part, names)
        try:
            with naming(part / MARK, "written"), new_file(part / MARK) as mark:
                mark.write(SAYS)
            yield part
            with naming(out, "written"):
                (part / MARK).unlink()
                flush(part)
                take_name(part, out)
                flush(out.parent)
        except BaseException as error:
            undo(part, out, handle, names)
            if isinstance(error, OSError) and error.errno in FULL:
                raise OSError(
                    f"The disk is full: {out} takes {nbytes:,} bytes, and "
                    f"{shutil.disk_usage(out.parent).free:,} are free there now that nothing of it "
                    "is left; make room, or choose another place."
                ) from error
            raise
    finally:
        if handle is not None:
            with suppress(OSError):
                os.close(handle)  # and with it the lock


def undo(part, out, handle, names):
    """After an error: leave nothing of the directory, even if it has its name already."""
    with suppress(OSError):
        if handle is not None and os.path.samestat(os.fstat(handle), os.lstat(out)):
            os.rename(out, part)
    with suppress(OSError):
        (part / MARK).touch()  # it may have lost its mark
        clear(part, names)
        part.rmdir()


def locked(part, out):
    """Make the directory `part` if it is not there, and lock it.

    returns: an open file descriptor, or None where directories cannot be locked
    raises : ValueError if another process has it, or was faster, or if it is a link, a file, or
             another user's
    """
    lockable, handle = fcntl is not None and hasattr(os, "O_DIRECTORY"), None
    with naming(part, "made"):
        try:
            part.mkdir()
        except FileExistsError:  # left by a writer that was killed, or another one is at work
            if not lockable:
                raise ValueError(
                    f"{part} is there: another process is writing {out}, or was killed while it "
                    "did; wait for it, or delete that directory."
                ) from None
    try:
        refuse_another_users(part)
        if lockable:
            handle = opened(part)
            with naming(part, "locked"):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.path.samestat(os.fstat(handle), os.lstat(part))
            if not same:  # between our mkdir and our lock it has become somebody's `out`
                raise FileNotFoundError
        if os.path.lexists(out):
            part.rmdir()
            raise FileExistsError
    except OSError as error:
        if handle is not None:
            os.close(handle)
        if not isinstance(error, BlockingIOError | FileNotFoundError | FileExistsError):
            raise
        raise ValueError(
            f"Another process is writing {out}, or has just done so; wait for it, or choose "
            "another place."
        ) from None
    return handle


def clear(part, names):
    """Delete the files of an unfinished directory, the mark that it is one last.

    raises: ValueError, and deletes nothing, if it has no mark, or one is not of `names`
    """
    files = sorted(part.iterdir())
    if files and part / MARK not in files:
        raise ValueError(
            f"{part} is in the way: it is no unfinished work of tinyflash; move it away, or "
            "choose another place."
        )
    for file in files:
        if file.name not in names:
            raise ValueError(f"{file} is not of an unfinished conversion; move it away first.")
    for file in sorted(files, key=lambda file: file.name == MARK):
        with naming(file, "deleted"):
            file.unlink()


def take_name(part, out):
    """Rename `part` to `out`. Raises ValueError if somebody has put something there meanwhile."""
    try:
        os.rename(part, out)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ValueError(
                f"{out} was not there before and is now, so nothing was written; choose another "
                "place."
            ) from None
        raise


def digested(file, pieces):
    """Write bytes and arrays to an open file; returns its entry for flash.json."""
    sha256, nbytes = hashlib.sha256(), 0
    for piece in pieces:
        piece = memoryview(piece).cast("B")
        file.write(piece)
        sha256.update(piece)
        nbytes += len(piece)
    return {"bytes": nbytes, "sha256": sha256.hexdigest()}


@contextmanager
def digested_file(path, nbytes, files, report=lambda nbytes: None):
    """Give a function that writes bytes or arrays to a new file, which ends up on the disk.

    nbytes: how many there will be; the room is taken at once, so that a full disk shows early
    files : dict that gets the file's entry for flash.json
    report: told the bytes of each piece written
    """
    sha256 = hashlib.sha256()
    with naming(path, "written"):
        file = new_file(path)
    try:
        with naming(path, "written"):
            reserve(file.fileno(), nbytes)

        def write(numbers):
            piece = memoryview(numbers).cast("B")
            with naming(path, "written"):
                file.write(piece)
            sha256.update(piece)
            report(len(piece))

        yield write
        with naming(path, "written"):
            file.flush()
            os.fsync(file.fileno())
        assert file.tell() == nbytes
    finally:
        with naming(path, "written"):
            file.close()
    files[path.name] = {"bytes": nbytes, "sha256": sha256.hexdigest()}


def reserve(handle, nbytes):
    """Take room on the disk, in one stretch where the file system can; OSError if it is full."""
    if nbytes and hasattr(os, "posix_fallocate"):  # macOS has none
        try:
            os.posix_fallocate(handle, 0, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # this file system has none
                raise
