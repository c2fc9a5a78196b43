"""A feed-forward whose weights stay on flash: find who is active, read, compute, account.

Five ways of doing it with fewer rows of DRAM than there are neurons, from the plainest on:

    naive      every neuron is read for every call                            (streamed.py)
    hybrid     some neurons stay in DRAM for good, the others are read for every call
    predictor  only active neurons are read, for every call anew, their parts one by one
    window     and those that the last k tokens used are still there          (windowed.py)
    all        and a neuron's parts come in one read (row-column bundling), while what is there
               already is being multiplied; likely ones even before the layer is reached

Here is what they share: the sum over neurons, and the account of what it cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tinyflash.flash.activity import Activity, exact_note
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.layer import Layer
from tinyflash.flash.neuron_rows import NeuronRows
from tinyflash.flash.neuron_sum import Rows, sum_of_neurons
from tinyflash.ops import activation

STREAMED_MODES = ("naive", "hybrid")
SPARSE_MODES = ("predictor", "window", "all")
MODES = (*STREAMED_MODES, *SPARSE_MODES)


@dataclass
class Moves:
    """What one call moved: lists of int arrays, the neurons in order.

    loaded  : read from flash
    evicted : gave their rows away
    """

    loaded: list[np.ndarray] = field(default_factory=list)
    evicted: list[np.ndarray] = field(default_factory=list)


class FlashFeedForward:
    """The feed-forward of one layer: call it with (T, D), get (T, D). `Streamed` or `Windowed`.

    activity   : who says which neurons are active
    fetched    : NeuronRows; `fetched.parts` says what a row holds, `fetched.row_bytes` its size
    exact_note : why every neuron counts as active, one sentence; empty where some rest
    counters   : TokenCounters since `take_counters`
    tap        : function (name, tensor), may be replaced; it is shown, under `layers.{i}.`,
                 ffn.predicted  bool (T, F), the neurons that each token uses
                 ffn.loaded     int (n,), the neurons read, in order
                 ffn.evicted    int (m,), the neurons that gave their rows away, in order
                 ffn.reads      int (c, 2), sizes of reads in bytes, and how many had each
                 ffn.out        (T, D)
    """

    def __init__(self, layer: Layer, mode: str, activity: Activity, fetched: NeuronRows, tap):
        """What both kinds have; the arguments are the attributes."""
        self.config = layer.store.config
        self.number = layer.number
        self.mode = mode
        self.biases = {part: bias for part, bias in layer.biases.items() if part != "down"}
        self.down_bias = layer.biases.get("down")
        self.activate = activation(self.config.activation, layer.threshold)
        self.exact_note = exact_note(self.config, layer.threshold)
        self.activity = activity
        self.fetched = fetched
        self.tap = tap
        self.counters = TokenCounters()

    @property
    def matrices(self) -> tuple[np.ndarray, ...]:
        """The rows that it keeps in DRAM, in one or two arrays."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of weights that it keeps in DRAM."""
        return self.activity.nbytes + sum(matrix.nbytes for matrix in self.matrices)

    def take_counters(self) -> TokenCounters:
        """What was spent since this was last asked."""
        taken, self.counters = self.counters, TokenCounters()
        return taken

    def forget(self):
        """Be as when it was new: an exception came at a point that nobody knows."""
        self.counters = TokenCounters()

    def suppose(self, tokens: int):
        """The next so many tokens may not stay, see `Window.suppose`. Nothing, without a window."""

    def keep(self, path):
        """Of these tokens those on `path` stay, see `Window.keep`."""

    def __call__(self, x):
        """down(act(up(x))), or gated down(act(gate(x)) · up(x)), from the neurons that matter.

        x : (T, D);  returns: (T, D), of x's dtype
        raises: OSError or ValueError if flash cannot be read; `forget` before the next call
        """
        spent, moves = TokenCounters(calls=1), Moves()
        active, y = self._compute(x, spent, moves)
        out = y if self.down_bias is None else y + self.down_bias
        self._account(spent, active, moves, out)
        return out

    def _compute(self, x, spent, moves):
        """The neurons that each token uses, bool (T, F), and their sum, (T, D) without down's bias.

        spent : TokenCounters;  moves : Moves; both get what the call does
        """
        raise NotImplementedError

    def _rows(self, matrix, neurons, known, chosen=None, used=None) -> Rows:
        """Rows of a matrix that hold `neurons` (a slice, or int (n,)), and what belongs to these.

        known, used : of all F neurons;  chosen : which rows, or None for all, see Rows
        """
        biases = {part: bias[neurons] for part, bias in self.biases.items()}
        known = {part: pre[:, neurons] for part, pre in known.items()}
        used = None if used is None else used[:, neurons]
        return Rows(matrix, chosen, self.fetched.parts, self.fetched.format, biases, known, used)

    def _sum(self, x, rows, spent):
        """What the neurons of some Rows add: (T, D)."""
        y, fired = sum_of_neurons(x, rows, self.activate, self.config.gated)
        spent.fired += fired
        return y

    def _account(self, spent, active, moves, out):
        """Close the counters of one call, and show the taps what it did."""
        none = np.empty(0, dtype=np.int64)
        loaded = np.concatenate([none, *moves.loaded])
        evicted = np.concatenate([none, *moves.evicted])
        spent.wanted = int(np.count_nonzero(active.any(axis=0)))
        spent.loaded, spent.evicted = len(loaded), len(evicted)
        self.counters = self.counters + spent

        sizes = np.array(sorted(spent.chunk_sizes.items()), dtype=np.int64).reshape(-1, 2)
        shown = {"predicted": active, "loaded": loaded, "evicted": evicted, "reads": sizes}
        for name, tensor in (shown | {"out": out}).items():
            self.tap(f"layers.{self.number}.ffn.{name}", tensor)


def refuse_no_rows(layer: Layer, rows: int):
    """ValueError unless at least one row of a layer fits its share of memory."""
    if rows < 1:
        raise ValueError(
            f"No neuron of layer {layer.number} fits its share of memory; allow each layer at "
            f"least {layer.store.row_bytes:,} bytes."
        )
