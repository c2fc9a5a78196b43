"""Streamed: every neuron is computed for every token, and those that DRAM does not hold are read.

naive   none stays in DRAM: all pass through one slice of rows
hybrid  as many as fit stay for good; the others pass through the slice
"""

from __future__ import annotations

import numpy as np

from tinyflash.flash.activity import EveryNeuron
from tinyflash.flash.feed_forward import STREAMED_MODES, FlashFeedForward, refuse_no_rows
from tinyflash.flash.layer import Layer
from tinyflash.flash.neuron_rows import NeuronRows, ranges
from tinyflash.transformer import no_tap

SMALL_SLICE = 64  # rows
SLICE_BYTES = 8 << 20  # read at a time: keeps many reads in flight


class Streamed(FlashFeedForward):
    """The feed-forward of one layer in mode naive or hybrid.

    resident : (n, width), the rows of neurons 0 … n - 1, which stay; none of them in mode naive
    slice    : (m, width), what the others pass through
    """

    def __init__(self, layer: Layer, rows: int, mode: str = "hybrid", tap=no_tap):
        """Allocate the rows, and read what stays in DRAM for good.

        rows  : most rows that DRAM may hold, at least 1, resident ones and the slice together
        mode  : "naive" or "hybrid"
        raises: ValueError for less than one row, or another mode; OSError from reading
        """
        if mode not in STREAMED_MODES:
            raise ValueError(f"Neurons are streamed in mode naive or hybrid, not {mode!r}.")
        refuse_no_rows(layer, rows)
        F = layer.store.config.ffn_width
        fetched = NeuronRows(layer.store, layer.number, layer.reader, layer.store.parts)
        super().__init__(layer, mode, EveryNeuron(F), fetched, tap)
        resident, passing = shares(mode, rows, F, max(1, SLICE_BYTES // fetched.row_bytes))
        self.resident = fetched.empty(resident)
        self.slice = fetched.empty(passing)
        if resident:
            fetched.read_range(0, resident, self.resident)

    @property
    def matrices(self):
        """The rows that stay, and those that others pass through."""
        return self.resident, self.slice

    def _compute(self, x, spent, moves):
        """The resident neurons, then all others, slice by slice."""
        F, resident = self.config.ffn_width, len(self.resident)
        active, known = self.activity.find(x, spent)
        with spent.timing("compute_ms"):
            rows = self._rows(self.resident, slice(0, resident), known)
            y = self._sum(x, rows, spent)
        for first, last in ranges(resident, F, len(self.slice)):
            passing = self.slice[: last - first]
            with spent.timing("io_ms"):
                spent.count(self.fetched.read_range(first, last, passing))
            with spent.timing("compute_ms"):
                rows = self._rows(passing, slice(first, last), known)
                y = y + self._sum(x, rows, spent)
            moves.loaded.append(np.arange(first, last, dtype=np.int64))
        moves.evicted += moves.loaded
        spent.slices = len(moves.loaded) + (resident > 0)
        spent.held = resident
        return active, y


def shares(mode, rows, F, most):
    """How many rows stay for good, and how many are the slice that the others pass through.

    rows : that DRAM may hold;  F : neurons;  most : rows that are worth reading at a time
    """
    if mode == "naive":
        return 0, min(most, rows, F)
    if rows >= F:
        return F, 0
    # An eighth of the rows; where that is next to nothing, up to half, or reads get tiny.
    passing = min(most, max(1, rows // 8, min(rows // 2, SMALL_SLICE)))
    return rows - passing, passing
