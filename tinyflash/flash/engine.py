"""Opens a flash directory as what the forward pass needs: weights, and a feed-forward a layer."""

from dataclasses import dataclass, field, fields

import numpy as np

from tinyflash.costs.paper_tables import DRAM_SHARES
from tinyflash.flash.activity import exact_activity
from tinyflash.flash.budget import Budget, budget_for, parse_memory
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.feed_forward import MODES, SPARSE_MODES, STREAMED_MODES, FlashFeedForward
from tinyflash.flash.layer import Layer, biases_of
from tinyflash.flash.predictor import read_predictors
from tinyflash.flash.reading.read_queue import open_queue
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.store.directory import FFN, Store, resident_weights
from tinyflash.flash.store.verified import verify_once
from tinyflash.flash.streamed import Streamed
from tinyflash.flash.training.fatrelu import thresholds_of
from tinyflash.flash.windowed import Windowed
from tinyflash.transformer import no_tap
from tinyflash.weights import bytes_of

TOKENS = 256  # that the KV cache has room for until more are asked for


@dataclass
class FlashEngine:
    """A model whose feed-forwards stay on flash.

    weights   : dict name -> weight, all but the feed-forward matrices
    budget    : Budget; `reserve` changes it
    k         : tokens of the window, or None for as many as fit
    layers    : the feed-forwards that are allocated so far
    costs     : (tokens, TokenCounters) of each forward pass; clear it when you have read it
    """

    store: Store
    reader: FlashReader
    budget: Budget
    mode: str
    k: int | None
    dtype: np.dtype
    weights: dict
    predictors: list | None
    thresholds: list | None
    costs: list = field(default_factory=list)
    layers: list = field(default_factory=list)

    @property
    def feed_forwards(self):
        """One FlashFeedForward a layer, for `transformer.forward`; allocated when first asked."""
        for i in range(len(self.layers), self.store.config.layers):
            self.layers.append(self._feed_forward(i))
            if i > 0 and self.mode == "all":
                self.layers[i - 1].next = self.layers[i]
        return self.layers

    def _feed_forward(self, i) -> FlashFeedForward:
        """The feed-forward of layer i, within its share of the budget."""
        prefix = f"layers.{self.store.config.weight_layer(i)}.ffn"
        biases = {
            part: self.weights.get(f"{prefix}.{part}.bias") for part in ("up", "gate", "down")
        }
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
        shared = self.layers[0].cache if self.mode == "predictor" and self.layers else None
        return Windowed(layer, rows, self.mode, activity, self.k, shared)

    @property
    def kv_dtype(self):
        """Of the KV cache: float16, but float64 for proofs."""
        return np.dtype(np.float16) if self.dtype == np.float32 else self.dtype

    def reserve(self, tokens):
        """See that the KV cache of so many tokens fits the budget: the rows give way.

        raises: ValueError if the memory allowed is too little for that
        """
        if tokens > self.budget.tokens:
            self.budget = self._budget(self.budget.memory, tokens)
            self.layers = []

    def _budget(self, memory, tokens):
        return budget_for(
            self.store,
            memory,
            bytes_of(self.weights),
            self.mode,
            tokens=tokens,
            kv_number=self.kv_dtype.itemsize,
            predicted=self.store.manifest["predictor"]["layers"] if self.predictors else None,
        )

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

    def describe_memory(self):
        """One line: DRAM by component in percent of the model, beside the paper's OPT-6.7B."""
        whole = self.budget.resident + self.store.manifest["files"][FFN]["bytes"]
        shares = []
        for name, nbytes in self.components().items():
            paper = f" (the paper: {DRAM_SHARES[name]:g})" if name in DRAM_SHARES else ""
            shares.append(f"{name} {100 * nbytes / whole:.1f}{paper}")
        on_top = "" if self.budget.kv_inside else ", which comes on top,"
        return (
            f"DRAM in percent of the model: {', '.join(shares)}{on_top} of "
            f"{self.budget.tokens} tokens; allowed: {100 * self.budget.memory / whole:.1f}"
        )

    def begin(self, tap=None, undecided=0):
        """Before a forward pass: the layers show their tensors to `tap`; returns them.

        undecided : that many tokens are computed, and `keep` says afterwards which of them stay
        """
        for layer in self.feed_forwards:
            layer.tap = tap or no_tap
            layer.take_counters()
            layer.suppose(undecided)
        return self.feed_forwards

    def keep(self, path):
        """Of the undecided tokens those on `path` stay, see `Window.keep`."""
        for layer in self.feed_forwards:
            layer.keep(path)

    def end(self, tokens):
        """After a forward pass of so many tokens: add up what its layers spent."""
        spent = (layer.take_counters() for layer in self.feed_forwards)
        self.costs.append((tokens, sum(spent, TokenCounters())))

    def cost_per_token(self, passes, tokens=None):
        """What a token cost in the last `passes` passes: dict of numbers; empty for no passes.

        tokens : that these passes yielded in all, accepted drafts included; None: one each

        Bytes, reads, milliseconds and neurons of all layers together; `chunk_sizes` is a dict in
        it, from the size of a read in bytes to how many a token had. `held` and `window` are
        means over the passes, `window` over layers too.
        """
        costs = [cost for _, cost in self.costs[-passes:]] if passes else []
        if not costs:
            return {}
        total, n = sum(costs, TokenCounters()), tokens or len(costs)
        means = {field.name: getattr(total, field.name) for field in fields(TokenCounters)}
        sizes = sorted(means.pop("chunk_sizes").items())
        means = {name: value / n for name, value in means.items()}
        means["held"] = total.held / len(costs)
        means["window"] = total.window / len(costs) / self.store.config.layers
        return means | {"chunk_sizes": {size: count / n for size, count in sizes}}

    def describe(self):
        """One line: what stays in DRAM and what is read."""
        F, layers = self.store.config.ffn_width, self.feed_forwards
        if self.mode == "naive":
            return "naive: every neuron is read for every token"
        if self.mode == "hybrid":
            kept = len(layers[0].resident)
            return f"hybrid: {kept:,} of {F:,} neurons a layer kept, the others read each token"
        most, least = max(self.budget.rows), min(self.budget.rows)
        rows = f"{most:,}" if most == least else f"{least:,} to {most:,}"
        told = {
            "predicted": "who fires is told by a trained predictor",
            "resident": "who fires is told by a projection that is kept",
            "read": "who fires is told by a projection that is read",
        }[self.budget.activity]
        told = layers[0].exact_note or told
        if self.mode == "predictor":
            return f"predictor: nothing kept from token to token, {rows} of {F:,} rows; {told}"
        tokens = f"{self.k} tokens" if self.k else "tokens"
        fits = f" (about {self.budget.k} of them)" if self.budget.k and not self.k else ""
        return f"{self.mode}: the last {tokens}' neurons kept{fits}, in {rows} of {F:,} rows a " + (
            f"layer; {told}"
        )


