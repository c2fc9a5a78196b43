"""The threads that share a product, and what each of them keeps: one pool for every matrix."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from threadpoolctl import ThreadpoolController

from tinyflash.turns import Claim, Turn

WORKERS = 2
# Multiplications of a product up to which BLAS's other threads do more harm than good: 3 ms of one
# core. They spin between products, and where others want the cores, too, each product waits for a
# thread that has none. On 2 cores with 8 more processes at work, 1,200 examples for a small drafter
# took 70 to 99 s with them and 5 s without.
SMALL = 1 << 27


KEPT = threading.local()  # what `scratch` gives


def scratch(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of this thread's own to write into, which the next call for `name` takes back.

    Memory that is new each time costs more than decoding into it: the kernel gives it page by page.

    >>> first = scratch("tile", (2, 3), np.float32)
    >>> again = scratch("tile", (3, 2), np.float32)
    >>> again.shape, bool(np.shares_memory(first, again))
    ((3, 2), True)
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    held = getattr(KEPT, name, None)
    if held is None or held.nbytes < nbytes:
        held = np.empty(nbytes, dtype=np.uint8)
        setattr(KEPT, name, held)
    return held[:nbytes].view(dtype).reshape(shape)


def once_a_process(make: Callable) -> Callable:
    """Make something when it is first asked for, and again in a child: threads are not forked.

    >>> numbers = once_a_process(lambda: [1, 2, 3])
    >>> numbers() is numbers()
    True
    """
    made = cache(make)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=made.cache_clear)
    return made


@once_a_process
def pool() -> ThreadPoolExecutor:
    """The workers that every matrix shares.

    >>> list(pool().map(abs, (-1, 2)))
    [1, 2]
    """
    return ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1), thread_name_prefix="tile")


@cache
def blas_libraries() -> list[Any]:
    """The handles by which the threads of BLAS are counted and set.

    >>> [library.user_api for library in blas_libraries()[:1]] in ([], ["blas"])
    True
    """
    return ThreadpoolController().select(user_api="blas").lib_controllers


class OneBlasThread:
    """Holds BLAS to one thread: `with OneBlasThread():`, in several threads and in one another.

    BLAS has one number of threads for the whole process. So it is the last to leave who gives it
    back; one that was interrupted and could not say that it left does not count.

    >>> with OneBlasThread():
    ...     {library.num_threads for library in blas_libraries()} <= {1}
    True
    """

    def __enter__(self):
        self.claim = Claim(sys._getframe(1))
        with BLAS_TURN:
            for library in blas_libraries():
                claims, found = HOLDS.setdefault(whose_number(library), ([], []))
                if not claims:
                    found[:] = [library.num_threads]
                claims.append(self.claim)
                set_threads(library, 1)

    def __exit__(self, *error):
        self.claim.end()
        with BLAS_TURN:
            for library in blas_libraries():
                claims, found = HOLDS[whose_number(library)]
                left = [claim for claim in claims if claim.holds]
                if not left:
                    set_threads(library, found[0])
                claims[:] = left


def blas_threads_for(multiplications: int) -> AbstractContextManager:
    """BLAS held to one thread while products are SMALL, or as it is while they are not.

    multiplications : of the largest product that will be made often

    >>> with blas_threads_for(64 * 192 * 768):
    ...     product = np.ones((64, 192), dtype=np.float32) @ np.ones((192, 768), dtype=np.float32)
    """
    return OneBlasThread() if multiplications <= SMALL else nullcontext()


BLAS_TURN = Turn("The number of BLAS's threads")
# whose number -> the Claims of those who hold it to 1, and what the first one found
HOLDS: dict[tuple, tuple[list[Claim], list[int]]] = {}


def whose_number(library: Any) -> tuple[int, int | None]:
    """Where BLAS runs on OpenMP each thread has a number of its own; else the process has one.

    >>> from types import SimpleNamespace
    >>> library = SimpleNamespace(threading_layer="pthreads")  # one number for the process
    >>> whose_number(library) == (id(library), None)
    True
    """
    own = getattr(library, "threading_layer", None) == "openmp"
    return id(library), threading.get_ident() if own else None


def set_threads(library: Any, threads: int) -> None:
    """Set the number. threadpoolctl 3.7 listens to one thread only, unless it is told to forget.

    >>> for library in blas_libraries():
    ...     set_threads(library, library.num_threads)  # as it was
    """
    forget = getattr(library, "clear_controlling_thread", lambda force: None)
    forget(force=True)
    library.set_num_threads(threads)
    forget(force=True)
