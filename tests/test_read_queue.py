"""ReadQueue: what Linux reads by the hundred is what single reads bring, whatever goes wrong."""

import errno
import gc
import os
import platform
import weakref
from unittest import mock

import numpy as np
import pytest

from tinyflash.flash.reading import by_queue, read_queue, reader
from tinyflash.flash.reading.direct_io import BLOCK, aligned_empty, open_direct
from tinyflash.flash.reading.read_queue import ReadQueue, open_queue
from tinyflash.flash.reading.reader import FlashReader

BLOCKS = 600


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).integers(0, 256, BLOCKS * BLOCK, dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("queue") / "ffn"
    data.tofile(path)
    return path


@pytest.fixture
def queue():
    """A queue of 8 reads."""
    try:
        queue = ReadQueue(8)
    except OSError as error:  # not Linux, or a sandbox without; threads do as well, tested below
        pytest.skip(f"this system gives no queue of direct reads: {error}")
    yield queue
    queue.close()


@pytest.fixture
def queued(path, queue):
    """A reader with a queue."""
    with FlashReader(path, threads=2, queue=queue) as opened:
        if opened.by_queue is None:
            pytest.skip("this file system refuses direct reads, so nothing is queued")
        yield opened


def read_some(opened, data, seed=0, rows=200):
    """Random blocks through a reader; asserts that they are right."""
    chosen = np.random.default_rng(seed).permutation(BLOCKS)[:rows]
    out = aligned_empty((rows, BLOCK), np.uint8)
    counted = opened.read_rows(0, BLOCK, chosen, out)
    assert np.array_equal(out, data.reshape(BLOCKS, BLOCK)[chosen])
    assert counted.bytes_wanted == rows * BLOCK
    return counted


def test_where_there_is_no_queue_the_system_says_why():
    """So that a wrong number of a system call does not pass for a system without."""
    try:
        ReadQueue().close()
    except OSError as error:
        assert error.errno in (errno.ENOSYS, errno.EPERM, errno.EAGAIN), error


def test_no_thread_reads_what_needs_no_copy(queued, data):
    with mock.patch.object(os, "preadv", side_effect=OSError("a thread read")):
        counted = read_some(queued, data)
    assert counted.bytes_read == 200 * BLOCK
    assert counted.reads < 200  # neighbors came together


def test_rows_that_lie_across_blocks_are_queued_and_copied(queued, data):
    """18,176 bytes, as Falcon-7B's bundles; the last row ends with the file."""
    there = len(data) // 18_176
    last = len(data) - there * 18_176
    rows = np.random.default_rng(2).permutation(there)[:70]
    out = np.zeros((len(rows), 18_176), dtype=np.uint8)
    with mock.patch.object(os, "preadv", side_effect=OSError("a thread read")):
        queued.read_rows(last, 18_176, rows, out)
    assert np.array_equal(out, data[last:].reshape(there, -1)[rows])


def test_much_that_must_be_copied_is_left_to_the_threads(queued, data, monkeypatch):
    monkeypatch.setattr(by_queue, "MOST_COPIED", 10 * BLOCK)
    out = np.zeros(20 * BLOCK, dtype=np.uint8)
    queued.read_block(5, len(out), out)
    assert np.array_equal(out, data[5 : 5 + len(out)])
    assert queued.by_queue.buffer.size == 0


def test_many_reads_take_few_calls(queued, data, monkeypatch):
    calls, real = [], read_queue.system_call
    monkeypatch.setattr(read_queue, "system_call", lambda n, *a: calls.append(n) or real(n, *a))
    counted = read_some(queued, data)
    assert 2 <= len(calls) < counted.reads


def test_what_came_short_or_failed_is_read_again(queued, data, monkeypatch):
    real = queued.queue.read

    def poorly(descriptor, addresses, *rest):
        results = real(descriptor, addresses, *rest)
        results[::3] = BLOCK // 2
        results[1::3] = -errno.EIO
        return results

    monkeypatch.setattr(queued.queue, "read", poorly)
    counted = read_some(queued, data)
    assert counted.bytes_read > 200 * BLOCK  # the short ones brought something, too


def test_an_error_that_stays_is_told(queued, data, monkeypatch):
    real = queued.queue.read
    monkeypatch.setattr(queued.queue, "read", lambda *a: real(*a) * 0 - errno.EIO)
    with mock.patch.object(os, "preadv", side_effect=OSError(errno.EIO, "Input/output error")):
        with pytest.raises(OSError, match="cannot read at byte 0: Input/output error"):
            read_some(queued, data, rows=BLOCKS)
    monkeypatch.undo()
    read_some(queued, data)


@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("call", ["submit", "get_events"])
def test_an_interruption_before_a_call_is_counted_harms_nothing(
    queued, data, monkeypatch, call, nth
):
    """Linux took reads, or told of some, and Ctrl-C came before our next line."""
    queue, real, calls = queued.queue, read_queue.system_call, []

    def interrupted(number, *arguments):
        result = real(number, *arguments)
        calls.append(number)
        if number == getattr(queue, call) and calls.count(number) == nth:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(read_queue, "system_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_some(queued, data)
    monkeypatch.undo()
    assert queue.context.value == 0 and queue.memory is None, "nothing may be under way any more"
    with pytest.raises(ValueError, match="closed"):
        queue.read(queued.descriptor, *[np.array([0])] * 4)
    for seed in range(3):
        read_some(queued, data, seed)
    assert queued.queue is not queue


def test_memory_is_kept_until_linux_has_written_there(path, queued, monkeypatch):
    """Even if the queue could not be closed, and nobody else has the memory any more."""
    opened, gone = FlashReader(path, queue=open_queue()), []
    context = opened.queue.context

    def interrupted(self, results, enough):
        raise KeyboardInterrupt

    monkeypatch.setattr(ReadQueue, "_note_ended", interrupted)
    monkeypatch.setattr(ReadQueue, "close", lambda self: None)
    out = aligned_empty((BLOCKS * BLOCK,), np.uint8)
    weakref.finalize(out.base, lambda: gone.append(context.value))
    with pytest.raises(KeyboardInterrupt):
        opened.read_block(0, out.nbytes, out)
    monkeypatch.undo()
    del out
    gc.collect()
    assert context.value and gone == [], "Linux may still write there"
    del opened
    gc.collect()
    assert gone == [0], "the queue has to go before the memory does"


def test_a_queue_that_nobody_has_is_given_back():
    try:
        queue = ReadQueue(8)
    except OSError as error:
        pytest.skip(f"this system gives no queue of direct reads: {error}")
    context = queue.context
    assert context.value
    del queue
    gc.collect()
    assert context.value == 0


def test_requests_that_linux_refuses_are_an_error(path, queue):
    out = aligned_empty((BLOCK,), np.uint8)
    one = np.array([out.ctypes.data]), np.array([BLOCK]), np.array([0, 1]), np.array([0])
    descriptor = open_direct(path)
    assert queue.read(descriptor, *one, out).tolist() == [BLOCK]
    with pytest.raises(OSError, match="Bad file descriptor"):
        queue.read(9999, *one, out)
    os.close(descriptor)
    queue.close()
    queue.close()


def test_without_a_queue_threads_read(path, data, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert open_queue() is None
    with FlashReader(path, queue=open_queue()) as opened:
        read_some(opened, data)


def test_a_queue_is_given_back_where_reads_are_not_direct(path, data, queue, monkeypatch):
    monkeypatch.setattr(reader, "is_direct", lambda descriptor: False)
    with FlashReader(path, queue=queue) as opened:
        assert opened.by_queue is None and queue.context.value == 0
        read_some(opened, data)
