"""FlashReader: many random rows of a file, past the page cache, as fast as the flash gives them.

Flash is fast if it is asked for much at once: in large pieces, and for many pieces at a time
(LLM in a flash, §2.2 and §3.2; the paper reads with 32 threads). So the rows that are wanted are
sorted, rows that touch become one read (reads.py), and many reads are in flight: by threads
(by_threads.py), or by a queue of Linux's, which takes all reads in a few calls (by_queue.py) and
is what the engine uses where there is one. `read_plainly` is the specification of it all.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.noted import state_of, was_written
from tinyflash.files import naming
from tinyflash.flash.counters import ReadCounters
from tinyflash.flash.reading.by_queue import ByQueue
from tinyflash.flash.reading.by_threads import ByThreads
from tinyflash.flash.reading.direct_io import is_direct, open_direct
from tinyflash.flash.reading.read_queue import open_queue
from tinyflash.flash.reading.reads import edges, plan
from tinyflash.turns import Turn


def read_plainly(path, begins, ends, places, out):
    """What `FlashReader.read_extents` does, one read after the other: its specification."""
    out = memoryview(out).cast("B")
    with open(path, "rb") as file:
        for begin, end, place in zip(begins, ends, places, strict=True):
            file.seek(begin)
            if file.readinto(out[place : place + end - begin]) < end - begin:
                raise ValueError(f"{path} ends before byte {end}.")


def close_file(descriptor):
    """Close a file that was only read; what the system says of it is of no consequence."""
    with suppress(OSError):
        os.close(descriptor)


class FlashReader:
    """Reads rows and blocks of one file, many at a time; to be used in a `with`.

    The file must stay as it is: one that is changed or cut while we read is refused, not
    returned. (Deleting it does no harm: what is open stays readable.)

    Several threads may use it; they take turns. After an exception and in a forked child the next
    call begins with new threads and a new queue.

    threads  : how many reads may be in flight at once, where threads read
    by_queue : ByQueue, or None where threads do all of it
    counters : ReadCounters of all calls
    """

    def __init__(self, path, *, threads=16, queue=None):
        """Open `path`.

        threads : how many reads may be in flight at once, each by a thread of its own
        queue   : a ReadQueue, which takes the reads instead, for a fifth of the processor's time
                  (read_queue.py), and is closed with the reader; or None
        raises  : FileNotFoundError or another OSError if it cannot be opened
        """
        if threads < 1:
            raise ValueError(f"A reader needs at least one thread, and {threads} were asked for.")
        self.path = Path(path)
        self.threads = threads
        self.counters = ReadCounters()
        self.descriptor = open_direct(path)
        self.close_file = weakref.finalize(self, close_file, self.descriptor)
        self.close_file.atexit = False
        with naming(path):
            self.opened_as = state_of(self.descriptor)
        if queue is not None and not is_direct(self.descriptor):  # it would wait for each read
            queue.close()
            queue = None
        self.by_queue = None if queue is None else ByQueue(self.descriptor, queue)
        self.by_threads = ByThreads(self.path, self.descriptor, threads)
        self.turn = Turn(f"The reader of {path}")  # the buffers are shared between calls
        self.unfinished = False  # a read was begun and did not end well
        self.process = os.getpid()
        self.reading = threading.Lock()  # held while reads are under way, see `pause_reads`
        READERS.add(self)

    @property
    def queue(self):
        """The ReadQueue that takes the reads, or None where threads do all of it."""
        return self.by_queue and self.by_queue.queue

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Let go of the file and of the threads; may be called twice."""
        with self.turn:
            self._let_go()
            self.descriptor = None
            self.close_file()

    def _let_go(self):
        """Of threads and queue, when nothing of theirs is under way; after a fork not of ours."""
        if self.process == os.getpid():
            self.by_threads.close()
            if self.by_queue is not None:
                self.by_queue.close()

    def _begin_anew(self):
        """With new threads and a new queue, or threads alone if Linux has no queue to spare."""
        self._let_go()
        if self.by_queue is not None:
            queue = open_queue()
            self.by_queue = None if queue is None else ByQueue(self.descriptor, queue)
        self.by_threads = ByThreads(self.path, self.descriptor, self.threads)
        self.reading = threading.Lock()
        self.process, self.unfinished = os.getpid(), False

    def read_rows(self, base, row_bytes, rows, out):
        """Read rows of a matrix: row r is the bytes from base + r·row_bytes on.

        rows  : int (n,), distinct, in any order
        out   : uint8 (n, row_bytes), C-contiguous: out[k] becomes row rows[k]. Memory from
                `aligned_empty` spares a copy where base and row_bytes are multiples of BLOCK.
        returns: ReadCounters of this call
        raises : ValueError for rows that the file does not have, OSError if it cannot be read;
                 `out` may hold anything then
        """
        rows = np.asarray(rows, dtype=np.int64)
        if out.shape != (len(rows), row_bytes):
            raise ValueError(
                f"{len(rows)} rows of {row_bytes} bytes do not fit an array of {out.shape}."
            )
        begins = base + rows * row_bytes
        places = np.arange(len(rows), dtype=np.int64) * row_bytes
        return self.read_extents(begins, begins + row_bytes, places, out)

    def read_block(self, offset, nbytes, out):
        """Read one long run of bytes, in pieces that the threads share.

        out    : uint8 of nbytes in all, C-contiguous
        returns: ReadCounters of this call
        raises : as read_rows
        """
        if out.nbytes != nbytes:
            raise ValueError(f"{nbytes} bytes do not fit an array of {out.nbytes}.")
        if nbytes == 0:
            return ReadCounters()
        cuts = edges(offset, offset + nbytes)
        return self.read_extents(cuts[:-1], cuts[1:], cuts[:-1] - offset, out)

    def read_extents(self, begins, ends, places, out):
        """Read pieces of the file, any number at once, each to its own place.

        begins, ends: int (n,), bytes [begins[i], ends[i]) of the file; they may not overlap
        places      : int (n,), where in `out`, counted in bytes, each piece belongs
        out         : uint8, C-contiguous, any shape
        returns     : ReadCounters of this call
        raises      : as read_rows
        """
        if out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError("A reader writes into C-contiguous arrays of uint8 only.")
        if len(begins) == 0:
            return ReadCounters()
        began = time.perf_counter()
        with self.turn:
            if self.descriptor is None:
                raise ValueError(f"The reader of {self.path} is closed.")
            if self.unfinished or self.process != os.getpid():
                self._begin_anew()
            order = np.argsort(begins)
            begins, ends, places = begins[order], ends[order], places[order]
            self._refuse_impossible(begins, ends)
            reads = plan(begins, ends, places, out.ctypes.data)
            self.unfinished = True
            with self.reading, naming(self.path):
                sizes = self._read(reads, out.reshape(-1))
            self.unfinished = False
            with naming(self.path):
                now = state_of(self.descriptor)
            if was_written(self.path, self.opened_as, now):
                raise OSError(f"{self.path} was changed while it was read; open it again.")
            wanted, seconds = int((ends - begins).sum()), time.perf_counter() - began
            counted = ReadCounters.of(wanted, sizes, seconds)
            self.counters = self.counters + counted
            return counted

    def _read(self, reads, out):
        """Do some Reads; returns a list of the bytes that each request brought."""
        if self.by_queue is None or not self.by_queue.takes(reads):
            return self.by_threads.read(reads, out)
        sizes = self.by_queue.read(reads, out)
        late = reads.only(sizes < reads.needed)  # failed, or brought only a part
        return [*sizes[sizes > 0].tolist(), *self.by_threads.read(late, out)]

    def _refuse_impossible(self, begins, ends):
        """Refuse, in one sentence, pieces that overlap or that the file does not have."""
        size = self.opened_as[1]
        if begins[0] < 0 or ends[-1] > size:
            raise ValueError(
                f"{self.path} has {size} bytes, and bytes {begins[0]} to {ends[-1]} were asked for."
            )
        if np.any(begins[1:] < ends[:-1]):
            raise ValueError("The same bytes were asked for twice in one call; name a row once.")


READERS = weakref.WeakSet()
PAUSED = []  # locks held for the time of a fork
LONGEST_PAUSE = 2.0  # seconds; a read that was interrupted may hold its lock for ever


def pause_reads():
    """Wait until nothing is read, and let nobody begin: a fork is to come.

    Memory that is read into past the page cache may be given to the child, and the parent then
    misses what arrives.    (open(2), on O_DIRECT and fork)
    """
    for reader in list(READERS):
        lock = reader.reading
        if lock.acquire(timeout=LONGEST_PAUSE):
            PAUSED.append(lock)


def go_on_reading():
    """The fork is over."""
    while PAUSED:
        PAUSED.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=pause_reads, after_in_parent=go_on_reading, after_in_child=go_on_reading
    )
