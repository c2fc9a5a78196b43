"""Exact sources of a layer's active neurons: those whose activation is not zero.

For ReLU they are the neurons whose pre-activation (gated: whose gate) is above zero, a few
percent of all. With a threshold (fatrelu.py) they are those that reach it, whatever the
activation. To know them exactly one must compute that projection, whole; a trained predictor
(LLM in a flash, §3.1) knows them nearly, and for a hundredth of the work.

"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.neuron_rows import NeuronRows, ranges
from tinyflash.matrices.half import HalfMatrix
from tinyflash.ops import activation, linear

ZERO_ON_AN_INTERVAL = ("relu", "relu2")  # the others are zero at single points, if anywhere
SCANNED_BYTES = 4 << 20  # of a projection at a time


class Activity(Protocol):
    """A source of a layer's active neurons: one of those below, or a Predictor (predictor.py)."""

    @property
    def knows(self) -> tuple[str, ...]:
        """The parts whose pre-activations it finds: their rows need not be fetched any more."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of weights that it keeps in DRAM."""
        ...

    @property
    def elements(self) -> int:
        """Weights that it multiplies by for each token."""
        ...

    def find(self, x, spent: TokenCounters) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Which neurons some tokens use.

        x       : (T, D), what enters the feed-forward;  spent : gets what it costs
        returns : bool (T, F), True where token t uses neuron j; and, by part, the pre-activations
                  that it computed on the way, (T, F), bias included
        """
        ...


def exact_note(config, threshold=None):
    """What "active" comes to with this activation, one sentence; empty where neurons rest.

    threshold: below which activations are cut off, or None for nowhere
    """
    if config.activation in ZERO_ON_AN_INTERVAL or threshold is not None:
        return ""
    return (
        f"{config.activation} is zero almost nowhere, so all {config.ffn_width} neurons of a layer "
        "count as active, and sparsity saves nothing without a threshold."
    )


def exact_activity(layer, where, most_rows) -> Activity:
    """The exact source for a layer.

    layer     : Layer
    where     : "resident", the projection that tells stays in DRAM; or "read", it is read whole
                for each call
    most_rows : rows that a buffer for reading may have
    raises    : ValueError for another word
    """
    if where not in ("resident", "read"):
        raise ValueError(f'Exact activity is "resident" or "read", not {where!r}.')
    config = layer.store.config
    if exact_note(config, layer.threshold):
        return EveryNeuron(config.ffn_width)
    part = "gate" if config.gated else "up"
    rows = NeuronRows(layer.store, layer.number, layer.reader, (part,))
    activate = activation(config.activation, layer.threshold)
    if where == "resident":
        return ResidentProjection(rows, layer.biases.get(part), activate)
    return ReadProjection(rows, layer.biases.get(part), activate, most_rows)


class EveryNeuron:
    """The source for activations that are zero nowhere: all neurons, always."""

    knows = ()
    nbytes = 0
    elements = 0

    def __init__(self, F):
        """All of F neurons."""
        self.F = F

    def find(self, x, spent):
        """True everywhere, and nothing known. x: (T, D)."""
        return np.ones((len(x), self.F), dtype=bool), {}


class Projection:
    """The up projection (gated: the gate), all of which must be computed to know who is active."""

    def __init__(self, rows, bias, activate):
        """A projection that is on flash.

        rows     : NeuronRows of one part, "up" or "gate"
        bias     : (F,) or None
        activate : the activation, a function of any shape
        """
        self.knows = rows.parts
        self.rows = rows
        self.bias = bias
        self.activate = activate

    @property
    def nbytes(self):
        """Bytes of weights that it keeps in DRAM."""
        return self.kept.nbytes

    @property
    def elements(self):
        """Weights that it multiplies by for each token: F·D."""
        return self.rows.F * self.rows.width

    def decide(self, pre):
        """(active, known) from pre-activations that lack their bias. pre: (T, F)."""
        pre = pre if self.bias is None else pre + self.bias
        return self.activate(pre) != 0, {self.knows[0]: pre}


class ResidentProjection(Projection):
    """Keeps the projection in DRAM: F·D numbers, and nothing is read."""

    def __init__(self, rows, bias, activate):
        """Read the projection once; see Projection."""
        super().__init__(rows, bias, activate)
        self.kept = rows.empty(rows.F)
        rows.read_range(0, rows.F, self.kept)
        self.matrix = multipliable(self.kept, rows.name)

    def find(self, x, spent):
        """Which neurons are active, and the pre-activations that tell. x: (T, D)."""
        with spent.timing("compute_ms"):
            return self.decide(linear(x, self.matrix))


class ReadProjection(Projection):
    """Reads the projection whole for every call, through a small buffer.

    In a plain store the projection is one block. In a row-column store it lies in pieces between
    the other parts, where reading it takes nearly as long as reading everything.
    """

    def __init__(self, rows, bias, activate, most_rows):
        """Allocate a buffer of at most `most_rows` rows; see Projection."""
        super().__init__(rows, bias, activate)
        height = max(1, SCANNED_BYTES // rows.row_bytes)
        self.kept = rows.empty(min(most_rows, height, rows.F))

    def find(self, x, spent):
        """Which neurons are active, and the pre-activations that tell. x: (T, D)."""
        pre = np.empty((len(x), self.rows.F), dtype=x.dtype)
        for first, last in ranges(0, self.rows.F, len(self.kept)):
            tile = self.kept[: last - first]
            with spent.timing("io_ms"):
                spent.count(self.rows.read_range(first, last, tile))
            with spent.timing("compute_ms"):
                pre[:, first:last] = linear(x, multipliable(tile, self.rows.name))
        with spent.timing("compute_ms"):
            return self.decide(pre)


def multipliable(rows, name):
    """Undecoded rows as something that `ops.linear` can multiply by."""
    return rows if rows.dtype == np.float32 else HalfMatrix(rows, name)
