"""The threads that share a product, and what each of them keeps: one pool for every matrix."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

WORKERS = 2


KEPT = threading.local()  # what `scratch` gives


def scratch(name, shape, dtype):
    """An array of this thread's own to write into, which the next call for `name` takes back.

    Memory that is new each time costs more than decoding into it: the kernel gives it page by page.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    held = getattr(KEPT, name, None)
    if held is None or held.nbytes < nbytes:
        held = np.empty(nbytes, dtype=np.uint8)
        setattr(KEPT, name, held)
    return held[:nbytes].view(dtype).reshape(shape)


@cache
def pool():
    """The workers that every matrix shares."""
    return ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1), thread_name_prefix="tile")


@cache
def blas():
    """The handle by which BLAS is held to one thread while two workers call it."""
    return ThreadpoolController()
