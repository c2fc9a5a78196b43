"""The forward pass turned around: all sequences through one layer, then all through the next.

Token after token, a model that does not fit DRAM is read whole for every token. Here each weight is
read once, however long the text: DRAM holds the residual stream of all tokens and the matrices of
one layer. It gives no token a chance to follow from the one before, so it is for text that is
there already: to record what the layers do with it.
"""

import numpy as np

from tinyflash.checkpoint.mapped import let_go
from tinyflash.flash.neuron_rows import NeuronRows
from tinyflash.matrices.half import HalfMatrix
from tinyflash.places import places_of
from tinyflash.training.texts import LONGEST
from tinyflash.transformer import (
    block,
    dense_feed_forward,
    embed,
    no_tap,
    under_prefix,
)
from tinyflash.workers import blas_threads_for


def embedded_sequences(weights, config, sequences):
    """What enters layer 0: a list of (T, D), one for each sequence.

    weights   : the resident ones;  sequences : ints (T,) each, all beginning at position 0
    """
    sequences = [np.asarray(ids, dtype=np.int64) for ids in sequences]
    return [embed(weights, config, ids, places_of(config, len(ids)).positions) for ids in sequences]


def blas_threads(config):
    """BLAS held to one thread if even the largest product of a sequence is a small one."""
    return blas_threads_for(LONGEST * config.width * config.ffn_width)


def layer_weights(store, reader, weights, i, threshold=None):
    """The weights of layer i with its feed-forward read from flash and decoded: dict of our names.

    reader    : FlashReader of the store's ffn_path;  weights : the resident ones
    threshold : below which its activation is cut off, or None
    raises    : OSError or ValueError if flash cannot be read
    """
    prefix, D = f"layers.{store.config.weight_layer(i)}.", store.config.width
    layer = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
    rows = NeuronRows(store, i, reader, store.parts)
    stored = rows.empty(rows.F)
    rows.read_range(0, rows.F, stored)
    for place, part in enumerate(store.parts):
        matrix = stored[:, place * D : (place + 1) * D]  # (F, D)
        if stored.dtype != np.float32:
            matrix = HalfMatrix(matrix, rows.name).dense()
        layer[f"{prefix}ffn.{part}.weight"] = matrix.T if part == "down" else matrix
    if threshold is not None:
        layer[f"{prefix}ffn.threshold"] = np.array(threshold, dtype=np.float32)
    return layer


def run_block(layer, config, i, x, see=no_tap):
    """One sequence through layer i.

    layer   : what `layer_weights` gave;  x : (T, D)
    see     : tap (name, tensor), shown "ffn.in", what enters the feed-forward (T, D), and then its
              "ffn.pre", "ffn.gate", "ffn.act" and "ffn.out"
    returns : (T, D), what enters the next layer
    """
    names = under_prefix(layer, f"layers.{config.weight_layer(i)}.")

    def feed_forward(x):
        see("ffn.in", x)
        return dense_feed_forward(names, config, x, see)

    return block(layer, config, i, x, places_of(config, len(x)), no_tap, feed_forward)


def let_go_of(layer):
    """Give the pages of a layer's mapped weights back to the kernel: this pass needs them once."""
    for weight in layer.values():
        let_go(weight)
