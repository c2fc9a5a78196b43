"""ReadQueue: hundreds of reads handed to Linux in one call.

Sixteen threads keep sixteen reads in flight, but every read is a system call of its own, for which
Python's interpreter lock goes from thread to thread: about 20 µs of the processor a read, when
there is multiplying to do. Linux takes a whole list of direct reads in one call (io_submit) and
tells in another which of them have ended (io_getevents): about 4 µs a read. Neither has a name in
Python's library, so they are called by number, and their tables are NumPy's records.
"""

import ctypes
import errno
import operator
import os
import platform
import sys
import weakref
from functools import cache, partial

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
    """Linux's queue of direct reads; to be closed, or it closes itself when nobody has it.

    memory : what reads that are under way may write to; None where none are
    """

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
        self.memory = None
        self.context = ctypes.c_ulong(0)
        self.give_back = partial(give_back, self.destroy, self.context, os.getpid())
        weakref.finalize(self, self.give_back)  # before `memory` goes
        system_call(self.setup, in_flight, ctypes.addressof(self.context))

    def close(self):
        """Wait for what is under way, and give the queue back to Linux; may be called twice."""
        self.give_back()
        self.memory = None

    def read(self, descriptor, addresses, sizes, cuts, offsets, memory=None):
        """Read runs of a file, each into pieces of memory one after the other.

        descriptor : of a file opened for direct reads
        addresses  : int (n,), where pieces of memory begin
        sizes      : int (n,), their bytes
        cuts       : int (reads + 1,); read i fills the pieces cuts[i] … cuts[i + 1] - 1
        offsets    : int (reads,), the byte of the file at which each read begins
        memory     : what the addresses lie in; kept until nothing is written there any more
        returns    : int64 (reads,), bytes that each brought, or, negative, its error number
        raises     : OSError if Linux does not take them. After this and every other exception, as
                     Ctrl-C, the queue is closed: how many reads Linux took, and how many of them
                     we were told have ended, may have been lost on the way
        """
        if not self.context.value:
            raise ValueError("This queue of reads is closed; open another one.")
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
            self.memory = memory, pieces, requests
            while ended < len(requests):
                more = min(len(requests) - asked, self.in_flight - (asked - ended))
                asked += self._ask(pointers[asked : asked + more])
                # Refilling after a quarter keeps the queue full, and the calls few.
                enough = min(asked - ended, max(1, self.in_flight // 4))
                ended += self._note_ended(results, enough)
            self.memory = None
        except BaseException:  # once we are gone, nobody writes into the pieces any more
            self.close()
            raise
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


def give_back(destroy, context, process):
    """Destroy a queue once, which waits until its reads have ended; a parent's is not ours.

    Between the call and the note that it was made no signal finds a bytecode to come in between.
    (Another queue may get the same number, and would be destroyed by a second call.)

    context : ctypes.c_ulong, becomes 0;  process : where the queue was made
    """
    if process != os.getpid():
        context.value = 0
    if context.value:
        call = partial(c_library().syscall, ctypes.c_long(destroy), context)
        note = partial(setattr, context, "value", 0)
        list(map(operator.call, (call, note)))


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
