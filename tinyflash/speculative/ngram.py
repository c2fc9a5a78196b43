"""Prompt lookup: what followed these words before is proposed again. No model, no training."""

from dataclasses import dataclass

import numpy as np

from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.tree import chain


@dataclass(frozen=True)
class PromptLookup(Drafter):
    """A drafter that copies from the text itself: good for code, quotations, lists and repairs.

    The last `longest` tokens are looked for earlier in the text, then fewer, down to one; what
    followed their most recent occurrence is proposed. The copy may run into itself, as in LZ77,
    so that the text `a b a b` proposes `a b a b a b …`.

    longest : most tokens to look for, at least 1
    length  : tokens to propose, at least 1
    raises  : ValueError if either is smaller
    """

    longest: int = 3
    length: int = 10

    def __post_init__(self):
        if self.longest < 1 or self.length < 1:
            raise ValueError(
                "Prompt lookup looks for at least 1 token and proposes at least 1, not "
                f"{self.longest} and {self.length}."
            )

    def propose(self, ids, hidden=None):
        """A chain after the last token; that token alone where it is the first of its kind.

        ids     : ints, all tokens so far;  hidden : not looked at
        returns : Tree
        """
        ids = np.asarray(ids, dtype=np.int64)
        for size in range(min(self.longest, len(ids) - 1), 0, -1):
            start = last_occurrence(ids, size)
            if start is not None:
                copied = np.resize(ids[start + size :], self.length)
                return chain([ids[-1], *copied])
        return chain(ids[-1:])


def last_occurrence(ids, size):
    """Where the last `size` tokens last began before they did so at the end, or None."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, size)[:-1]
    matches = np.flatnonzero(np.all(windows == ids[-size:], axis=1))
    return int(matches[-1]) if len(matches) else None
