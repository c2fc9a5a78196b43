"""What a token cost: bytes and reads, where the milliseconds went, and how many neurons moved.

latency = flash I/O + memory management + compute              (LLM in a flash, §3)
"""

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import numpy as np


@dataclass
class ReadCounters:
    """What was read: by one call, or since a reader's counters were last taken.

    bytes_wanted: bytes that were asked for
    bytes_read  : bytes that the file system brought, with the blocks around what was wanted
    reads       : requests that the file system saw
    chunk_sizes : how many of them brought how many bytes
    seconds     : from asking until everything had arrived
    """

    bytes_wanted: int = 0
    bytes_read: int = 0
    reads: int = 0
    chunk_sizes: dict[int, int] = field(default_factory=Counter)
    seconds: float = 0.0

    @staticmethod
    def of(bytes_wanted, sizes, seconds):
        """One call: what it wanted, what each of its reads brought, how long it took."""
        distinct, counts = np.unique(np.array(sizes, dtype=np.int64), return_counts=True)
        chunk_sizes = Counter(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))
        return ReadCounters(bytes_wanted, sum(sizes), len(sizes), chunk_sizes, seconds)

    def __add__(self, other):
        """What two calls read."""
        return ReadCounters(
            self.bytes_wanted + other.bytes_wanted,
            self.bytes_read + other.bytes_read,
            self.reads + other.reads,
            Counter(self.chunk_sizes) + Counter(other.chunk_sizes),
            self.seconds + other.seconds,
        )

    def take(self):
        """The counts so far; from here on they begin at zero."""
        taken = ReadCounters(**vars(self))
        vars(self).update(vars(ReadCounters()))
        return taken


@dataclass
class TokenCounters:
    """Costs of the feed-forwards since the counters were last taken; two of them can be added.

    calls       : feed-forwards computed: L for one token
    bytes_wanted: bytes of weights that were asked for
    bytes_read  : bytes that the file system was asked for, with what aligned reading adds
    reads       : requests that the file system saw
    chunk_sizes : how many of them had which size, in bytes
    io_ms       : waiting for flash
    reading_ms  : from asking flash until all had come; what was overlapped is no part of io_ms
    memory_ms   : memory management: window, swap-delete, append, parts put side by side
    compute_ms  : finding the active neurons, decoding, multiplying
    wanted      : neurons that the tokens used, or were predicted to (their union, layer by layer)
    fired       : (token, neuron) pairs computed whose activation was not zero
    loaded      : neurons read from flash
    ahead       : of these, read before their layer was called;  ahead_used: and wanted then
    evicted     : neurons that gave their rows away
    held        : neurons in DRAM afterwards
    window      : tokens whose neurons these are, summed over the calls
    slices      : passes through the rows; as many as calls where everything fitted at once
    """

    calls: int = 0
    bytes_wanted: int = 0
    bytes_read: int = 0
    reads: int = 0
    chunk_sizes: Counter = field(default_factory=Counter)
    io_ms: float = 0.0
    reading_ms: float = 0.0
    memory_ms: float = 0.0
    compute_ms: float = 0.0
    wanted: int = 0
    fired: int = 0
    loaded: int = 0
    ahead: int = 0
    ahead_used: int = 0
    evicted: int = 0
    held: int = 0
    window: int = 0
    slices: int = 0

    def __add__(self, other):
        """Costs of both: the layers of one token, say, or the tokens of a text."""
        names = [field.name for field in fields(self)]
        return TokenCounters(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def count(self, read):
        """Add what a reader read: its ReadCounters."""
        self.bytes_wanted += read.bytes_wanted
        self.bytes_read += read.bytes_read
        self.reads += read.reads
        self.chunk_sizes = self.chunk_sizes + read.chunk_sizes
        self.reading_ms += 1000 * read.seconds

    @contextmanager
    def timing(self, what):
        """Add the milliseconds of a `with` block to "io_ms", "memory_ms" or "compute_ms"."""
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = 1000 * (time.perf_counter() - began)
            setattr(self, what, getattr(self, what) + elapsed)

    def per_token(self, passes, tokens=None):
        """What a token cost in so many forward passes: dict of numbers; empty for no passes.

        tokens : that these passes yielded in all, accepted drafts included; None: one each

        Bytes, reads, milliseconds and neurons of all layers together; `chunk_sizes` is a dict in
        it, from the size of a read in bytes to how many a token had. `held` and `window` are
        means over the passes, `window` over layers too.
        """
        if not passes:
            return {}
        tokens = tokens or passes
        means = {field.name: getattr(self, field.name) for field in fields(TokenCounters)}
        sizes = sorted(means.pop("chunk_sizes").items())
        means = {name: value / tokens for name, value in means.items()}
        means["held"] = self.held / passes
        means["window"] = self.window / max(1, self.calls)
        return means | {"chunk_sizes": {size: count / tokens for size, count in sizes}}
