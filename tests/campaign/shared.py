"""One Model and many threads, or many forks; prints what came of each text as JSON.

    python tests/campaign/shared.py FOLDER MODE DRAFTER KIND ROUNDS

FOLDER is of `helpers_interrupts.write_stores`. KIND:

    threads      eight threads write texts with one Model and one drafter
    own          four Models over one store, a thread each
    interrupted  four threads write texts; KeyboardInterrupt is raised in one of them at a time
    company      signals come to the main thread while three others write texts
    turns        one thread goes on with five texts by turns, and leaves one of them
    forks        forks between texts, and in the middle of one, while another thread writes
    pool         multiprocessing forks workers, which write texts

Who starts it sees to it that it ends.
"""

import ctypes
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers_interrupts import NEW, PROMPTS, Subject  # noqa: E402

from tinyflash.matrices import half  # noqa: E402

HANGS = 60  # seconds, for a child


def write(subject, i):
    """One text; "right", "refused: …" or "WRONG …"."""
    prompt = PROMPTS[i % len(PROMPTS)]
    try:
        made = subject.model.generate(prompt, **subject.settings(NEW))
        list(made)
    except (ValueError, OSError) as error:
        return f"refused: {error}" if "again" in str(error) else f"WRONG {error!r}"
    except KeyboardInterrupt:
        return "interrupted"
    except Exception as error:
        return f"WRONG {error!r}"
    expected = subject.expected(prompt, NEW)
    return "right" if made.ids == expected else f"WRONG {made.ids} instead of {expected}"


def at_once(*functions):
    """What each returned, in a thread of its own."""
    said = []
    threads = [threading.Thread(target=lambda f=f: said.append(f())) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def threads(subject, rng):
    """Eight texts at once."""
    return at_once(*(lambda i=i: write(subject, i) for i in range(8)))


def own(subject, rng):
    """Four Models."""
    others = [subject, *(Subject(subject.folder, subject.mode, "none") for _ in range(3))]
    for other in others:
        other.texts = subject.texts
    return at_once(*(lambda i=i, o=o: write(o, i) for i, o in enumerate(others)))


def interrupted(subject, rng):
    """Four threads, each four texts; one of them is interrupted now and then."""
    said, going = [], []

    def work():
        going.append(threading.get_ident())
        for i in range(4):
            try:
                said.append(write(subject, i))
            except KeyboardInterrupt:  # between two texts
                said.append("interrupted")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(rng.uniform(0, 0.03))
        alive = {worker.ident for worker in workers[1:] if worker.is_alive()}
        for ident in list(alive)[:1]:
            raised = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), raised)
    for worker in workers:
        worker.join()
    return [*said, write(subject, 0)]


def company(subject, rng):
    """Signals to the main thread, which writes eight texts."""
    said, leave = [], []

    def work(i):
        while not leave:
            said.append(write(subject, i))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for i in range(8):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 0.05))
            said.append(write(subject, i))
        except KeyboardInterrupt:
            said.append("interrupted")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    leave.append(1)
    for worker in workers:
        worker.join()
    return [*said, write(subject, 0)]


def turns(subject, rng):
    """Five texts by turns in random order; the last one is left."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(5)]
    texts = [subject.model.generate(prompt, **subject.settings(NEW)) for prompt in prompts]
    next(texts[-1], None)
    while left := [text for text in texts[:-1] if text.stop_reason is None]:
        next(rng.choice(left), None)
    pairs = zip(prompts[:-1], texts, strict=False)
    return ["right" if t.ids == subject.expected(p, NEW) else f"WRONG {t.ids}" for p, t in pairs]


def in_a_child(function):
    """What a child says: a text."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(HANGS)  # ends it
        try:
            os.write(here, function().encode())
        finally:
            os._exit(0)
    os.close(here)
    _, status = os.waitpid(child, 0)
    with os.fdopen(there, "rb") as said:
        text = said.read().decode()
    return text or f"WRONG child, status {status}"


def forks(subject, rng):
    """A fork at a random moment of another thread's texts; one in the middle of a text."""
    leave, said = [], []

    def work():
        while not leave:
            said.append(write(subject, 1))

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(rng.uniform(0, 0.05))
    said.append(in_a_child(lambda: write(subject, 0)))
    leave.append(1)
    worker.join()
    begun = subject.model.generate(PROMPTS[0], **subject.settings(NEW))
    next(begun, None)

    def go_on():
        list(begun)
        right = begun.ids == subject.expected(PROMPTS[0], NEW)
        return "right" if right else f"WRONG {begun.ids}"

    return [*said, in_a_child(go_on), go_on(), in_a_child(lambda: write(subject, 2))]


def pool(subject, rng):
    """Three processes, nine texts."""
    global SHARED
    SHARED = subject
    with multiprocessing.get_context("fork").Pool(3) as workers:
        said = workers.map_async(write_shared, range(9)).get(timeout=HANGS)
    return [*said, write(subject, 0)]


def write_shared(i):
    """A text by the Model that was there before the fork."""
    return write(SHARED, i)


KINDS = {f.__name__: f for f in (threads, own, interrupted, company, turns, forks, pool)}


def main(folder, mode, drafter, kind, rounds):
    """So many rounds of one kind."""
    half.TILE_BYTES = 4096  # several tiles, so that workers share them
    sys.setswitchinterval(1e-4)
    subject, rng = Subject(Path(folder), mode, drafter), random.Random(0)
    for prompt in PROMPTS:
        subject.expected(prompt, NEW)
    counts, wrong = Counter(), []
    for n in range(int(rounds)):
        if n > 0:  # the first round uses a Model that has not been used
            write(subject, 0)
        for said in KINDS[kind](subject, rng):
            counts[said.partition(":")[0].partition(" ")[0]] += 1
            if said.startswith("WRONG"):
                wrong.append(said)
    print(json.dumps({"counts": counts, "wrong": wrong[:5]}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
