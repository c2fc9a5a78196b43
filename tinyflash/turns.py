"""Turns: one call at a time, and no lock that an interruption could leave locked for good.

Ctrl-C may come at any bytecode, also between the last line of a `with lock:` and the lock's
release. So what holds a turn is no flag but a call, the frame that it runs in. When that does not
run any more, however that came about, the turn is free. A forked child has no other threads than
the one that forked, and what they held is free there too.
"""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType

LOOK_AGAIN = 0.05  # seconds: how long a holder that went without a word is waited for


class Claim:
    """A call that is under way.

    process, thread, frame : where it runs
    under_way : a lock that is released when it says that it is over
    followers : Claims of those who wanted to be next; the first of them is

    >>> def work():
    ...     claim = Claim(sys._getframe())
    ...     return claim.holds, claim
    >>> held, claim = work()
    >>> held, claim.holds  # while it ran, and when it had returned
    (True, False)
    """

    def __init__(self, frame: FrameType | None) -> None:
        self.process, self.thread, self.frame = os.getpid(), threading.get_ident(), frame
        self.under_way = threading.Lock()
        self.under_way.acquire()
        self.followers = []

    @property
    def holds(self) -> bool:
        """Whether the call runs, and has not said it is over."""
        frame = self.frame
        stayed_behind = self.process != os.getpid() and self.thread != threading.main_thread().ident
        if frame is None or stayed_behind:
            return False
        try:
            frame.clear()  # of what it left; Python refuses it to a frame that runs
        except RuntimeError:
            return True
        return False

    def end(self) -> None:
        """Say that it is over; to be called once."""
        self.frame = None
        self.under_way.release()

    def wait(self) -> None:
        """Wait until it says that it is over, but not for long: it may be unable to say so."""
        if self.under_way.acquire(timeout=LOOK_AGAIN):
            self.under_way.release()


class Turn:
    """What one function at a time does: `with turn:` around its body, and nothing caught there.

    Nor is anything yielded: a generator does not run while it waits.

    >>> turn = Turn("This model")
    >>> with turn:
    ...     print("nobody else")
    nobody else
    """

    def __init__(self, whose: str) -> None:
        """`whose` is what the sentence below begins with, such as "This model"."""
        self.whose = whose
        self.holder = Claim(None)

    def __enter__(self):
        """Wait until nobody holds the turn, and take it.

        raises: ValueError if it is held further up in this thread, which would wait for itself
        """
        claim = Claim(sys._getframe(1))
        while True:
            holder = self.holder
            while holder.followers:
                holder = holder.followers[0]
            if not holder.holds:
                holder.followers.append(claim)  # of several only one becomes the first
                if holder.followers[0] is claim:
                    break
            elif holder.thread == claim.thread:
                raise ValueError(
                    f"{self.whose} is at work already, and is asked for more by what it calls, "
                    "a tap perhaps; ask it when it is done."
                )
            else:
                holder.wait()
        self.holder = claim

    def __exit__(self, *error):
        """Let the next one go on."""
        self.holder.end()
