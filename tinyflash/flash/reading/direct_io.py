"""Reads that go past the page cache: aligned memory, opening, and reading until it is all there."""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
from contextlib import suppress
from functools import cache

import numpy as np

from tinyflash.files import naming
from tinyflash.streams import note

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BLOCK = 4096  # bytes: offsets, lengths and addresses of direct reads are multiples of this
HUGE_PAGE = 2 << 20  # bytes, on most machines
TRIES = 20  # reads in a row that bring nothing new, before we give up
SEEKING = threading.Lock()  # held by who moves a descriptor's position, where reads need that


def aligned_empty(shape, dtype):
    """An array of zeros that begins on a page: a direct read may go straight into it.

    The memory is mapped, and costs DRAM only where something is written to it. Linux is asked
    for huge pages: the disk then gets one address for a whole read, not one for each 4 KiB of it
    (64 KiB reads were 1.7 times as fast on a virtual disk).
    """
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, dtype=dtype)
    nbytes = count * dtype.itemsize
    if nbytes >= HUGE_PAGE:  # a mapping of whole huge pages also begins on one
        nbytes += -nbytes % HUGE_PAGE
    settings = {}
    if hasattr(mmap, "MAP_ANONYMOUS") and hasattr(mmap, "MAP_PRIVATE"):  # not on Windows
        settings = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    memory = mmap.mmap(-1, nbytes, **settings)
    if hasattr(mmap, "MADV_HUGEPAGE") and hasattr(memory, "madvise"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


def open_direct(path):
    """Open a file for reading past the page cache, where that can be had.

    Linux: O_DIRECT. macOS: F_NOCACHE. Elsewhere, and on file systems that refuse (tmpfs), it is
    opened plainly, and standard error says so, once for each directory.

    returns: the file descriptor
    raises : FileNotFoundError or another OSError if the file cannot be opened
    """
    with naming(path):
        return _opened(path)


def _opened(path):
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory, and a file is read here.")
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)  # Windows would translate ends of lines
    if hasattr(os, "O_DIRECT") and hasattr(os, "preadv"):  # into memory that begins on a page
        descriptor = _open_if_direct(path, flags | os.O_DIRECT)
        if descriptor is not None:
            return descriptor
    descriptor = os.open(path, flags)
    if hasattr(fcntl, "F_NOCACHE"):
        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
    else:
        _say_once(os.path.dirname(os.path.realpath(path)))
    return descriptor


def is_direct(descriptor):
    """Whether a descriptor reads past the page cache because Linux was told so (O_DIRECT)."""
    if fcntl is None or not hasattr(os, "O_DIRECT"):
        return False
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def _open_if_direct(path, flags):
    """A descriptor, or None where direct reads are refused: at opening, or only at reading."""
    descriptor = None
    try:
        descriptor = os.open(path, flags)
        read_some(descriptor, [aligned_empty((BLOCK,), np.uint8)], 0)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return None
    return descriptor


@cache
def _say_once(directory):
    note(
        f"{directory} refuses direct reads, or this system has none: the page cache will serve "
        "some reads, so what is measured here is not the speed of flash"
    )


def read_fully(descriptor, buffers, offset, needed):
    """Fill buffers, one after the other, from one place of a file; go on after short reads.

    buffers: list of uint8 arrays, each of a multiple of BLOCK bytes
    offset : where to read, a multiple of BLOCK
    needed : bytes that must arrive; the rest may lie behind the end of the file
    returns: list of the bytes that each read brought: one number, unless reads were short
    raises : OSError if reading fails, or if the file ends too early
    """
    sizes = [read_some(descriptor, buffers, offset)]
    done, tries = sizes[0], 0
    while done < needed:
        if os.fstat(descriptor).st_size < offset + needed:
            raise OSError(f"it ends before byte {offset + needed}, where it did not before")
        whole = done - done % BLOCK  # a direct read can only go on from a whole block
        sizes.append(read_some(descriptor, _behind(buffers, whole), offset + whole))
        tries = tries + 1 if whole + sizes[-1] <= done else 0
        if tries == TRIES:
            raise OSError(f"{TRIES} reads at byte {offset + whole} brought nothing")
        done = whole + sizes[-1]
    return sizes


def read_some(descriptor, buffers, offset):
    """Read once from one place of a file into buffers, one after the other: the bytes it brought.

    It is one system call where there is `preadv` (Linux, macOS 11), else one for each buffer.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, buffers, offset)
    done = 0
    for buffer in buffers:
        data = read_bytes_at(descriptor, len(buffer), offset + done)
        memoryview(buffer)[: len(data)] = data
        done += len(data)
        if len(data) < len(buffer):
            break
    return done


def read_bytes_at(descriptor, nbytes, offset):
    """At most so many bytes from one place of a file, whatever other threads read of it."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, nbytes, offset)
    with SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, nbytes)


def _behind(buffers, nbytes):
    """What is left of the buffers behind their first `nbytes` bytes."""
    left = []
    for buffer in buffers:
        if nbytes < len(buffer):
            left.append(buffer[nbytes:])
        nbytes = max(0, nbytes - len(buffer))
    return left
