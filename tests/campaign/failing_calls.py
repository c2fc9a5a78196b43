"""Every call that touches a file, numbered; and one of them fails.

with Calls(fail=12, code=errno.EIO) as calls:
    main(["generate", ...])
calls.count, calls.sites  # how many there were, and from which lines
"""

import builtins
import io
import mmap
import os
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.mapped import MappedFile
from tinyflash.flash.reading import read_queue

try:
    import fcntl
except ImportError:
    fcntl = None

PACKAGE = str(Path(read_queue.__file__).parents[2])
NAMES = (
    "open read write fsync replace rename link unlink remove rmdir mkdir stat lstat fstat listdir "
    "scandir chmod preadv pread posix_fallocate statvfs readlink truncate ftruncate close"
).split()
METHODS = ("read", "readinto", "write", "flush", "truncate", "close", "seek", "readline")


class Calls:
    """Counts calls, and has number `fail` raise an OSError of this code.

    Calls are those of `os` and of open files that our package makes, directly or by way of
    Python's library, from any thread; mappings, locks, and requests to the read queue, too.
    """

    def __init__(self, fail=None, code=None):
        self.fail, self.code, self.count = fail, code, 0
        self.sites, self.failed = {}, None
        self.lock = threading.Lock()
        self.undo = []

    def __enter__(self):
        for name in NAMES:
            if hasattr(os, name):
                self.replace(os, name, self.counted(getattr(os, name), name))
        opened = self.opened(builtins.open)
        self.replace(builtins, "open", opened)
        self.replace(io, "open", opened)
        self.replace(os, "fdopen", self.opened(os.fdopen))
        mapped = self.counted(MappedFile.__new__, "mmap", named=1)
        self.replace(MappedFile, "__new__", staticmethod(mapped))
        self.replace(np, "fromfile", self.counted(np.fromfile, "fromfile"))
        self.replace(
            read_queue, "system_call", self.counted(read_queue.system_call, "queue", named=None)
        )
        if fcntl:
            self.replace(fcntl, "flock", self.counted(fcntl.flock, "flock", named=None))
        return self

    def __exit__(self, *error):
        while self.undo:
            self.undo.pop()()

    def replace(self, owner, name, new):
        old = owner.__dict__[name]
        setattr(owner, name, new)
        self.undo.append(lambda: setattr(owner, name, old))

    def counted(self, function, name, named=0):
        """The function, counted. named: which argument is the path that its errors name."""

        def call(*given, **settings):
            path = given[named] if named is not None and len(given) > named else None
            path = path if isinstance(path, str | Path) else None
            # what failed to close is closed: the descriptor is gone, and a lock with it
            first = partial(function, *given) if name == "close" else (lambda: None)
            self.pass_or_fail(name, path, first)
            return function(*given, **settings)

        return call

    def pass_or_fail(self, name, path=None, first=lambda: None):
        site = our_line()
        if site is None:
            return
        with self.lock:
            self.count += 1
            self.sites[name, site] = self.sites.get((name, site), 0) + 1
            if self.count != self.fail:
                return
            self.failed = f"{name} at {site}"
        first()
        more = () if path is None else (str(path),)
        raise OSError(self.code, os.strerror(self.code), *more)

    def opened(self, function):
        def call(file, *given, **settings):
            path = file if isinstance(file, str | Path) else None
            self.pass_or_fail(function.__name__, path)
            return Opened(function(file, *given, **settings), self)

        return call


class Opened:
    """An open file whose methods count as calls; everything else is the file's own."""

    def __init__(self, file, calls):
        self.__dict__.update(file=file, calls=calls)

    def __getattr__(self, name):
        value = getattr(self.file, name)
        if name not in METHODS or (name == "close" and self.file.closed):
            return value

        def call(*given):
            # what failed to close is closed: the descriptor is gone
            first = self.file.close if name == "close" else (lambda: None)
            self.calls.pass_or_fail(f"file.{name}", first=first)
            return value(*given)

        return call

    def __setattr__(self, name, value):
        setattr(self.file, name, value)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        self.close()

    def __iter__(self):
        return iter(self.file)

    def __next__(self):
        return next(self.file)


def our_line():
    """The line of our package that is at work, as file:line; None if it is none of ours."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        if name.startswith("<frozen importlib") or name.endswith("/gettext.py"):
            return None
        frame = frame.f_back
    return None


assert issubclass(MappedFile, mmap.mmap)
