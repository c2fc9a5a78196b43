"""A command at a terminal of its own, by Python's pty: what it shows, and keys for it."""

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tinyflash

needs_pty = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(tinyflash.__file__).parents[1]),
    "TERM": "xterm",
    "COLUMNS": "300",
    "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here answers where the cursor is
}
SECONDS = 40  # for anything that is waited for


class Terminal:
    """`python -m tinyflash` with all three streams on a terminal; use it in a `with`.

    seen : all that the terminal got so far
    """

    def __init__(self, *arguments, program=("-m", "tinyflash"), **environment):
        import pty

        self.ours, theirs = pty.openpty()
        self.seen, self.done = "", 0
        self.running = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=ENVIRONMENT | environment,
            preexec_fn=lambda: take_terminal(theirs),
        )
        os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.running.kill()
        self.running.wait()
        os.close(self.ours)

    def type(self, keys):
        """Press keys: text, or control characters such as \\x03 for Ctrl-C."""
        os.write(self.ours, keys.encode())

    def interrupt(self, pattern):
        """Press Ctrl-C until a pattern comes, as a person would.

        A signal that comes just before Python's readline begins to wait is seen with the next key.
        """
        for _ in range(4):
            self.type("\x03")
            try:
                return self.until(pattern, SECONDS / 4)
            except AssertionError:
                if self.running.poll() is not None:
                    raise
        raise AssertionError(f"Ctrl-C brings no {pattern!r}")

    def until(self, pattern, seconds=SECONDS):
        """Wait for a pattern in the plain text, behind what was waited for before; what matched."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, plain(self.seen)[self.done :])):
            rest = plain(self.seen)[self.done :]
            assert time.monotonic() < end and self.read(), f"no {pattern!r} in {rest[-500:]!r}"
        self.done += found.end()
        return found.group()

    def read(self):
        """Take what there is to see within a second; False once the other side has closed."""
        if not select.select([self.ours], [], [], 1)[0]:
            return True
        try:
            piece = os.read(self.ours, 1 << 16)
        except OSError:  # this is how Linux says so
            return False
        self.seen += piece.decode("utf-8", "replace")
        return bool(piece)

    def ended(self):
        """Wait for the end; the exit code."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.read():
            pass
        return self.running.wait(timeout=10)


def take_terminal(descriptor):
    """In the child: a session whose terminal this is, so that Ctrl-C comes as a signal."""
    import fcntl
    import signal
    import termios

    os.setsid()
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's may be ignored


def plain(seen):
    """What a terminal got without the codes that move and color."""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\x1b[=>]|\r", "", seen)
