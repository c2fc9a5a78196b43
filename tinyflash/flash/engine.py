"""Opens a flash directory as what the forward pass needs: weights, and a feed-forward a layer."""

from dataclasses import dataclass, field, fields

import numpy as np

from tinyflash.flash.budget import Budget, budget_for, parse_memory
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.feed_forward import MODES, FlashFeedForward
from tinyflash.flash.reader import FlashReader
from tinyflash.flash.store import Store, resident_weights
from tinyflash.flash.verified import verify_once
from tinyflash.transformer import no_tap
from tinyflash.weights import bytes_of


@dataclass
class FlashEngine:
    """A model whose feed-forwards stay on flash.

    weights       : dict name -> weight, all but the feed-forward matrices
    feed_forwards : one FlashFeedForward a layer, for `transformer.forward`
    costs         : (tokens, TokenCounters) of each forward pass; clear it when you have read it
    """

    store: Store
    budget: Budget
    mode: str
    k: int
    weights: dict
    feed_forwards: list
    costs: list = field(default_factory=list)

    @property
    def nbytes(self):
        """Bytes of weights kept in DRAM."""
        return self.budget.resident + sum(layer.nbytes for layer in self.feed_forwards)

    def begin(self, tap=None):
        """Before a forward pass: the layers show their tensors to `tap`; returns them."""
        for layer in self.feed_forwards:
            layer.tap = tap or no_tap
            layer.take_counters()
        return self.feed_forwards

    def end(self, tokens):
        """After a forward pass of so many tokens: add up what its layers spent."""
        spent = (layer.take_counters() for layer in self.feed_forwards)
        self.costs.append((tokens, sum(spent, TokenCounters())))

    def cost_per_token(self, tokens):
        """Means over the last `tokens` passes of one token: dict of numbers; empty for no tokens.

        Bytes, reads, milliseconds and neurons of all layers together; `chunk_sizes` is a dict in
        it, from the size of a read in bytes to how many a token had.
        """
        costs = [cost for _, cost in self.costs[-tokens:]] if tokens else []
        if not costs:
            return {}
        total, n = sum(costs, TokenCounters()), len(costs)
        means = {field.name: getattr(total, field.name) for field in fields(TokenCounters)}
        sizes = sorted(means.pop("chunk_sizes").items())
        means = {name: value / n for name, value in means.items()}
        return means | {"chunk_sizes": {size: count / n for size, count in sizes}}

    def describe(self):
        """One line: what stays in DRAM and what is read."""
        F, first = self.store.config.ffn_width, self.feed_forwards[0]
        if self.mode == "naive":
            return "naive: every neuron is read for every token"
        if self.mode == "hybrid":
            kept = len(first.resident)
            return f"hybrid: {kept:,} of {F:,} neurons a layer kept, the others read each token"
        line = f"window: the neurons of the last {self.k} tokens kept, in {self.budget.rows:,} of "
        if first.exact_note:
            return f"{line}{F:,} rows a layer; {first.exact_note}"
        told = "kept" if self.budget.activity == "resident" else "read"
        return f"{line}{F:,} rows a layer; who fires is told by a projection that is {told}"


def open_engine(store, *, memory=None, mode="hybrid", k=5, dtype=np.float32):
    """Open a flash directory within a memory budget.

    memory : bytes or text, see budget.parse_memory; None for as much as the model has
    mode   : "naive", "hybrid" or "window";  k : tokens of the window, at least 1
    raises : ValueError for another mode, a k below 1, too little memory, or a store that is not
             what was written (its digests are checked once)
    """
    if mode not in MODES:
        raise ValueError(f"A flash model runs in mode {', '.join(MODES)}, not {mode!r}.")
    if k < 1:
        raise ValueError(f"A window is at least 1 token long, not {k}.")
    verify_once(store)
    weights = resident_weights(store, dtype)
    resident = bytes_of(weights)
    whole = resident + store.config.layers * store.config.ffn_width * store.row_bytes
    allowed = whole if memory is None else parse_memory(memory, whole)
    budget = budget_for(store, allowed, resident, mode)
    reader = FlashReader(store.ffn_path)
    feed_forwards = [
        FlashFeedForward(
            store,
            i,
            reader,
            weights.get(f"layers.{i}.ffn.up.bias"),
            weights.get(f"layers.{i}.ffn.gate.bias"),
            weights.get(f"layers.{i}.ffn.down.bias"),
            rows=budget.rows,
            k=k,
            mode=mode,
            activity=budget.activity,
        )
        for i in range(store.config.layers)
    ]
    return FlashEngine(store, budget, mode, k, weights, feed_forwards)
