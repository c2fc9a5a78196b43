"""Opens a flash directory as what the forward pass needs: weights, and a feed-forward a layer."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from tinyflash.flash.activity import exact_activity
from tinyflash.flash.budget import Budget, budget_for, parse_memory
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.feed_forward import MODES, SPARSE_MODES, STREAMED_MODES, FlashFeedForward
from tinyflash.flash.layer import Layer, biases_of
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.reading.read_queue import open_queue
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.store.directory import Store, resident_weights
from tinyflash.flash.store.predictor_file import read_predictors
from tinyflash.flash.store.thresholds import thresholds_of
from tinyflash.flash.store.verified import refuse_changed_store, verify_once
from tinyflash.flash.streamed import Streamed
from tinyflash.flash.windowed import Windowed
from tinyflash.progress import quiet
from tinyflash.transformer import no_tap
from tinyflash.turns import Turn
from tinyflash.weights import bytes_of

TOKENS = 256  # that the KV cache has room for until more are asked for


@dataclass
class FlashEngine:
    """A model whose feed-forwards stay on flash.

    What its layers know of themselves is right between `begin` and `end`, and between `end` and
    the next `begin`. So a pass is marked as begun, and one that finds the mark of another, which
    an exception ended anywhere, forgets what the layers hold and reads it again. That changes no
    result, as nothing that a cache holds ever does.

    weights   : dict name -> weight, all but the feed-forward matrices
    budget    : Budget; only `make_room_for_kv_cache` changes it
    k         : tokens of the window, or None for as many as fit
    predictors: one a layer; none where activity is found exactly
    thresholds: below which activations are cut off, one a layer; or None
    layers    : the feed-forwards, or empty until they are first asked for
    last_cost : TokenCounters of the last forward pass, all layers together
    turn      : Turn, to be held during a pass: `with engine.turn:`
    """

    store: Store
    reader: FlashReader
    budget: Budget
    mode: str
    k: int | None
    dtype: np.dtype
    weights: dict
    predictors: list[Predictor]
    thresholds: list[float] | None
    layers: list = field(default_factory=list)
    last_cost: TokenCounters = field(default_factory=TokenCounters)
    turn: Turn = field(default_factory=lambda: Turn("This model"))
    unfinished: bool = False  # whether a pass was begun that has not come to its end
    undecided: int | None = None  # id of the KVCache of the last pass, if it has to say what stays

    def __repr__(self):
        allowed = f"{self.budget.memory / 1e6:,.1f} MB allowed" if self.budget else "no budget"
        return f"<FlashEngine {self.store.path.name!r}: mode {self.mode}, {allowed}>"

    @property
    def feed_forwards(self):
        """One FlashFeedForward a layer, for `transformer.forward`; allocated when first asked."""
        if not self.layers:
            with self.turn:
                self._allocate()
        return self.layers

    @property
    def factors(self):
        """The factors of all predictors: HalfMatrices, mapped."""
        return [factor for one in self.predictors for factor in (one.down, one.up)]

    def _allocate(self):
        """Allocate the layers, unless they are there. Half of them are never there."""
        if self.layers:
            return
        layers = []
        for i in range(self.store.config.layers):
            layers.append(self._feed_forward(i, layers[0] if layers else None))
        if self.mode == "all":
            for layer, following in itertools.pairwise(layers):
                layer.next = following
        self.layers = layers

    def _feed_forward(self, i, first) -> FlashFeedForward:
        """The feed-forward of layer i, within its share of the budget.

        first : that of layer 0, or None for itself
        """
        prefix = f"layers.{self.store.config.weight_layer(i)}.ffn"
        biases = biases_of(self.weights, prefix)
        threshold = self.thresholds[i] if self.thresholds else None
        layer = Layer(self.store, i, self.reader, biases, threshold)
        rows = self.budget.rows[i]
        if self.mode in STREAMED_MODES:
            return Streamed(layer, rows, self.mode)
        if self.budget.activity == "predicted":
            activity = self.predictors[i]
        else:
            activity = exact_activity(layer, self.budget.activity, rows)
        shared = first.cache if self.mode == "predictor" and first else None
        return Windowed(layer, rows, self.mode, activity, self.k, shared)

    @property
    def kv_dtype(self):
        """Of the KV cache: float16, but float64 for proofs."""
        return kv_dtype_of(self.dtype)

    def make_room_for_kv_cache(self, tokens):
        """See that a KV cache of so many tokens fits the budget: the feed-forwards' rows give way.

        Where there is no room yet, all layers are allocated anew with fewer rows, and empty: what
        they held is read again.

        raises: ValueError if the memory allowed is too little for that; nothing has changed then
        """
        if tokens <= self.budget.tokens:
            return
        with self.turn:
            tokens = max(tokens, self.budget.tokens)  # another may have asked for more meanwhile
            about = self.store, self.weights, self.mode, self.predictors, self.kv_dtype
            budget = budget_of(*about, self.budget.memory, tokens)
            self.layers = []  # before the budget: layers are never larger than it allows
            self.budget = budget

    @property
    def nbytes(self):
        """Bytes of weights kept in DRAM."""
        return self.budget.resident + self.budget.telling + self._rows_bytes()

    def _rows_bytes(self):
        """Bytes of the feed-forwards' rows; what layers share counts once."""
        matrices = [matrix for layer in self.feed_forwards for matrix in layer.matrices]
        return bytes_of({id(matrix): matrix for matrix in matrices})

    def components(self):
        """What DRAM holds: dict of names -> bytes, the KV cache at its full length."""
        sizes = {"embeddings": 0, "attention": 0, "norms and biases": 0}
        for name, weight in {id(w): (n, w) for n, w in self.weights.items()}.values():
            if name.endswith(".bias") or "norm" in name or ".threshold" in name:
                sizes["norms and biases"] += weight.nbytes
            else:
                sizes["attention" if ".attn." in name else "embeddings"] += weight.nbytes
        if self.budget.telling:
            predicted = self.budget.activity == "predicted"
            sizes["predictors" if predicted else "projections that tell"] = self.budget.telling
        return sizes | {
            "feed-forward rows": self._rows_bytes(),
            "KV cache": self.budget.kv_cache,
        }

    def begin(self, tap=None, undecided=0, cache=None):
        """Before a forward pass: the layers show their tensors to `tap`; returns them.

        undecided : that many tokens are computed, and `keep` says afterwards which of them stay
        cache     : the KVCache of these tokens, by which `keep` knows them, or None
        """
        if self.unfinished:
            self._forget()
        self.unfinished = True
        self._allocate()
        for layer in self.layers:
            layer.tap = tap or no_tap
            layer.take_counters()
            layer.suppose(undecided)
        self.undecided = id(cache) if undecided else None
        return self.layers

    def _forget(self):
        """Make the layers as they were when they were new: the last pass did not end."""
        for layer in self.layers:
            layer.forget()
        self.unfinished = False

    def keep(self, path, cache=None):
        """Of the undecided tokens those on `path` stay, see `Window.keep`.

        If another text was computed in between, or a pass that did not end, it was decided there.
        """
        with self.turn:
            if self.unfinished or self.undecided != id(cache):
                return
            self.unfinished = True
            for layer in self.layers:
                layer.keep(path)
            self.unfinished = False

    def end(self):
        """After a forward pass: add up what its layers spent."""
        spent = [layer.take_counters() for layer in self.layers]
        self.last_cost = sum(spent, TokenCounters())
        self.unfinished = False


