"""Reading for a layer before it is called, while the layer before it still multiplies.

What enters a layer's feed-forward differs little from what entered the one before, so a layer's
predictor, given that, tells most of what the layer will want. It is read while the attention in
between is computed. When the layer is called it is asked in earnest, and what the guess left out
is read then: a guess costs or saves time and never changes a result. (Reading beside attention is
ours; the paper reads when a layer is reached. Deja Vu, arXiv 2310.17157, predicts a layer ahead.)
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from tinyflash.flash.counters import TokenCounters

TRIED = 256  # neurons read ahead before a layer is judged by them
NONE = np.empty(0, dtype=np.int64)


@dataclass
class UnderWay:
    """Rows that are being read ahead: which neurons, into which rows, and who reports the end."""

    neurons: np.ndarray
    rows: np.ndarray
    ended: Future


class ReadAhead:
    """What one layer has read ahead of its call.

    under_way : UnderWay or None
    evicted   : int (m,), the neurons that gave their rows away for it
    spent     : TokenCounters since the last call: deciding, making room
    read, used: neurons that were read ahead so far, and those of them that were wanted then
    """

    def __init__(self, fetched, window, cache):
        """fetched, window, cache: the layer's NeuronRows, Window and NeuronCache"""
        self.fetched, self.window, self.cache = fetched, window, cache
        self.under_way, self.evicted = None, NONE
        self.spent = TokenCounters()
        self.read = self.used = 0

    @property
    def pays(self):
        """Whether at least half of what was read ahead so far was wanted."""
        return self.read < TRIED or 2 * self.used >= self.read

    def begin(self, guess):
        """Have the guessed neurons read that are not there, if all of them fit the rows.

        Those that the window holds for the longest make room.

        guess : bool (F,)
        """
        rows = len(self.cache.matrix)
        with self.spent.timing("memory_ms"):
            if self.under_way or np.count_nonzero(guess) > rows:
                return
            fitting = self.window.longest_that_fits(rows, self.window.k, guess)
            kept = guess | self.window.used_within(fitting)
            held = self.cache.neurons
            self.evicted = held[~kept[held]]
            self.cache.drop(self.evicted)
            guessed = np.flatnonzero(guess)
            missing = guessed[self.cache.find(guessed) < 0]
            room = self.cache.free[: len(missing)]
        if len(missing):
            ended = background().submit(self.fetched.read, missing, room)
            self.under_way = UnderWay(missing, room, ended)

    def end(self, wanted, up_bias, spent):
        """Wait for what is under way and give it its rows in the cache.

        wanted  : bool (F,), what is wanted in earnest
        up_bias : (F,);  spent : TokenCounters, gets all that the reading ahead cost
        returns : int (n,), the neurons that arrived; int (m,), those that had to go for them
        raises  : OSError or ValueError if they could not be read; none of them is there then
        """
        under_way, self.under_way = self.under_way, None
        evicted, self.evicted = self.evicted, NONE
        spent.add(self.spent)
        self.spent = TokenCounters()
        if under_way is None:
            return NONE, evicted
        with spent.timing("io_ms"):
            spent.count(under_way.ended.result())
        arrived = under_way.neurons
        with spent.timing("memory_ms"):
            self.cache.append(arrived, under_way.rows, up_bias[arrived])
        used = int(np.count_nonzero(wanted[arrived]))
        spent.ahead += len(arrived)
        spent.ahead_used += used
        self.read, self.used = self.read + len(arrived), self.used + used
        return arrived, evicted


@cache
def background():
    """The thread that waits for flash while others multiply; it reads in the order it is asked."""
    return ThreadPoolExecutor(1, thread_name_prefix="ahead")
