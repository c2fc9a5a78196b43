"""Reads shared out to threads: while `preadv` waits for the flash, Python runs the others."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from tinyflash.flash.reading.direct_io import BLOCK, HUGE_PAGE, aligned_empty, read_fully
from tinyflash.turns import Claim


class ByThreads:
    """Threads that read one open file, each with a buffer of its own; to be closed.

    count   : how many reads may be in flight at once
    buffers : uint8 (count, n), n as large as the largest read so far that had to be copied
    """

    def __init__(self, path, descriptor, count):
        """`count` threads for a file; `path` is its name in messages."""
        self.path, self.descriptor, self.count = path, descriptor, count
        self.buffers = aligned_empty((count, 0), np.uint8)
        self.executor = ThreadPoolExecutor(count, thread_name_prefix="flash")
        self.claims = []  # of the threads that work

    def close(self):
        """Wait for what is under way and let the threads go; may be called twice.

        The file stays open.
        """
        for claim in self.claims:  # of a thread, too, whose start was interrupted
            while claim.holds:
                claim.wait()
        self.executor.shutdown(cancel_futures=True)

    def read(self, reads, out):
        """Do some Reads.

        out    : uint8 (bytes,), the destination of their pieces
        returns: list of the bytes that each request brought
        raises : OSError that names the file and the byte. After another exception, as Ctrl-C, the
                 threads are let go. Nobody writes into `out` any more in either case
        """
        copied = np.where(reads.straight, 0, reads.nbytes)
        self._grow_buffers(int(copied.max(initial=0)))

        # Python's integers and memoryviews from here on. NumPy is slower for single numbers, and
        # it lets go of the interpreter even for a copy of 16 KiB: getting it back costs more.
        columns = reads.lows, reads.highs, reads.firsts, reads.lasts, reads.straight
        table = zip(*(column.tolist() for column in columns), strict=True)
        columns = reads.begins, reads.ends, reads.places
        pieces = list(zip(*(column.tolist() for column in columns), strict=True))
        queue = iter(list(table))  # whoever is free takes the next
        out = memoryview(out)
        tasks, self.claims = [], []
        try:
            for buffer in self.buffers[: min(self.count, len(reads))]:
                work = self._work, queue, pieces, memoryview(buffer), out
                tasks.append(self.executor.submit(*work))
            wait(tasks)
        except BaseException:
            exhaust(queue)
            self.close()
            raise
        return [size for task in tasks for size in task.result()]

    def _work(self, queue, pieces, buffer, out):
        """What one thread does: read after read, until the queue is empty.

        queue  : iterator of (low, high, first, last, straight), see Reads
        pieces : list of (begin, end, place);  buffer, out: memoryviews of bytes
        """
        sizes, claim = [], Claim(sys._getframe())
        self.claims.append(claim)
        try:
            for low, high, first, last, straight in queue:
                if straight:
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
        finally:
            claim.end()
        return sizes

    def _grow_buffers(self, nbytes):
        if self.buffers.shape[1] < nbytes:
            each = max(nbytes, HUGE_PAGE // self.count)
            self.buffers = aligned_empty((self.count, each + -each % BLOCK), np.uint8)


def exhaust(queue):
    """Take everything from a queue, so that nobody finds more work there."""
    for _ in queue:
        pass