def open_engine(store, *, memory=None, mode=None, k=None, tokens=TOKENS, dtype=np.float32):
    """Open a flash directory within a memory budget.

    memory : bytes or text, see budget.parse_memory; None for as much as the model has
    mode   : one of feed_forward.MODES; None for "all" where there are trained predictors, and
             "hybrid" where not
    k      : tokens of the window, at least 1; None for as many as fit
    tokens : that the KV cache must have room for
    raises : ValueError for another mode, a k below 1, too little memory, or a store that is not
             what was written (its digests are checked once)
    """
    if mode is not None and mode not in MODES:
        raise ValueError(f"A flash model runs in mode {', '.join(MODES)}, not {mode!r}.")
    if k is not None and k < 1:
        raise ValueError(f"A window is at least 1 token long, not {k}.")
    verify_once(store)
    predictors, thresholds = read_predictors(store, dtype), thresholds_of(store)
    mode = mode or ("all" if predictors else "hybrid")
    if mode == "predictor" and not predictors:
        raise ValueError(
            f"{store.path.name} has no trained predictors; tinyflash train predictor "
            f"{store.path.name} --text FILE makes them."
        )
    weights = resident_weights(store, dtype)
    neurons = store.config.weight_layers * store.config.ffn_width
    whole = bytes_of(weights) + neurons * store.row_bytes
    engine = FlashEngine(
        store,
        FlashReader(store.ffn_path, queue=open_queue()),
        None,
        mode,
        k,
        np.dtype(dtype),
        weights,
        predictors if mode in SPARSE_MODES else None,
        thresholds,
    )
    allowed = whole if memory is None else parse_memory(memory, whole)
    engine.budget = engine._budget(allowed, min(tokens, store.config.context))
    return engine