def open_engine(
    store, *, memory=None, mode=None, k=None, tokens=TOKENS, dtype=np.float32, progress=quiet
):
    """Open a flash directory within a memory budget.

    memory : bytes or text, see budget.parse_memory; None for as much as the model has
    mode   : one of feed_forward.MODES; None for "all" where there are trained predictors, and
             "hybrid" where not
    k      : tokens of the window, at least 1; None for as many as fit
    tokens : that the KV cache must have room for
    progress : Progress of checking its digests
    raises : ValueError for another mode, a k below 1, too little memory, or a store that is not
             what was written (its digests are checked once)
    """
    if mode is not None and mode not in MODES:
        raise ValueError(f"A flash model runs in mode {', '.join(MODES)}, not {mode!r}.")
    if k is not None and k < 1:
        raise ValueError(f"A window is at least 1 token long, not {k}.")
    with progress("Checking what was written", "bytes") as report:
        verify_once(store, report)
    predictors = read_predictors(store, dtype)
    mode = mode or ("all" if predictors else "hybrid")
    if mode == "predictor" and not predictors:
        raise ValueError(
            f"{store.path.name} has no trained predictors; tinyflash train predictor "
            f"{store.path.name} --text FILE makes them."
        )
    weights, dtype = resident_weights(store, dtype), np.dtype(dtype)
    neurons = store.config.weight_layers * store.config.ffn_width
    whole = bytes_of(weights) + neurons * store.row_bytes
    memory = whole if memory is None else parse_memory(memory, whole)
    predictors = predictors if predictors and mode in SPARSE_MODES else []
    about = store, weights, mode, predictors, kv_dtype_of(dtype)
    budget = budget_of(*about, memory, min(tokens, store.config.context))
    reader = FlashReader(store.ffn_path, queue=open_queue())
    refuse_changed_store(store)
    return FlashEngine(
        store, reader, budget, mode, k, dtype, weights, predictors, thresholds_of(store)
    )


def budget_of(store, weights, mode, predictors, kv_dtype, memory, tokens):
    """The Budget of an engine with these weights and predictors, see budget_for."""
    return budget_for(
        store,
        memory,
        bytes_of(weights),
        mode,
        tokens=tokens,
        kv_number=kv_dtype.itemsize,
        predicted=store.manifest["predictor"]["layers"] if predictors else None,
    )


def kv_dtype_of(dtype):
    """What a KV cache beside flash keeps: float16, but float64 for proofs in float64."""
    return np.dtype(np.float16) if dtype == np.float32 else dtype


def refuse_idle_window(engine, k):
    """Raise a ValueError if a window was asked for, and the engine, now open, keeps none.

    k : tokens, or None if nobody asked
    """
    if k is not None and engine.mode not in ("window", "all"):
        raise ValueError(
            f"A window of {k} has no effect in mode {engine.mode}, which keeps none (without "
            "trained predictors it is the default); ask for mode window or all."
        )
