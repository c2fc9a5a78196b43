"""Thresholds that make more neurons rest: FATReLU, calibrated to a wanted sparsity.

    a  ->  a if |a| ≥ T, else 0            (`ops.fatrelu`)

After a ReLU that is x if x ≥ T, else 0, as in LLM in a flash. After SiLU or GELU the magnitude
counts: most of what they let through is below zero, and a model that was trained with it is lost
without it (`benchmarks/fatrelu.py` measures the perplexity).

A neuron whose activation a = act(gate), without a gate act(up), does not reach its layer's T adds
nothing, so its row need not be read. T is the quantile of |a| over a text: with a sparsity of 0.9,
nine in ten activations lie below. A flash directory keeps one T a layer in flash.json; a dense
model has it among its weights as `layers.{i}.ffn.threshold`.

The text passes through one layer after the other, each with the thresholds of those before it, so
that the model fits DRAM however large it is and the sparsity is the one that will be.
"""

import numpy as np

from tinyflash.checkpoint.mapped import files_behind, refuse_changed
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.store.directory import resident_weights
from tinyflash.flash.store.thresholds import checked
from tinyflash.flash.training.layer_by_layer import (
    blas_threads,
    embedded_sequences,
    layer_weights,
    let_go_of,
    run_block,
)
from tinyflash.ops import ACTIVATIONS, linear
from tinyflash.places import places_of
from tinyflash.transformer import block, no_tap, under_prefix

DIGITS = 13  # binary ones of a magnitude that are told apart
BINS = 1 << (8 + DIGITS)  # 8 digits of the exponent before them


def calibrate(store, sequences, sparsity, progress=None):
    """Thresholds with which a share of all neurons rests on a text, layer by layer.

    Thresholds that the store has already are not looked at.

    store     : Store
    sequences : ints (T,) each, the text; DRAM holds (T, D) of each
    sparsity  : wanted share of (token, neuron) pairs at rest, between 0 and 1
    progress  : function (layers done, layers), or None
    returns   : list of L floats that float32 has; 0 in a layer that rests as often without
    raises    : ValueError for another sparsity, or no text; OSError if flash cannot be read
    """
    refuse_impossible(sparsity, sequences)
    config, weights = store.config, resident_weights(store)
    thresholds, stream = [], embedded_sequences(weights, config, sequences)
    with FlashReader(store.ffn_path) as reader, blas_threads(config):
        for i in range(config.layers):
            refuse_changed(files_behind(weights.values()))
            layer = layer_weights(store, reader, weights, i)
            thresholds.append(layer_threshold(layer, config, i, stream, sparsity))
            layer = with_threshold(layer, config.weight_layer(i), thresholds[-1])
            stream = [run_block(layer, config, i, x) for x in stream]
            let_go_of(layer)
            if progress:
                progress(i + 1, config.layers)
    return thresholds


def layer_threshold(layer, config, i, stream, sparsity):
    """The threshold below which a share of layer i's activations lies.

    layer  : dict of our names -> weights of the layer;  stream: (T, D) each, what enters it
    returns: float
    """
    names = under_prefix(layer, f"layers.{config.weight_layer(i)}.")
    counts = np.zeros(BINS, dtype=np.int64)
    part = "gate" if config.gated else "up"

    def only_look(x):
        nonlocal counts
        pre = linear(x, names(f"ffn.{part}.weight"), names(f"ffn.{part}.bias"))  # (T, F)
        counts = counts + histogram(ACTIVATIONS[config.activation](pre))
        return np.zeros_like(x)

    for x in stream:
        block(layer, config, i, x, places_of(config, len(x)), no_tap, only_look)
    return quantile(counts, sparsity)


def histogram(activations):
    """How many activations have which magnitude, cut to its first binary digits.

    Read as an integer, a float32 grows with the number that it stands for. Its upper bits make bins
    that are narrow (0.01 %) where numbers are small and where they are large, so nobody has to know
    their range beforehand.

    returns: int (BINS,)
    """
    bits = np.abs(activations).astype(np.float32).view(np.uint32) >> np.uint32(23 - DIGITS)
    return np.bincount(bits.reshape(-1), minlength=BINS)


def quantile(counts, share):
    """The number that a share of what a histogram counted lies below, nearest to it.

    counts : int (BINS,);  share: between 0 and 1
    returns: float; 0 if so many are zero already
    """
    below = np.cumsum(counts) - counts  # in the bins before
    wanted = share * np.sum(counts)
    if counts[0] >= wanted:
        return 0.0
    bin = np.argmin(np.abs(below - wanted))
    return float((np.uint32(bin) << np.uint32(23 - DIGITS)).view(np.float32))


def with_threshold(layer, i, threshold):
    """A layer's weights with its threshold among them."""
    return layer | {f"layers.{i}.ffn.threshold": np.array(threshold, dtype=np.float32)}


def with_thresholds(weights, thresholds):
    """A model's weights with thresholds among them, which its dense feed-forwards then apply.

    weights : dict name -> weight, as `Model.weights`;  thresholds : L numbers
    returns : a new dict
    raises  : ValueError if there is not one for each layer, or one is no threshold
    """
    layers = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    for i, threshold in enumerate(checked(thresholds, layers)):
        weights = with_threshold(weights, i, threshold)
    return weights


def refuse_impossible(sparsity, sequences):
    """A ValueError, one sentence, if no thresholds can come of this."""
    if not 0 < sparsity < 1:
        raise ValueError(
            "A sparsity is the share of neurons at rest, between 0 and 1 and neither of them, not "
            f"{sparsity}."
        )
    if not any(len(ids) for ids in sequences):
        raise ValueError("Thresholds are calibrated on a text, and this one has no token.")
