"""Interrupts one Model at many places, one after the other; prints a line of JSON for each.

    python tests/campaign/interrupts.py FOLDER MODE DRAFTER STORE KIND [FIRST] [EVERY]

FOLDER is of `helpers_interrupts.write_stores`, STORE the name of one there, or small-threads, where
no queue of Linux's reads. KIND is where the interrupts come:

    lines   at every line that the main thread executes: the first, the middle and the last hit
    events  between bytecodes, at 500 random places
    threads at every line that other threads execute
    signals by a timer, at 500 random moments, wherever Python or a system call is
    storms  the same, and every 0.3 ms again until the text is given up

The points before FIRST are left out; of the others every EVERY-th is taken. A point that takes
over 20 seconds ends the process: exit code 1, and the last line is that of the point before.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers_interrupts import Subject, Trace  # noqa: E402

from tinyflash.matrices import half  # noqa: E402

HANGS = 20  # seconds
RANDOM = 500  # points


def points_of(kind, trace, subject):
    """What can be interrupted: (file, line, hit), the number of an event, or a moment."""
    lines, events = trace.record(subject.use)
    if kind in ("lines", "threads"):
        hits = [(*place, hit) for place, n in sorted(lines.items()) for hit in {1, -(-n // 2), n}]
        return sorted(hits)
    if kind == "events":
        trace.line = None
        return sorted(random.Random(0).sample(range(1, events + 1), min(RANDOM, events)))
    began = time.perf_counter()
    subject.use()
    seconds = time.perf_counter() - began
    return [random.Random(i).uniform(0, seconds) for i in range(RANDOM)]


def by_a_timer(use, seconds, again=0.0):
    """Interrupt `use` after some seconds, by a signal; whether it came in time."""
    hit = False
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), again)
            use()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        hit = True
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return hit


def interrupt(kind, trace, subject, point):
    """One interrupt; whether it came."""
    if kind in ("lines", "threads"):
        return trace.interrupt(subject.use, line=point)
    if kind == "events":
        return trace.interrupt(subject.use, event=point)
    for n in range(5):  # what took so long when it was measured may be quicker now
        if by_a_timer(subject.use, point / 2**n, 0.0003 if kind == "storms" else 0.0):
            return True
        subject.chat = subject.model.chat()  # the turn that was not interrupted is over
    return False


def main(folder, mode, drafter, store, kind, first=0, every=1):
    """All points of one kind."""
    half.TILE_BYTES = 4096  # several tiles, so that workers share them
    trace = Trace(main=kind != "threads")
    name, _, threads = store.partition("-")
    subject = Subject(Path(folder), mode, drafter, name, queue=not threads)
    subject.judge()  # everything is allocated
    points = points_of(kind, trace, subject)
    subject.judge()
    print(json.dumps({"points": len(points)}), flush=True)
    for number, point in enumerate(points):
        if number < int(first) or number % int(every):
            continue
        faulthandler.dump_traceback_later(HANGS, exit=True)
        hit = interrupt(kind, trace, subject, point)
        result = subject.judge()
        if not hit and result == "right":
            result = "not hit"
        where = ":".join(map(str, point)) if isinstance(point, tuple) else point
        print(json.dumps({"point": number, "where": where, "result": result}), flush=True)
    faulthandler.cancel_dump_traceback_later()
    os._exit(0)  # whatever threads are left


if __name__ == "__main__":
    main(*sys.argv[1:])
