"""The sliding window: which neurons the last k tokens used.

Neighboring tokens use nearly the same neurons. If DRAM keeps those of the last k tokens, the next
token reads only what is new:

    held  = A_t ∪ A_{t-1} ∪ … ∪ A_{t-k+1}
    read  = A_t − (A_{t-1} ∪ … ∪ A_{t-k})             (LLM in a flash, §3.1)

where A_t is the set of neurons that token t uses.
"""

import numpy as np

NEVER = -(1 << 62)  # older than any window is long


class Window:
    """For each neuron of one layer the token that used it last; all else follows from its age.

    length    : of the window in tokens, at least 1
    k         : the same, and beside it the tokens that are proposed and not yet accepted
    tokens    : tokens seen so far
    last_used : int (F,), number of the token that used it last, or NEVER
    """

    def __init__(self, F, k):
        """A window of k tokens over F neurons, with nothing used yet.

        raises: ValueError if k is below 1
        """
        if k < 1:
            raise ValueError(f"A window is at least 1 token long, not {k}.")
        self.F, self.length = F, k
        self.clear()

    def clear(self):
        """As if no token had passed."""
        self.k = self.length
        self.tokens = 0
        self.last_used = np.full(self.F, NEVER, dtype=np.int64)
        self._before = None  # while tokens are undecided: k, tokens and last_used without them
        self._undecided = []  # and what they use, bool (T, F)

    def use(self, active):
        """Let T more tokens pass.

        active : bool (T, F), True where token t uses neuron j
        """
        T, F = active.shape
        used = active.any(axis=0)
        last = T - 1 - active[::-1].argmax(axis=0)  # where `used`, the last row that is True
        self.last_used[used] = self.tokens + last[used]
        self.tokens += T
        if self._before is not None:
            self._undecided.append(active)

    def suppose(self, tokens):
        """The next `tokens` tokens may be rejected: until `keep`, nothing is evicted for them.

        0 tokens ends it: whatever was undecided is accepted.
        """
        if self._before is not None:
            self.k = self._before[0]
        self._before, self._undecided = None, []
        if tokens:
            self._before = self.k, self.tokens, self.last_used.copy()
            self.k += tokens

    def keep(self, path):
        """Only the undecided tokens on `path` were accepted: the window forgets the others.

        If α of λ + 1 verified tokens are accepted, it holds those of the last k tokens that end
        there, not at the last that was computed.    (LLM in a flash, on speculative decoding)

        path : increasing ints, numbers among the undecided tokens
        """
        if self._before is None:
            return
        undecided = self._undecided
        self.k, self.tokens, self.last_used = self._before
        self._before, self._undecided = None, []
        if undecided:
            self.use(np.concatenate(undecided)[path])

    @property
    def age(self):
        """Tokens since each neuron was used: int (F,), 0 if the newest token used it."""
        return self.tokens - 1 - self.last_used

    def used_within(self, length):
        """Which neurons the last `length` tokens used: bool (F,)."""
        return self.age < length

    @property
    def last_k_active(self):
        """Which neurons the last k tokens used: bool (F,); the paper's name for it (§3.3)."""
        return self.used_within(self.k)

    def longest_that_fits(self, rows, most, besides=None):
        """The length of the longest window whose neurons fit `rows` rows.

        max j ≤ most with |A_t ∪ … ∪ A_{t-j+1}| ≤ rows; 0 if the newest token alone needs more

        besides : bool (F,), neurons that take rows in any case, or None
        """
        age = self.age
        if besides is not None:
            age, rows = age[~besides], rows - np.count_nonzero(besides)
        most = min(most, self.tokens)
        neurons_of_age = np.bincount(age[age < most], minlength=most)
        held_by_length = np.cumsum(neurons_of_age)  # place j-1: what the last j tokens used
        return int(np.searchsorted(held_by_length, rows, side="right"))


def portions(window, cache, T, fitting):
    """What the T newest tokens used, in portions that fit the rows of a cache.

    If all fit, there is one portion, and the older neurons of the window stay beside it. If not,
    what is there already comes first, and the rest follows in slices, in the order of flash,
    where neighbors are read together. The most recently used come last and fill all rows, because
    the last slice stays.

    window  : Window;  cache : NeuronCache;  fitting : tokens whose neurons fit the rows
    yields  : int (n,), n ≤ rows; bool (F,), the neurons that need not go for them
    """
    rows = len(cache.matrix)
    used = np.flatnonzero(window.used_within(T))
    if fitting >= T:
        yield used, window.used_within(fitting)
        return
    here = cache.find(used) >= 0
    missing = used[~here]
    missing = missing[np.argsort(-window.age[missing], kind="stable")]
    passing, last = np.sort(missing[:-rows]), missing[-rows:]
    slices = np.split(passing, range(len(passing) % rows, len(passing), rows))
    for neurons in (used[here], *slices, last):
        kept = np.zeros(len(window.last_used), dtype=bool)
        kept[neurons] = True
        yield neurons, kept
