"""What a FlashReader is like after an interruption, in a forked child, and when nobody has it."""

import gc
import os
import threading
import time

import numpy as np
import pytest
from test_turns import in_a_child

from tinyflash.flash.reading import by_threads
from tinyflash.flash.reading.direct_io import BLOCK, aligned_empty
from tinyflash.flash.reading.read_queue import open_queue
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.turns import Turn

BLOCKS = 64


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("afterwards") / "ffn"
    np.random.default_rng(0).integers(0, 256, BLOCKS * BLOCK, dtype=np.uint8).tofile(path)
    return path


@pytest.fixture(params=["threads", "queue"])
def opened(request, path):
    with FlashReader(path, threads=3, queue=request.param == "queue" and open_queue() or None) as r:
        yield r


def right(opened, seed=0):
    """Whether random blocks are read as they are."""
    chosen = np.random.default_rng(seed).permutation(BLOCKS)[:20]
    out = aligned_empty((20, BLOCK), np.uint8)
    opened.read_rows(0, BLOCK, chosen, out)
    data = np.fromfile(opened.path, dtype=np.uint8).reshape(BLOCKS, BLOCK)
    return np.array_equal(out, data[chosen])


def test_a_thread_that_was_begun_and_not_noted_is_waited_for(path, monkeypatch):
    """Ctrl-C comes when a thread has begun to read, and nobody knows of it yet."""
    begun, late = threading.Event(), []

    def slowly(*given):
        begun.set()
        time.sleep(0.2)
        late.append(1)
        return [BLOCK]

    with FlashReader(path, threads=1) as opened:

        def interrupted(*work):
            threading.Thread(target=work[0], args=work[1:]).start()
            begun.wait()
            raise KeyboardInterrupt

        monkeypatch.setattr(by_threads, "read_fully", slowly)
        opened.by_threads.executor.submit = interrupted
        with pytest.raises(KeyboardInterrupt):
            opened.read_block(0, BLOCK, np.zeros(BLOCK, dtype=np.uint8))
        assert late, "it still writes"
        monkeypatch.undo()
        assert right(opened)


def test_locks_that_stay_locked_stop_nobody(opened, monkeypatch):
    """Ctrl-C comes at the end of a `with`, before the lock is released."""

    def interrupted(*given):
        raise KeyboardInterrupt

    for seed in range(2):
        with monkeypatch.context() as during:
            during.setattr(opened, "_read", interrupted)
            during.setattr(Turn, "__exit__", lambda self, *error: None)
            with pytest.raises(KeyboardInterrupt):
                right(opened)
        opened.reading.acquire()
        assert right(opened, seed)


def test_what_an_exception_left_is_not_used_again(opened, monkeypatch):
    threads, queue = opened.by_threads, opened.by_queue
    monkeypatch.setattr(opened, "_read", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        right(opened)
    monkeypatch.undo()
    assert right(opened)
    assert opened.by_threads is not threads
    assert opened.by_queue is not queue or queue is None
    threads = opened.by_threads
    assert right(opened) and opened.by_threads is threads


def test_where_linux_has_no_other_queue_threads_read(path, monkeypatch):
    with FlashReader(path, queue=open_queue()) as opened:
        opened.unfinished = True
        monkeypatch.setattr("tinyflash.flash.reading.reader.open_queue", lambda: None)
        assert right(opened) and opened.by_queue is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("used", [False, True])
def test_a_forked_child_reads(opened, used):
    if used:
        assert right(opened)
    assert in_a_child(lambda: [right(opened, seed) for seed in range(2)]) == "[True, True]"
    assert right(opened)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_leaves_the_parents_queue_alone(path):
    """The child's own may have the same number, so that closing the parent's would close it."""
    with FlashReader(path, queue=open_queue()) as opened:
        if opened.by_queue is None:
            pytest.skip("this system has no queue of direct reads")
        parents = opened.queue

        def child():
            first = right(opened)
            parents.close()
            gc.collect()
            return first, right(opened), opened.by_queue is not None

        assert in_a_child(child) == "(True, True, True)"
        assert right(opened) and opened.queue is parents


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_waits_for_what_is_being_read(path, monkeypatch):
    begun, ended = threading.Event(), []

    def slowly(self, *given):
        begun.set()
        time.sleep(0.2)
        ended.append(1)
        return []

    monkeypatch.setattr(by_threads.ByThreads, "_work", slowly)
    with FlashReader(path, threads=1) as opened:
        block = np.zeros(BLOCK, dtype=np.uint8)
        other = threading.Thread(target=opened.read_block, args=(0, BLOCK, block))
        other.start()
        begun.wait()
        assert in_a_child(lambda: len(ended)) == "1"
        other.join()


def test_a_reader_that_nobody_has_lets_go_of_everything(path):
    def used():
        return len(os.listdir("/dev/fd"))

    gc.collect()
    before = used()
    readers = [FlashReader(path, queue=open_queue()) for _ in range(20)]
    contexts = [opened.queue.context for opened in readers if opened.by_queue]
    assert all(right(opened) for opened in readers)
    assert used() >= before + 20
    del readers
    gc.collect()
    assert used() <= before
    assert all(context.value == 0 for context in contexts)
