"""What a threshold costs and saves: sparsity -> perplexity -> bytes read for a token.

    python -m benchmarks.fatrelu [MODEL] [--json] [--plot FILE]

For each sparsity, thresholds are calibrated on one part of a text and the model is judged on
another. The bytes follow from which neurons fire there, counted as a window with exact activity
reads them: each neuron that fires and did not for the last k tokens, without the projection that
tells, which stays in DRAM. All sparsities pass through a layer together, so the model is read
once, however large it is. `counted_by_engine` reads for real, and must come to the same.
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinyflash import terminal
from tinyflash.bench.disk_profile import figure_class, is_plot, save_figure
from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.checkpoint.sources import embedded, find_model
from tinyflash.files import read_text, refuse_foreign, write_whole
from tinyflash.flash.engine import open_engine
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.store.cached import open_or_convert
from tinyflash.flash.store.directory import resident_weights
from tinyflash.flash.training.fatrelu import layer_threshold, with_threshold
from tinyflash.flash.training.layer_by_layer import (
    embedded_sequences,
    layer_weights,
    let_go_of,
    run_block,
)
from tinyflash.kv_cache import KVCache
from tinyflash.ops import activation, log_softmax
from tinyflash.tokenizer import tokenizer_of
from tinyflash.transformer import forward, unembed

SPARSITIES = (0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
WINDOWS = (1, 5)  # tokens
SEQUENCE = 512  # tokens that are read as one text
CALIBRATION = 2  # sequences, from the end of the text
EVALUATION = 4  # sequences, from its beginning
FIRST = 16  # token of a sequence from which neurons are counted: the window is full by then


def measure(store, calibration, evaluation, sparsities=SPARSITIES, progress=None):
    """Thresholds, perplexity, activity and bytes for each sparsity.

    store       : Store
    calibration : ints (T,) each;  evaluation: ints (T,) each, T above FIRST
    sparsities  : shares of neurons at rest; 0 for the model as it is
    progress    : function (done, total), or None
    returns     : a list of dicts: sparsity, thresholds (L floats or None), perplexity, active and
                  held_5 (shares of all neurons), and bytes a token: dense_bytes, without_bytes,
                  window_1_bytes, window_5_bytes
    """
    config, weights = store.config, resident_weights(store)
    runs = [Run(store, sparsity, weights, calibration, evaluation) for sparsity in sparsities]
    reader = FlashReader(store.ffn_path)
    try:
        for i in range(config.layers):
            layer = layer_weights(store, reader, weights, i)
            for n, run in enumerate(runs, start=1):
                run.pass_layer(layer, i)
                if progress:
                    progress(i * len(runs) + n, config.layers * len(runs))
            let_go_of(layer)
    finally:
        reader.close()
    return [run.result(weights, evaluation) for run in runs]


class Run:
    """One sparsity on its way through the layers."""

    def __init__(self, store, sparsity, weights, calibration, evaluation):
        """Everything before layer 0; see measure."""
        self.store, self.config, self.sparsity = store, store.config, sparsity
        self.calibration = embedded_sequences(weights, self.config, calibration)
        self.evaluation = embedded_sequences(weights, self.config, evaluation)
        self.thresholds = []
        self.counts = {"fired": 0, "held_5": 0, **{f"read_{k}": 0 for k in WINDOWS}}
        self.tokens = sum(len(ids) - FIRST for ids in evaluation)

    def pass_layer(self, layer, i):
        """Calibrate layer i, pass through it, and count who fires."""
        config, threshold = self.config, None
        if self.sparsity:
            threshold = layer_threshold(layer, config, i, self.calibration, self.sparsity)
            layer = with_threshold(layer, i, threshold)
            self.thresholds.append(threshold)
            self.calibration = [run_block(layer, config, i, x) for x in self.calibration]
        activate = activation(config.activation, threshold)

        def see(name, tensor):
            if name == ("ffn.gate" if config.gated else "ffn.pre"):
                active = activate(tensor) != 0  # (T, F)
                self.counts["fired"] += np.count_nonzero(active[FIRST:])
                self.counts["held_5"] += int(held_by_token(active, 5)[FIRST:].sum())
                for k in WINDOWS:
                    self.counts[f"read_{k}"] += int(read_by_token(active, k)[FIRST:].sum())

        self.evaluation = [run_block(layer, config, i, x, see) for x in self.evaluation]

    def result(self, weights, evaluation):
        """What `measure` returns for this sparsity."""
        L, F = self.config.layers, self.config.ffn_width
        losses = [
            losses_of(unembed(weights, self.config, x), ids)
            for x, ids in zip(self.evaluation, evaluation, strict=True)
        ]
        per_token = {name: count / self.tokens for name, count in self.counts.items()}
        row_bytes = self.store.row_bytes
        fetched = row_bytes - row_bytes // len(self.store.parts)  # the telling part is in DRAM
        return {
            "sparsity": self.sparsity,
            "thresholds": self.thresholds or None,
            "perplexity": math.exp(np.mean(np.concatenate(losses))),
            "active": per_token["fired"] / (L * F),
            "held_5": per_token["held_5"] / (L * F),
            "dense_bytes": L * F * row_bytes,
            "without_bytes": per_token["fired"] * fetched,
            **{f"window_{k}_bytes": per_token[f"read_{k}"] * fetched for k in WINDOWS},
        }


def losses_of(logits, ids):
    """Negative log-likelihood of each token but the first. logits: (T, V); returns (T - 1,)."""
    log_p = log_softmax(logits[:-1].astype(np.float64))
    return -np.take_along_axis(log_p, np.asarray(ids[1:], dtype=np.int64)[:, None], axis=-1)[:, 0]


def held_by_token(active, k):
    """Neurons that the last k tokens used, each token among its own: int (T,).

    |A_t ∪ … ∪ A_{t-k+1}|, whose mean over F is s_agg(k)      (LLM in a flash, §3.1)

    active: bool (T, F)
    """
    return np.count_nonzero(uses_before(active, k)[1:], axis=1)


def read_by_token(active, k):
    """Neurons that each token reads, if those of the k tokens before it are still there: int (T,).

    |A_t − (A_{t-1} ∪ … ∪ A_{t-k})|      (LLM in a flash, §3.1)

    active: bool (T, F)
    """
    return np.count_nonzero(active & (uses_before(active, k)[:-1] == 0), axis=1)


def uses_before(active, k):
    """How many of the tokens t-k … t-1 used each neuron: int (T + 1, F), for t from 0 to T."""
    T, F = active.shape
    uses = np.zeros((T + k + 1, F), dtype=np.int32)  # place t + k: of all tokens before t
    np.cumsum(active, axis=0, out=uses[k + 1 :])
    return uses[k:] - uses[: T + 1]


def counted_by_engine(store, thresholds, ids, k):
    """Bytes that a flash engine in mode window asks for, token after token: float (T,).

    store: Store, whose own thresholds are not looked at;  ids: int (T,);  k: tokens
    """
    store = replace(store, manifest=store.manifest | {"thresholds": thresholds, "predictor": None})
    engine = open_engine(store, memory="300%", mode="window", k=k, tokens=len(ids))
    cache, wanted = KVCache(store.config), []
    for id in ids:
        layers = engine.begin()
        one = np.array([id], dtype=np.int64)
        forward(engine.weights, store.config, one, cache, feed_forwards=layers)
        engine.end()
        wanted.append(engine.last_cost.bytes_wanted)
    return np.array(wanted, dtype=np.float64)


def sequences_of(ids, begin, sequences):
    """The first tokens of a text as sequences, each with those that begin a text in front."""
    width = SEQUENCE - len(begin)
    pieces = [begin + ids[n * width : (n + 1) * width] for n in range(sequences)]
    return [np.array(ids, dtype=np.int64) for ids in pieces if len(ids) > 2 * FIRST]


def texts_of(store, text):
    """(calibration, evaluation): sequences of token ids from the end and beginning of a text.

    raises: ValueError if the model has no tokenizer, or the text is too short for both
    """
    tokenizer = tokenizer_of(Checkpoint(store.path, store.hf_config, {}))
    if tokenizer is None:
        raise ValueError(f"{store.path} has no tokenizer to read the text with; put it there.")
    begin = tokenizer.encode("")
    ids = tokenizer.encode(text)[len(begin) :]
    needed = (CALIBRATION + EVALUATION) * SEQUENCE
    if len(ids) < needed:
        raise ValueError(f"The text has {len(ids):,} tokens and {needed:,} are needed.")
    end = ids[-CALIBRATION * SEQUENCE :]
    return sequences_of(end, begin, CALIBRATION), sequences_of(ids, begin, EVALUATION)


def draw(results, model):
    """Perplexity and megabytes a token over sparsity, one above the other."""
    figure = figure_class()(figsize=(6, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    sparsities = [100 * (1 - r["active"]) for r in results]
    above.plot(sparsities, [r["perplexity"] for r in results], "o-")
    above.set(yscale="log", ylabel="perplexity", title=model)
    below.plot(sparsities, [r["without_bytes"] / 1e6 for r in results], "o-", label="no window")
    for k in WINDOWS:
        line = [r[f"window_{k}_bytes"] / 1e6 for r in results]
        below.plot(sparsities, line, "o-", label=f"window of {k}")
    below.axhline(results[0]["dense_bytes"] / 1e6, color="gray", linestyle=":", label="dense")
    below.set(xlabel="neurons at rest, %", ylabel="MB read for a token", ylim=(0, None))
    below.legend()
    for axis in (above, below):
        axis.grid(alpha=0.4)
    return figure


def print_table(results, model):
    """Everything measured, a row for each sparsity."""
    header = ("sparsity", "thresholds", "perplexity", "active", "s_agg(5)", "MB dense")
    header += ("no window", *(f"k = {k}" for k in WINDOWS))
    names = ("dense_bytes", "without_bytes", *(f"window_{k}_bytes" for k in WINDOWS))
    rows = []
    for r in results:
        T = r["thresholds"]
        rows.append(
            (f"{r['sparsity']:.0%}", f"{min(T):.3g} to {max(T):.3g}" if T else "none")
            + (f"{r['perplexity']:,.4g}", f"{r['active']:.1%}", f"{r['held_5']:.1%}")
            + tuple(f"{r[name] / 1e6:,.3g}" for name in names)
        )
    tokens = EVALUATION * SEQUENCE
    terminal.table(f"{model}: FATReLU over {tokens} tokens; MB read for one", header, rows)


def main():
    """Print the table or JSON, and draw the figure; exit status 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--text", help="a UTF-8 file; without it data/heldout.txt")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE", help="a figure, as .png or .svg")
    arguments = parser.parse_args()
    try:
        text = Path(arguments.text or embedded("tiny-opt").parent / "heldout.txt")
        store = open_or_convert(find_model(arguments.model), arguments.model)
        texts = texts_of(store, read_text(text))
        with terminal.progress("Thresholds", "layers") as report:
            results = measure(store, *texts, progress=report)
        if arguments.plot:
            figure = draw(results, arguments.model)
            kind = Path(arguments.plot).suffix.removeprefix(".") or "png"
            refuse_foreign(arguments.plot, is_plot, "a plot")
            if kind == "png":
                save_figure(figure, arguments.plot)
            else:
                write_whole(arguments.plot, lambda file: figure.savefig(file, format=kind))
    except (ValueError, OSError) as error:
        terminal.note(str(error))
        sys.exit(2)
    if arguments.json:
        print(json.dumps(results))
    else:
        print_table(results, arguments.model)


if __name__ == "__main__":
    main()
