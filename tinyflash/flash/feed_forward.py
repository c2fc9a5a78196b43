"""A feed-forward whose weights stay on flash: find -> window -> read -> cache -> compute.

Five ways of doing with fewer rows of DRAM than there are neurons, from the plainest on:

    naive      every neuron is read for every call
    hybrid     some neurons stay in DRAM for good, the others are read for every call
    predictor  only active neurons are read, for every call anew, their parts one by one
    window     and those that the last k tokens used are still there
    all        and a neuron's parts come in one read (row-column bundling), while what is there
               already is being multiplied; likely ones even before the layer is reached

Who is active is told by a trained predictor, or exactly (activity.py). No active neuron is ever
left out. When the rows do not hold what the last k tokens used, the window shrinks; when they do
not hold what one call uses, it is computed in slices.
"""

import numpy as np

from tinyflash.flash.activity import exact_activity, exact_note
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.neuron_cache import NeuronCache
from tinyflash.flash.neuron_rows import NeuronRows, ranges
from tinyflash.flash.neuron_sum import sum_of_neurons
from tinyflash.flash.read_ahead import ReadAhead, background
from tinyflash.flash.window import Window, portions
from tinyflash.transformer import no_tap

SPARSE_MODES = ("predictor", "window", "all")
MODES = ("naive", "hybrid", *SPARSE_MODES)
LONGEST_WINDOW = 64  # tokens, where k is left open: the rows are full long before
SMALL_SLICE = 64  # rows
SLICE_BYTES = 8 << 20  # read at a time where all neurons are: keeps many reads in flight


