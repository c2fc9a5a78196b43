"""Prompt lookup: what followed these words before is proposed again. No model, no training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.tree import Tree, chain


@dataclass(frozen=True)
class PromptLookup(Drafter):
    """A drafter that copies from the text itself: good for code, quotations, lists and repairs.

    The last `longest` tokens are looked for earlier in the text, then fewer, down to one; what
    followed their most recent occurrence is proposed. The copy may run into itself, as in LZ77,
    so that the text `a b a b` proposes `a b a b a b …`.

    longest : most tokens to look for, at least 1
    length  : tokens to propose, at least 1
    raises  : ValueError if either is smaller

    >>> PromptLookup(longest=2, length=3).propose([7, 8, 9, 4, 7, 8]).tokens.tolist()
    [8, 9, 4, 7]
    """

    longest: int = 3
    length: int = 10

    def __post_init__(self):
        if self.longest < 1 or self.length < 1:
            raise ValueError(
                "Prompt lookup looks for at least 1 token and proposes at least 1, not "
                f"{self.longest} and {self.length}."
            )

    def propose(self, ids: Sequence[int], hidden: np.ndarray | None = None) -> Tree:
        """A chain after the last token; that token alone where it is the first of its kind.

        ids     : ints, all tokens so far;  hidden : not looked at
        returns : Tree
        """
        text = np.asarray(ids, dtype=np.int64)
        for size in range(min(self.longest, len(text) - 1), 0, -1):
            start = last_occurrence(text, size)
            if start is not None:
                copied = np.resize(text[start + size :], self.length)
                return chain([ids[-1], *copied])
        return chain(ids[-1:])


def last_occurrence(ids: np.ndarray, size: int) -> int | None:
    """Where the last `size` tokens began the last time before the end, or None.

    >>> last_occurrence(np.array([7, 8, 9, 7, 8], dtype=np.int64), 2)
    0
    """
    windows = np.lib.stride_tricks.sliding_window_view(ids, size)[:-1]
    matches = np.flatnonzero(np.all(windows == ids[-size:], axis=1))
    return int(matches[-1]) if len(matches) else None
