"""Windowed: only active neurons are computed, and those that the last k tokens used are in DRAM.

    predictor  nothing is kept from call to call
    window     the neurons of the last k tokens stay in the rows of a NeuronCache
    all        and a neuron's parts come in one read, while what is there is being multiplied

Who is active is told by a trained predictor, or exactly (activity.py). No active neuron is ever
left out. When the rows do not hold what the last k tokens used, the window shrinks; when they do
not hold what one call uses, it is computed in slices.
"""

from __future__ import annotations

import numpy as np

from tinyflash.flash.activity import Activity
from tinyflash.flash.feed_forward import SPARSE_MODES, FlashFeedForward, refuse_no_rows
from tinyflash.flash.layer import Layer
from tinyflash.flash.neuron_cache import NeuronCache
from tinyflash.flash.neuron_rows import NeuronRows
from tinyflash.flash.read_ahead import ReadAhead, in_background
from tinyflash.flash.window import Window, portions
from tinyflash.transformer import no_tap

LONGEST_WINDOW = 64  # tokens, where k is left open: the rows are full long before


class Windowed(FlashFeedForward):
    """The feed-forward of one layer in mode predictor, window or all.

    window : Window, which neurons the last tokens used
    cache  : NeuronCache, the rows of those that DRAM holds
    ahead  : ReadAhead, what is read before the layer is called
    next   : the feed-forward of the next layer, for which mode "all" reads ahead; or None
    """

    def __init__(
        self,
        layer: Layer,
        rows: int,
        mode: str,
        activity: Activity,
        k: int | None = None,
        cache: NeuronCache | None = None,
        tap=no_tap,
    ):
        """Allocate the rows.

        rows     : most rows that DRAM may hold, at least 1
        mode     : "predictor", "window" or "all"
        activity : who says which neurons are active. The parts that it knows
                   are no part of a row
        k        : tokens in the window; None for as many as fit
        cache    : mode predictor: the NeuronCache of another layer, to be shared, as it is empty
                   between calls; or None for one of its own
        raises   : ValueError for less than one row, or another mode
        """
        if mode not in SPARSE_MODES:
            modes = ", ".join(SPARSE_MODES)
            raise ValueError(f"Active neurons alone are read in mode {modes}, not {mode!r}.")
        refuse_no_rows(layer, rows)
        F = layer.store.config.ffn_width
        parts = [part for part in layer.store.parts if part not in activity.knows]
        apart = mode != "all"
        fetched = NeuronRows(layer.store, layer.number, layer.reader, parts, apart)
        super().__init__(layer, mode, activity, fetched, tap)
        self.window = Window(F, LONGEST_WINDOW if k is None else k)
        self.up_bias = self.biases.get("up", np.zeros(F, dtype=np.float32))
        self.cache = cache or NeuronCache(
            min(rows, F), fetched.width, F, fetched.dtype, self.up_bias.dtype
        )
        self.ahead = ReadAhead(activity, fetched, self.window, self.cache)
        self.next = None

    @property
    def matrices(self):
        """The rows of the cache."""
        return (self.cache.matrix,)

    def forget(self):
        """Hold nothing, and know of no token."""
        super().forget()
        self.ahead.job = None
        self.cache.clear()
        self.window.clear()

    def suppose(self, tokens):
        """The next `tokens` tokens may be rejected, see `Window.suppose`."""
        self.window.suppose(tokens)

    def keep(self, path):
        """Of the undecided tokens those on `path` stay; others count no more as users of neurons.

        What was read for them alone goes when the next token is computed, which may still use it.
        """
        self.window.keep(path)

    def _compute(self, x, spent, moves):
        """The active neurons only, and what is there already is not read."""
        active, known = self.activity.find(x, spent)
        ahead = self.ahead.end(active.any(axis=0), self.up_bias, spent)
        moves.loaded.append(ahead.neurons)
        moves.evicted.append(ahead.evicted)
        with spent.timing("memory_ms"):
            self.window.use(active)
        T, k, rows = len(x), self.window.k, len(self.cache.matrix)
        fitting = self.window.longest_that_fits(rows, max(T, k))  # tokens
        # A token gets what it was predicted to use, and nothing that its neighbors use.
        used = active if T > 1 and not self.activity.knows else None
        y = np.zeros_like(x)
        for neurons, kept in portions(self.window, self.cache, T, fitting):
            with spent.timing("memory_ms"):
                self._evict(kept, moves)
                held = self.cache.find(neurons)
                here, missing = neurons[held >= 0], neurons[held < 0]
                room = self.cache.free[: len(missing)]
            arrived = self._begin_reading(missing, room, spent)
            if self.next is not None and fitting >= T:
                self.next.look_ahead(x)
            try:
                with spent.timing("compute_ms"):
                    y = y + self._sum(x, self._rows_held(here, known, used), spent)
            finally:  # nobody writes into the rows once we are gone
                with spent.timing("io_ms"):
                    spent.count(arrived())
            with spent.timing("memory_ms"):
                self.cache.append(missing, room, self.up_bias[missing])
                moves.loaded.append(missing)
            with spent.timing("compute_ms"):
                y = y + self._sum(x, self._rows_held(missing, known, used), spent)
            spent.slices += len(neurons) > 0
        keeps = 0 if self.mode == "predictor" else max(1, min(fitting, k))  # tokens
        with spent.timing("memory_ms"):
            self._evict(self.window.used_within(keeps), moves)
        spent.held, spent.window = self.cache.num_used, keeps
        return active, y

    def look_ahead(self, x):
        """Begin to read what this layer will likely want, told by what enters the layer before it.

        x : (T, D), of the layer before
        """
        if not self.activity.knows:  # an exact source would cost more than is saved
            self.ahead.begin(x)

    def _begin_reading(self, missing, room, spent):
        """Have the rows of `missing` read into `room`; returns what waits until they are there.

        In mode "all" another thread asks for them while this one multiplies. In the others they
        are read at once.
        """
        if self.mode == "all" and len(missing):
            return in_background(self.cache, self.fetched.read, missing, room).result
        with spent.timing("io_ms"):
            counted = self.fetched.read(missing, room)
        return lambda: counted

    def _evict(self, kept, moves):
        """Delete the neurons that are not among `kept`, bool (F,)."""
        held = self.cache.neurons
        stale = held[~kept[held]]
        self.cache.drop(stale)
        moves.evicted.append(stale)

    def _rows_held(self, neurons, known, used):
        """Rows of neurons that the cache holds, with the bias that lies there."""
        places = self.cache.find(neurons)
        rows = self._rows(self.cache.matrix, neurons, known, places, used)
        if "up" in rows.biases:
            rows.biases["up"] = self.cache.bias[places]
        return rows.together()  # a slice where they follow one another, as rows just read do