class FlashFeedForward:
    """The feed-forward of one layer: call it with (T, D), get (T, D).

    fetched    : NeuronRows; `fetched.parts` says what a row holds, `fetched.row_bytes` its size
    exact_note : why every neuron counts as active, one sentence; empty where some rest
    counters   : TokenCounters since `take_counters`
    next       : the feed-forward of the next layer, for which mode "all" reads ahead; or None
    tap        : function (name, tensor), may be replaced; it is shown, under `layers.{i}.`,
                 ffn.predicted  bool (T, F), the neurons that each token uses
                 ffn.loaded     int (n,), the neurons read, in order
                 ffn.evicted    int (m,), the neurons that gave their rows away, in order
                 ffn.reads      int (c, 2), sizes of reads in bytes, and how many had each
                 ffn.out        (T, D)
    """

    def __init__(
        self,
        store,
        layer,
        reader,
        up_bias=None,
        gate_bias=None,
        down_bias=None,
        *,
        rows,
        k=None,
        mode="hybrid",
        activity="resident",
        threshold=None,
        cache=None,
        tap=no_tap,
    ):
        """Allocate the rows, and read what stays in DRAM for good.

        store, reader : a flash directory, and a FlashReader of its ffn_path
        up_bias, gate_bias : (F,) or None;  down_bias : (D,) or None
        rows      : most rows that DRAM may hold, at least 1, resident ones and slices together
        k         : modes window and all: tokens in the window; None for as many as fit
        mode      : one of MODES
        activity  : sparse modes: who says which neurons are active. "resident": the projection
                    that tells stays in DRAM, beside the rows; "read": it is read whole for each
                    call; or another source, as a Predictor. Its known parts are no part of a row
        threshold : below which activations are cut off (fatrelu.py), or None for nowhere
        cache     : mode predictor: the NeuronCache of another layer, to be shared, as it is empty
                    between calls; or None for one of its own
        raises    : ValueError for less than one row, or an unknown mode; OSError from reading
        """
        if mode not in MODES:
            raise ValueError(f"A flash feed-forward is {', '.join(MODES)}, not {mode!r}.")
        if rows < 1:
            raise ValueError(
                f"No neuron of layer {layer} fits its share of memory; allow each layer at least "
                f"{store.row_bytes:,} bytes."
            )
        self.config = store.config
        self.layer = layer
        self.next = None
        self.biases = {"up": up_bias, "gate": gate_bias}
        self.biases = {part: bias for part, bias in self.biases.items() if bias is not None}
        self.down_bias = down_bias
        self.mode = mode
        self.threshold = threshold
        self.tap = tap
        self.exact_note = exact_note(store.config, threshold)
        self.counters = TokenCounters()
        if mode in SPARSE_MODES:
            self._allocate_window(store, reader, rows, k, activity, cache)
        else:
            self._allocate_slice(store, reader, rows)

    def _allocate_slice(self, store, reader, rows):
        """Naive: one slice that the neurons pass through. Hybrid: the rest of the rows resides."""
        F = self.config.ffn_width
        self.fetched = NeuronRows(store, self.layer, reader, store.parts)
        slice_rows = max(1, SLICE_BYTES // self.fetched.row_bytes)
        resident = 0
        if self.mode == "naive":
            slice_rows = min(slice_rows, rows, F)
        elif rows >= F:
            resident, slice_rows = F, 0
        else:
            # An eighth of the rows; where that is next to nothing, up to half, or reads get tiny.
            slice_rows = min(slice_rows, max(1, rows // 8, min(rows // 2, SMALL_SLICE)))
            resident = rows - slice_rows
        self.resident = self.fetched.empty(resident)
        self.slice = self.fetched.empty(slice_rows)
        if resident:
            self.fetched.read_range(0, resident, self.resident)

    def _allocate_window(self, store, reader, rows, k, activity, cache):
        """Sparse modes: the cache, and beside it what the source of activity keeps."""
        F = self.config.ffn_width
        if isinstance(activity, str):
            activity = exact_activity(
                store, self.layer, reader, self.biases, rows, activity, self.threshold
            )
        self.activity = activity
        parts = [part for part in store.parts if part not in activity.knows]
        self.fetched = NeuronRows(store, self.layer, reader, parts, apart=self.mode != "all")
        self.window = Window(F, LONGEST_WINDOW if k is None else k)
        self.up_bias = self.biases.get("up", np.zeros(F, dtype=np.float32))
        self.cache = cache or NeuronCache(
            min(rows, F), self.fetched.width, F, self.fetched.dtype, self.up_bias.dtype
        )
        self.ahead = ReadAhead(activity, self.fetched, self.window, self.cache)

    @property
    def matrices(self):
        """The rows that it keeps in DRAM, in one or two arrays."""
        if self.mode in SPARSE_MODES:
            return (self.cache.matrix,)
        return self.resident, self.slice

    @property
    def nbytes(self):
        """Bytes of weights that it keeps in DRAM."""
        telling = self.activity.nbytes if self.mode in SPARSE_MODES else 0
        return telling + sum(matrix.nbytes for matrix in self.matrices)

    def take_counters(self):
        """What was spent since this was last asked."""
        taken, self.counters = self.counters, TokenCounters()
        return taken

    def __call__(self, x):
        """down(act(up(x))), or gated down(act(gate(x)) · up(x)), from the neurons that matter.

        x : (T, D);  returns: (T, D), of x's dtype
        raises: OSError or ValueError if flash cannot be read; the next call may be tried
        """
        spent = TokenCounters(calls=1)
        moves = {"loaded": [], "evicted": []}  # arrays of neurons, in order
        if self.mode in SPARSE_MODES:
            active, y = self._windowed(x, spent, moves)
        else:
            active = np.ones((len(x), self.config.ffn_width), dtype=bool)
            y = self._streamed(x, spent, moves)
        out = y if self.down_bias is None else y + self.down_bias
        self._account(spent, active, moves, out)
        return out

    def _streamed(self, x, spent, moves):
        """Naive and hybrid: the resident neurons, then all others, slice by slice."""
        F, resident = self.config.ffn_width, len(self.resident)
        y = self._sum(x, self.resident, None, slice(0, resident), {}, spent)
        for first, last in ranges(resident, F, len(self.slice)):
            rows = self.slice[: last - first]
            with spent.timing("io_ms"):
                spent.count(self.fetched.read_range(first, last, rows))
            y = y + self._sum(x, rows, None, slice(first, last), {}, spent)
            moves["loaded"].append(np.arange(first, last, dtype=np.int64))
        moves["evicted"] = moves["loaded"]
        spent.slices = len(moves["loaded"]) + (resident > 0)
        spent.held = resident
        return y

    def _windowed(self, x, spent, moves):
        """Sparse modes: the active neurons only, and what is there already is not read."""
        active, known = self.activity.find(x, spent)
        ahead = self.ahead.end(active.any(axis=0), self.up_bias, spent)
        moves["loaded"].append(ahead.neurons)
        moves["evicted"].append(ahead.evicted)
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
                y = y + self._sum_held(x, held[held >= 0], here, known, used, spent)
            finally:  # nobody writes into the rows once we are gone
                with spent.timing("io_ms"):
                    spent.count(arrived())
            with spent.timing("memory_ms"):
                self.cache.append(missing, room, self.up_bias[missing])
                moves["loaded"].append(missing)
            y = y + self._sum_held(x, self.cache.find(missing), missing, known, used, spent)
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
            return background().submit(self.fetched.read, missing, room).result
        with spent.timing("io_ms"):
            counted = self.fetched.read(missing, room)
        return lambda: counted

    def _evict(self, kept, moves):
        """Delete the neurons that are not among `kept`, bool (F,)."""
        held = self.cache.neurons
        stale = held[~kept[held]]
        self.cache.drop(stale)
        moves["evicted"].append(stale)

    def _sum_held(self, x, rows, neurons, known, used, spent):
        """What `neurons` add, which are in some rows of the cache, with the bias that lies there.

        used: bool (T, F), or None where neurons that a token does not use add nothing anyway
        """
        matrix, bias = self.cache.matrix, self.cache.bias[rows]
        # Rows that follow one another, as where they were just read, need not be gathered.
        if len(rows) and np.array_equal(
            rows, np.arange(rows[0], rows[0] + len(rows), dtype=np.int64)
        ):
            matrix, rows = matrix[rows[0] : rows[-1] + 1], None
        used = None if used is None else used[:, neurons]
        return self._sum(x, matrix, rows, neurons, known, spent, bias, used)

    def _sum(self, x, matrix, rows, neurons, known, spent, up_bias=None, used=None):
        """What `neurons` add: they are all rows of a matrix, or some of them."""
        if len(matrix if rows is None else rows) == 0:
            return np.zeros_like(x)
        with spent.timing("compute_ms"):
            biases = {part: bias[neurons] for part, bias in self.biases.items()}
            if up_bias is not None and "up" in biases:
                biases["up"] = up_bias
            known = {part: pre[:, neurons] for part, pre in known.items()}
            layout = self.fetched.parts, self.fetched.format
            return sum_of_neurons(
                x, matrix, rows, *layout, self.config, biases, known, self.threshold, used, spent
            )

    def _account(self, spent, active, moves, out):
        """Close the counters of one call, and show the taps what it did."""
        none = np.empty(0, dtype=np.int64)
        loaded = np.concatenate([none, *moves["loaded"]])
        evicted = np.concatenate([none, *moves["evicted"]])
        spent.wanted = int(np.count_nonzero(active.any(axis=0)))
        spent.loaded, spent.evicted = len(loaded), len(evicted)
        self.counters = self.counters + spent

        sizes = np.array(sorted(spent.chunk_sizes.items()), dtype=np.int64).reshape(-1, 2)
        shown = {"predicted": active, "loaded": loaded, "evicted": evicted, "reads": sizes}
        for name, tensor in (shown | {"out": out}).items():
            self.tap(f"layers.{self.layer}.ffn.{name}", tensor)
