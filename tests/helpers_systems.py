"""What a test needs that not every system has; where it is missing the test says so."""

import os

import pytest

from tinyflash.flash.reading.read_queue import open_queue
from tinyflash.flash.store import writing

needs_locks = pytest.mark.skipif(
    writing.fcntl is None or not hasattr(os, "O_DIRECTORY"),
    reason="this system cannot lock a directory",
)


def has_queue():
    """Whether this system gives a queue of direct reads."""
    queue = open_queue() if hasattr(os, "O_DIRECT") and hasattr(os, "preadv") else None
    if queue:
        queue.close()
    return queue is not None


needs_queue = pytest.mark.skipif(not has_queue(), reason="there is no queue of direct reads")
