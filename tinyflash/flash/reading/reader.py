"""FlashReader: many random rows of a file, past the page cache, as fast as the flash gives them.

Flash is fast if it is asked for much at once: in large pieces, and for many pieces at a time
(LLM in a flash, §2.2 and §3.2; the paper reads with 32 threads). So the rows that are wanted are
sorted, rows that touch become one read, and threads keep many reads in flight: while `preadv`
waits for the flash, Python runs the other threads. Or a queue of Linux's takes all reads in a
few calls (read_queue.py), which is what the engine uses where there is one.

Direct reads know only whole blocks of 4096 bytes, in the file and in DRAM. Rows that are such, and
go to addresses that are such, are read to where they belong: one `preadv` scatters the rows of a
read over the destination. All others come with the blocks around them into a buffer, from where
they are copied.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from tinyflash.flash.counters import ReadCounters
from tinyflash.flash.reading.direct_io import (
    BLOCK,
    HUGE_PAGE,
    aligned_empty,
    is_direct,
    open_direct,
    read_fully,
)

MOST_COPIED = 64 << 20  # bytes that are queued at once and copied; more are left to the threads
LARGEST_READ = 1 << 20  # bytes: longer reads are not faster, and cannot be shared out to threads


class FlashReader:
    """Reads rows and blocks of one file, many at a time; to be used in a `with`.

    The file must stay as it is: one that is changed or cut while we read is refused, not
    returned. (Deleting it does no harm: what is open stays readable.)
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
        self.opened_as = self._state()
        self.queue = queue
        if queue is not None and not is_direct(self.descriptor):  # it would wait for each read
            queue.close()
            self.queue = None
        self.buffers = aligned_empty((threads, 0), np.uint8)  # a row for each thread, if need be
        self.block_buffer = aligned_empty((0,), np.uint8)  # what the queue reads to be copied
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix="flash")
        self.lock = threading.Lock()  # one call at a time: the buffers are shared between calls

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Let go of the file and of the threads; may be called twice."""
        with self.lock:
            self.executor.shutdown()
            if self.queue is not None:
                self.queue.close()
            if self.descriptor is not None:
                os.close(self.descriptor)
            self.descriptor = None

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
        first, end = round_down(offset) + LARGEST_READ, offset + nbytes
        edges = np.array([offset, *range(first, end, LARGEST_READ), end], dtype=np.int64)
        return self.read_extents(edges[:-1], edges[1:], edges[:-1] - offset, out)

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
        with self.lock:
            if self.descriptor is None:
                raise ValueError(f"The reader of {self.path} is closed.")
            order = np.argsort(begins)
            begins, ends, places = begins[order], ends[order], places[order]
            self._refuse_impossible(begins, ends)
            sizes = self._read_sorted(begins, ends, out.ctypes.data + places, out.reshape(-1))
            if self._state() != self.opened_as:
                raise OSError(f"{self.path} was changed while it was read; open it again.")
            wanted, seconds = int((ends - begins).sum()), time.perf_counter() - began
            counted = ReadCounters.of(wanted, sizes, seconds)
            self.counters = self.counters + counted
            return counted

    def _read_sorted(self, begins, ends, addresses, out):
        """Cut the pieces into reads and do them; returns the bytes that each read brought.

        addresses : int (n,), where in DRAM each piece belongs, which is somewhere in `out`
        """
        cuts = neighbors(begins, ends)
        lows, highs = cuts[:-1], cuts[1:]  # read i brings the pieces from lows[i] to highs[i] - 1
        firsts, lasts = round_down(begins[lows]), round_up(ends[highs - 1])
        straight = np.logical_and.reduceat((begins | ends | addresses) % BLOCK == 0, lows)
        places = addresses - out.ctypes.data
        reads = lows, highs, firsts, lasts, straight
        copied = 0 if straight.all() else int((lasts - firsts).sum())
        if self.queue is None or copied > MOST_COPIED:
            return self._read_by_threads(begins, ends, places, reads, out)
        if copied:
            sizes = self._read_and_copy(begins, ends, places, reads, out)
        else:
            sizes = self.queue.read(self.descriptor, addresses, ends - begins, cuts, firsts)
        late = np.flatnonzero(sizes < ends[highs - 1] - firsts)  # failed, or brought only a part
        reads = tuple(column[late] for column in reads)
        again = self._read_by_threads(begins, ends, places, reads, out)
        return [*sizes[sizes > 0].tolist(), *again]

    def _read_and_copy(self, begins, ends, places, reads, out):
        """Queue reads of whole blocks into a buffer, and copy the pieces from there.

        reads : as `_read_by_threads`;  returns: int64 (reads,), as ReadQueue.read
        """
        lows, highs, firsts, lasts, _ = reads
        nbytes = lasts - firsts
        starts = np.cumsum(nbytes) - nbytes  # of each read in the buffer
        if self.block_buffer.nbytes < starts[-1] + nbytes[-1]:
            self.block_buffer = aligned_empty((int(starts[-1] + nbytes[-1]),), np.uint8)
        addresses = self.block_buffer.ctypes.data + starts
        each = np.arange(len(firsts) + 1, dtype=np.int64)
        sizes = self.queue.read(self.descriptor, addresses, nbytes, each, firsts)
        shift = np.repeat(starts - firsts, highs - lows)  # from a byte of the file to the buffer's
        pieces = (begins + shift).tolist(), (ends + shift).tolist(), places.tolist()
        source, out = memoryview(self.block_buffer), memoryview(out)
        for begin, end, place in zip(*pieces, strict=True):
            out[place : place + end - begin] = source[begin:end]
        return sizes

    def _read_by_threads(self, begins, ends, places, reads, out):
        """Share reads out to the threads; returns the bytes that each read brought.

        reads : lows, highs, firsts, lasts, straight, each (reads,): a read brings the pieces from
                low to high - 1 and the bytes [first, last) of the file, with or without a copy
        """
        _, _, firsts, lasts, straight = reads
        self._grow_buffers(int(np.max(np.where(straight, 0, lasts - firsts), initial=0)))

        # Python's integers and memoryviews from here on. NumPy is slower for single numbers, and
        # it lets go of the interpreter even for a copy of 16 KiB: getting it back costs more.
        pieces = list(zip(begins.tolist(), ends.tolist(), places.tolist(), strict=True))
        table = [column.tolist() for column in reads]
        queue = iter(list(zip(*table, strict=True)))  # whoever is free takes the next
        out = memoryview(out)

        def work(buffer):
            sizes = []
            try:
                for low, high, first, last, direct in queue:
                    if direct:
                        rows = [out[place : place + e - b] for b, e, place in pieces[low:high]]
                        sizes += read_fully(self.descriptor, rows, first, last - first)
                        continue
                    needed = pieces[high - 1][1] - first
                    sizes += read_fully(self.descriptor, [buffer[: last - first]], first, needed)
                    for b, e, place in pieces[low:high]:
                        out[place : place + e - b] = buffer[b - first : e - first]
            except OSError as error:
                exhaust(queue)
                reason = error.strerror or error
                raise OSError(f"{self.path}: cannot read at byte {first}: {reason}.") from error
            return sizes

        workers = min(self.threads, len(firsts))
        tasks = []
        try:
            for buffer in self.buffers[:workers]:
                tasks.append(self.executor.submit(work, memoryview(buffer)))
            wait(tasks)
        finally:  # after Ctrl-C, too: once we are gone, nobody writes into `out` any more
            exhaust(queue)
            wait(tasks)
        return [size for task in tasks for size in task.result()]

    def _grow_buffers(self, nbytes):
        if self.buffers.shape[1] < nbytes:
            each = max(nbytes, HUGE_PAGE // self.threads)
            self.buffers = aligned_empty((self.threads, each + -each % BLOCK), np.uint8)

    def _refuse_impossible(self, begins, ends):
        """Refuse, in one sentence, pieces that overlap or that the file does not have."""
        size = self.opened_as[0]
        if begins[0] < 0 or ends[-1] > size:
            raise ValueError(
                f"{self.path} has {size} bytes, and bytes {begins[0]} to {ends[-1]} were asked for."
            )
        if np.any(begins[1:] < ends[:-1]):
            raise ValueError("The same bytes were asked for twice in one call; name a row once.")

    def _state(self):
        """What changes when somebody writes to the file."""
        state = os.fstat(self.descriptor)
        return state.st_size, state.st_mtime_ns


def neighbors(begins, ends):
    """Where to cut sorted pieces of a file into reads: pieces whose blocks touch share one.

    A run of touching blocks is cut after every LARGEST_READ bytes.

    begins, ends: int (n,), ascending
    returns     : int (reads + 1,): read i covers the pieces from cuts[i] to cuts[i + 1] - 1
    """
    firsts, lasts = round_down(begins), round_up(ends)
    index = np.arange(len(begins), dtype=np.int64)
    apart = np.ones(len(begins), dtype=bool)
    apart[1:] = firsts[1:] > lasts[:-1]
    run = np.maximum.accumulate(np.where(apart, index, 0))  # the first piece of one's run
    part = (firsts - firsts[run]) // LARGEST_READ
    apart[1:] |= part[1:] > part[:-1]
    return np.append(np.flatnonzero(apart), len(begins))


def round_down(offsets):
    """The beginning of the block that holds a byte."""
    return offsets - offsets % BLOCK


def round_up(offsets):
    """The same, or the next block's beginning."""
    return offsets + -offsets % BLOCK


def exhaust(queue):
    """Take everything from a queue, so that nobody finds more work there."""
    for _ in queue:
        pass
