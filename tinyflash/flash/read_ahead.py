"""Reading for a layer before it is called, while the layer before it still multiplies.

What enters a layer's feed-forward differs little from what entered the one before, so a layer's
predictor, given that, tells most of what the layer will want. It is read while the attention in
between is computed. When the layer is called it is asked in earnest, and what the guess left out
is read then: a guess costs or saves time and never changes a result. (Reading beside attention is
ours; the paper reads when a layer is reached. Deja Vu, arXiv 2310.17157, predicts a layer ahead.)
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tinyflash.flash.counters import ReadCounters, TokenCounters
from tinyflash.workers import once_a_process

TRIED = 256  # neurons read ahead before a layer is judged by them
NONE = np.empty(0, dtype=np.int64)


@dataclass
class Arrived:
    """What was read ahead.

    neurons : int (n,);  rows: (n, width), the cache's, where they lie now
    evicted : int (m,), the neurons that gave their rows away
    counted : ReadCounters
    """

    neurons: np.ndarray = field(default_factory=lambda: NONE)
    rows: np.ndarray = field(default_factory=lambda: NONE)
    evicted: np.ndarray = field(default_factory=lambda: NONE)
    counted: ReadCounters = field(default_factory=ReadCounters)


class ReadAhead:
    """What one layer reads ahead of its call. Between `begin` and `end` the layer is not touched.

    job       : what another thread does, a future that gives an Arrived; None when there is none
    read, used: neurons that were read ahead so far, and those of them that were wanted then
    """

    def __init__(self, activity, fetched, window, cache):
        """The layer's source of activity, NeuronRows, Window and NeuronCache."""
        self.activity, self.fetched = activity, fetched
        self.window, self.cache = window, cache
        self.job = self.process = None
        self.read = self.used = 0

    @property
    def pays(self):
        """Whether at least half of what was read ahead so far was wanted."""
        return self.read < TRIED or 2 * self.used >= self.read

    def begin(self, x):
        """Have what the layer will likely want read by another thread.

        x : (T, D), what entered the layer before
        """
        if self.job is None and self.pays:
            self.process, self.job = os.getpid(), in_background(self.cache, self._read, x)

    def _read(self, x):
        """Read the neurons that are likely, if all of them fit the rows; returns Arrived.

        Those that the window holds for the longest make room.
        """
        guess = self.activity.find(x, TokenCounters())[0].any(axis=0)
        rows = len(self.cache.matrix)
        if np.count_nonzero(guess) > rows:
            return Arrived()
        fitting = self.window.longest_that_fits(rows, self.window.k, guess)
        kept = guess | self.window.used_within(fitting)
        held = self.cache.neurons
        evicted = held[~kept[held]]
        self.cache.drop(evicted)
        guessed = np.flatnonzero(guess)
        missing = guessed[self.cache.find(guessed) < 0]
        room = self.cache.free[: len(missing)]
        return Arrived(missing, room, evicted, self.fetched.read(missing, room))

    def end(self, wanted, up_bias, spent):
        """Wait for what was begun and give it its rows in the cache.

        wanted  : bool (F,), what is wanted in earnest
        up_bias : (F,);  spent : TokenCounters, gets what was read, and the time waited
        returns : Arrived
        raises  : OSError or ValueError if it could not be read, or in a child that was forked
                  meanwhile; nothing of it is there then
        """
        job, self.job = self.job, None
        if job is None:
            return Arrived()
        if self.process != os.getpid():
            raise ValueError(
                "This process was forked during a pass, which cannot go on here; begin it again."
            )
        with spent.timing("io_ms"):
            arrived = job.result()
        if len(arrived.neurons) == 0:
            return arrived
        spent.count(arrived.counted)
        with spent.timing("memory_ms"):
            self.cache.append(arrived.neurons, arrived.rows, up_bias[arrived.neurons])
        used = int(np.count_nonzero(wanted[arrived.neurons]))
        spent.ahead += len(arrived.neurons)
        spent.ahead_used += used
        self.read, self.used = self.read + len(arrived.neurons), self.used + used
        return arrived


def in_background(cache, function, *arguments) -> Future:
    """Have another thread do what writes into the rows of a cache, unless that is cleared before.

    After an interruption it may come late, when the rows are others' already.

    cache : NeuronCache;  returns: Future of what function(*arguments) returns, or of None
    """
    epoch = cache.epoch

    def do():
        with cache.turn:
            return function(*arguments) if cache.epoch == epoch else None

    return background().submit(do)


@once_a_process
def background() -> ThreadPoolExecutor:
    """The thread that waits for flash while others multiply; it reads in the order it is asked."""
    return ThreadPoolExecutor(1, thread_name_prefix="ahead")
