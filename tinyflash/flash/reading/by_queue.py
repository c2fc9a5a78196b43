"""Reads handed to Linux's queue, straight to their places or by way of one buffer."""

import numpy as np

from tinyflash.flash.reading.direct_io import aligned_empty

MOST_COPIED = 64 << 20  # bytes that are queued at once and copied; more are left to the threads


class ByQueue:
    """A ReadQueue at work for one open file; to be closed.

    buffer : uint8 (n,), n as many bytes as were ever read at once to be copied
    """

    def __init__(self, descriptor, queue):
        """`descriptor` is of a file opened for direct reads; `queue` a ReadQueue, ours to close."""
        self.descriptor, self.queue = descriptor, queue
        self.buffer = aligned_empty((0,), np.uint8)

    def close(self):
        """Give the queue back; may be called twice. The file stays open."""
        self.queue.close()

    def takes(self, reads):
        """Whether the buffer may grow as large as these Reads need it."""
        return bool(reads.straight.all()) or int(reads.nbytes.sum()) <= MOST_COPIED

    def read(self, reads, out):
        """Do some Reads, which are all the reads of their pieces.

        out    : uint8 (bytes,), the destination of the pieces
        returns: int64 (reads,), the bytes that each brought, or, negative, its error number; where
                 they are fewer than it needs, what came of its pieces is not to be used
        raises : as ReadQueue.read, and as there nothing is under way then
        """
        if not reads.straight.all():
            return self._read_and_copy(reads, out)
        addresses = out.ctypes.data + reads.places
        cuts = np.append(reads.lows, len(addresses))
        sizes = reads.ends - reads.begins
        return self.queue.read(self.descriptor, addresses, sizes, cuts, reads.firsts, out)

    def _read_and_copy(self, reads, out):
        """Read whole blocks into the buffer, and copy the pieces from there."""
        nbytes = reads.nbytes
        starts = np.cumsum(nbytes) - nbytes  # of each read in the buffer
        whole = int(starts[-1] + nbytes[-1])
        if self.buffer.nbytes < whole:
            self.buffer = aligned_empty((whole,), np.uint8)
        addresses = self.buffer.ctypes.data + starts
        each = np.arange(len(reads) + 1, dtype=np.int64)
        sizes = self.queue.read(self.descriptor, addresses, nbytes, each, reads.firsts, self.buffer)
        # From a byte of the file to the buffer's, for each piece.
        shift = np.repeat(starts - reads.firsts, reads.highs - reads.lows)
        columns = reads.begins + shift, reads.ends + shift, reads.places
        source, out = memoryview(self.buffer), memoryview(out)
        for begin, end, place in zip(*(column.tolist() for column in columns), strict=True):
            out[place : place + end - begin] = source[begin:end]
        return sizes
