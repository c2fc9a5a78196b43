"""Turns: one call at a time, and no lock that an interruption could leave locked for good.

Ctrl-C may come at any bytecode, also between the last line of a `with lock:` and the lock's
release. So what holds a turn is no flag but a call: a frame on the stack of its thread. When the
frame is gone, however that came about, the turn is free. A forked child has no other threads, and
what they held is free there too.
"""

import sys
import threading

LOOK_AGAIN = 0.05  # seconds: how long a holder that went without a word is waited for


class Claim:
    """A call that is under way.

    thread, frame : where it runs
    under_way     : a lock that is released when it says that it is over
    followers     : Claims of those who wanted to be next; the first of them is
    """

    def __init__(self, frame):
        self.thread, self.frame = threading.get_ident(), frame
        self.under_way = threading.Lock()
        self.under_way.acquire()
        self.followers = []

    @property
    def holds(self):
        """Whether the call is still on the stack of its thread, and has not said it is over."""
        frame = self.frame and sys._current_frames().get(self.thread)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None

    def end(self):
        """Say that it is over; to be called once."""
        self.frame = None
        self.under_way.release()

    def wait(self):
        """Wait until it says that it is over, but not for long: it may be unable to say so."""
        if self.under_way.acquire(timeout=LOOK_AGAIN):
            self.under_way.release()


class Turn:
    """What one function at a time does: `with turn:` around its body, and nothing caught there.

    >>> turn = Turn("This model")
    >>> with turn:
    ...     print("nobody else")
    nobody else
    """

    def __init__(self, whose):
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
