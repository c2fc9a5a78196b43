"""ReadQueue: hundreds of reads handed to Linux in one call.

Sixteen threads keep sixteen reads in flight, but every read is a system call of its own, for which
Python's interpreter lock goes from thread to thread: about 20 µs of the processor a read, when
there is multiplying to do. Linux takes a whole list of direct reads in one call (io_submit) and
tells in another which of them have ended (io_getevents): about 4 µs a read. Neither has a name in
Python's library, so they are called by number, and their tables are NumPy's records.
"""

import ctypes
import errno
import os
import platform
import sys
from functools import cache

import numpy as np

# The numbers of io_setup, io_destroy, io_submit, io_getevents (Linux, asm/unistd.h).
SYSTEM_CALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
PREADV = 7  # the operation: one run of the file into several pieces of memory (linux/aio_abi.h)
IN_FLIGHT = 128  # reads: enough for a barrier after every layer to cost little

PIECE = np.dtype([("address", "<u8"), ("nbytes", "<u8")])  # struct iovec
REQUEST = np.dtype(  # struct iocb
    [
        ("number", "<u8"),
        ("key", "<u4"),
        ("flags", "<u4"),
        ("operation", "<u2"),
        ("priority", "<i2"),
        ("descriptor", "<u4"),
        ("pieces", "<u8"),
        ("count", "<u8"),
        ("offset", "<i8"),
        ("reserved", "<u8"),
        ("event_flags", "<u4"),
        ("event_descriptor", "<u4"),
    ]
)
EVENT = np.dtype([("number", "<u8"), ("request", "<u8"), ("result", "<i8"), ("more", "<i8")])


class ReadQueue:
    """Linux's queue of direct reads; to be closed."""

    def __init__(self, in_flight=IN_FLIGHT):
        """A queue in which so many reads may be under way at once.

        raises: OSError where there is none: not Linux, another processor, or none allowed
        """
        machine = platform.machine() if sys.platform == "linux" and sys.maxsize > 2**32 else ""
        if machine not in SYSTEM_CALLS:
            raise OSError(errno.ENOSYS, "this system has no queue of direct reads")
        self.setup, self.destroy, self.submit, self.get_events = SYSTEM_CALLS[machine]
        self.in_flight = in_flight
        self.events = np.zeros(in_flight, dtype=EVENT)
        self.context = ctypes.c_ulong(0)
        system_call(self.setup, in_flight, ctypes.addressof(self.context))

    def close(self):
        """Give the queue back to Linux; may be called twice."""
        if self.context.value:
            system_call(self.destroy, self.context.value)
        self.context.value = 0

    def read(self, descriptor, addresses, sizes, cuts, offsets):
        """Read runs of a file, each into pieces of memory one after the other.

        descriptor : of a file opened for direct reads
        addresses  : int (n,), where pieces of memory begin; the caller keeps them alive
        sizes      : int (n,), their bytes
        cuts       : int (reads + 1,); read i fills the pieces cuts[i] … cuts[i + 1] - 1
        offsets    : int (reads,), the byte of the file at which each read begins
        returns    : int64 (reads,), bytes that each brought, or, negative, its error number
        raises     : OSError if Linux does not take them; nothing is under way any more then
        """
        pieces = np.empty(len(addresses), dtype=PIECE)
        pieces["address"], pieces["nbytes"] = addresses, sizes
        requests = np.zeros(len(offsets), dtype=REQUEST)
        requests["number"] = np.arange(len(offsets), dtype=np.uint64)  # the event will repeat it
        requests["operation"], requests["descriptor"] = PREADV, descriptor
        requests["pieces"] = pieces.ctypes.data + cuts[:-1] * PIECE.itemsize
        requests["count"] = cuts[1:] - cuts[:-1]
        requests["offset"] = offsets
        places = np.arange(len(requests), dtype=np.uint64) * np.uint64(REQUEST.itemsize)
        pointers = np.uint64(requests.ctypes.data) + places
        results = np.zeros(len(requests), dtype=np.int64)
        asked = ended = 0
        try:
            while ended < len(requests):
                more = min(len(requests) - asked, self.in_flight - (asked - ended))
                asked += self._ask(pointers[asked : asked + more])
                # Refilling after a quarter keeps the queue full, and the calls few.
                enough = min(asked - ended, max(1, self.in_flight // 4))
                ended += self._note_ended(results, enough)
        finally:  # after Ctrl-C, too: once we are gone, nobody writes into the pieces any more
            while ended < asked:
                ended += self._note_ended(results, asked - ended)
        return results

    def _ask(self, pointers):
        """Hand requests over; returns how many Linux took."""
        if len(pointers) == 0:
            return 0
        arguments = self.context.value, len(pointers), pointers.ctypes.data
        return system_call(self.submit, *arguments)

    def _note_ended(self, results, enough):
        """Wait until so many reads have ended, and note what they brought; returns how many did."""
        arguments = self.context.value, enough, len(self.events), self.events.ctypes.data, 0
        try:
            ended = self.events[: system_call(self.get_events, *arguments)]
        except InterruptedError:  # by a signal; Python's handler for it has run
            return 0
        results[ended["number"].astype(np.int64)] = ended["result"]
        return len(ended)


def open_queue():
    """A ReadQueue, or None where the system has none to give."""
    try:
        return ReadQueue()
    except OSError:
        return None


def system_call(number, *arguments):
    """Call Linux by number, without the interpreter lock; OSError if it refuses."""
    result = c_library().syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@cache
def c_library():
    """The C library that Python itself runs on, for its function `syscall`."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library
