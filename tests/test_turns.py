"""Turns: one at a time, and whoever was interrupted, or stayed behind in a fork, holds none."""

import ast
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tinyflash import turns, workers
from tinyflash.matrices.half import HalfMatrix
from tinyflash.turns import LOOK_AGAIN, Turn
from tinyflash.workers import OneBlasThread, blas_libraries, pool


def take(turn):
    with turn:
        return "had it"


def take_and_be_interrupted(turn):
    """As if Ctrl-C came after the last line of the `with`, before the lock's release."""
    turn.__enter__()
    raise KeyboardInterrupt


def in_a_thread(function, *arguments):
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *arguments).result(timeout=10)


def in_a_child(function):
    """What a forked child returned: text."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(here, str(function()).encode())
        finally:
            os._exit(0)
    os.close(here)
    try:
        deadline = time.monotonic() + 20
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                return "it hangs"
            time.sleep(0.01)
        return os.read(there, 10_000).decode()
    finally:
        os.close(there)


@pytest.fixture
def often():
    """Threads that give way to one another all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_only_one_at_a_time(often):
    turn, inside, most, done = Turn("It"), [], [], []

    def work():
        for _ in range(40):
            with turn:
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(done) == 8 and set(most) == {1} and len(most) == 320


def test_what_runs_holds_whatever_it_calls(often):
    """Generators, too, whose frames come and go while somebody looks."""
    turn, held, leave = Turn("It"), threading.Event(), []

    def hold():
        with turn:
            held.set()
            while not leave:
                sum(n for n in range(20))

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    looks = [turn.holder.holds for _ in range(300_000)]
    leave.append(1)
    holder.join()
    assert all(looks) and not turn.holder.holds


def test_who_holds_it_is_waited_for_longer_than_one_look():
    turn, order = Turn("It"), []
    held = threading.Event()

    def hold():
        with turn:
            held.set()
            time.sleep(3 * LOOK_AGAIN)
            order.append("first")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with turn:
        order.append("second")
    holder.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("who", [take, lambda turn: in_a_thread(take, turn)], ids=["same", "other"])
def test_an_interrupted_holder_holds_nothing(who):
    turn = Turn("It")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            take_and_be_interrupted(turn)
        assert who(turn) == "had it"


def test_a_holder_whose_thread_is_gone_holds_nothing():
    turn = Turn("It")
    with pytest.raises(KeyboardInterrupt):
        in_a_thread(take_and_be_interrupted, turn)
    assert take(turn) == "had it"


def test_nobody_waits_for_himself():
    turn = Turn("This model")
    with turn, pytest.raises(ValueError, match="This model is at work already"):
        take(turn)
    assert take(turn) == "had it"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_the_parents_threads():
    turn, held, leave = Turn("It"), threading.Event(), threading.Event()

    def hold():
        with turn:
            held.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert in_a_child(lambda: take(turn)) == "had it"
    finally:
        leave.set()
        holder.join()


def test_nothing_is_yielded_while_a_turn_is_held():
    """A generator that waits does not run, so that another would take its turn."""
    held = 0
    for file in Path(turns.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.With):
                continue
            what = " ".join(ast.unparse(item.context_expr).lower() for item in node.items)
            if "turn" in what or "blas" in what:
                held += 1
                inside = [n for statement in node.body for n in ast.walk(statement)]
                assert not any(isinstance(n, ast.Yield | ast.YieldFrom) for n in inside), file
    assert held > 10


@pytest.fixture
def two_threads():
    """BLAS with two threads; skips where it cannot have them."""
    before = [library.num_threads for library in blas_libraries()]
    for library in blas_libraries():
        library.set_num_threads(2)
    if {library.num_threads for library in blas_libraries()} != {2}:
        pytest.skip("this BLAS cannot be told how many threads to use")
    yield lambda: {library.num_threads for library in blas_libraries()}
    for library, threads in zip(blas_libraries(), before, strict=True):
        library.set_num_threads(threads)


def test_the_last_to_leave_gives_blas_its_threads_back(two_threads):
    first, second = OneBlasThread(), OneBlasThread()

    def enter_second():
        second.__enter__()
        ready.set()
        leave.wait()
        second.__exit__()

    ready, leave = threading.Event(), threading.Event()
    other = threading.Thread(target=enter_second)
    with first:
        other.start()
        ready.wait()
        with OneBlasThread():
            assert two_threads() == {1}
    assert two_threads() == {1}, "the other one still holds it"
    leave.set()
    other.join()
    assert two_threads() == {2}


def test_an_interrupted_product_leaves_blas_no_longer_held_than_the_next(two_threads):
    def interrupted():
        OneBlasThread().__enter__()
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    with OneBlasThread():
        assert two_threads() == {1}
    assert two_threads() == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_multiplies_with_workers_of_its_own(monkeypatch):
    monkeypatch.setattr("tinyflash.matrices.half.TILE_BYTES", 64)
    matrix = HalfMatrix(np.random.default_rng(0).standard_normal((64, 8)).astype(np.float16))
    x = np.ones((1, 8), dtype=np.float32)
    expected = matrix.multiply(x)
    threads = min(workers.WORKERS, os.cpu_count())
    together = threading.Barrier(threads)
    list(pool().map(lambda _: together.wait(), range(threads)))  # all of its threads are there
    assert in_a_child(lambda: np.array_equal(matrix.multiply(x), expected)) == "True"
