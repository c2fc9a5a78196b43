"""What some neurons of a feed-forward add to its output, from rows that stay undecoded in DRAM.

First comes the part that tells who fires, then, of those neurons alone, the rest: of the neurons
that are predicted, often less than half fire.
"""

import numpy as np

from tinyflash.matrices import half as matrices
from tinyflash.matrices.half import FLOAT16_SCALE, decoder_for, widen
from tinyflash.ops import activation

SHARED_ROWS = 64  # fewer are not worth a second worker


def sum_of_neurons(
    x, matrix, rows, parts, format, config, biases, known, threshold=None, used=None, spent=None
):
    """The feed-forward of some neurons only, each part decoded once, and only if it matters.

    y = Σ_j act(x · up_j + b_j) down_j
    gated:  Σ_j act(x · gate_j + c_j) (x · up_j + b_j) down_j

    A sum does not mind the order of its terms, so the rows may lie in any order, and the neurons
    may be taken in several portions.    (LLM in a flash, §3.3)

    x         : (T, D)
    matrix    : (·, len(parts)·D) undecoded
    rows      : int (n,), which rows of it to take; or None for all, n of them, as they lie
    parts     : what a row holds, in order: of "up", "gate", "down"
    format    : "float16", "bfloat16" or "float32"
    config    : ModelConfig, for `activation` and `gated`
    biases    : dict part -> (n,), for the rows; without the parts that have none
    known     : dict part -> (T, n), pre-activations (bias included) that need no row
    threshold : below which activations are cut off (`ops.fatrelu`), or None for nowhere
    used      : bool (T, n), the neurons that each token uses, or None where a neuron that a token
                does not use gives it zero anyway
    spent     : TokenCounters or None; its `fired` grows by the (token, neuron) pairs whose
                activation (gated: of the gate) is not zero
    returns   : (T, D), of x's dtype
    """
    T, D = x.shape
    n = len(matrix if rows is None else rows)
    activate = activation(config.activation, threshold)
    height = max(1, matrices.TILE_BYTES // (4 * D))
    if n >= SHARED_ROWS:  # something to do for every worker
        height = min(height, -(-n // matrices.WORKERS))
    starts = range(0, n, height)
    x, decode = decoder_for(x, format)

    def work(starts):
        y, fired = np.zeros((T, D), dtype=x.dtype), 0
        for start in starts:
            some = slice(start, min(n, start + height))
            chosen = some if rows is None else rows[some]

            def part(name, chosen):  # (h, D)
                place = parts.index(name)
                return decoded_part(matrix, chosen, place, len(parts), format, decode, x.dtype)

            def pre(name, chosen, some):  # (T, h)
                if name in known:
                    return known[name][:, some]
                y = (part(name, chosen) @ x.T).T  # for 2 to 16 rows twice as fast as x @ part.T
                return y + biases[name][some] if name in biases else y

            act = activate(pre("gate" if config.gated else "up", chosen, some))
            act = act if used is None else np.where(used[:, some], act, 0)
            fired += np.count_nonzero(act)
            awake = np.flatnonzero(act.any(axis=0))
            if len(awake) < act.shape[1]:  # the other parts of a neuron at rest add nothing
                act, some = act[:, awake], start + awake
                chosen = some if rows is None else rows[some]
            act = act * pre("up", chosen, some) if config.gated else act
            down = part("down", chosen)
            if decode is widen:  # what the tile lacks, act gets
                act, again = decoder_for(act, format)
                down = down if again is widen else down * FLOAT16_SCALE
            y += act @ down
        return y, fired

    if len(starts) <= 1:
        sums = [work(starts)]
    else:
        workers = matrices.WORKERS
        with matrices.OneBlasThread():
            shares = [starts[w::workers] for w in range(workers)]
            sums = list(matrices.pool().map(work, shares))
    if spent is not None:
        spent.fired += int(sum(fired for _, fired in sums))
    return sum(y for y, _ in sums)


def decoded_part(matrix, chosen, place, parts, format, decode, dtype):
    """One part of some rows, as numbers to multiply by; valid until this thread asks again.

    matrix : (·, parts·D) undecoded;  chosen : a slice, or int (h,);  place : 0 … parts - 1
    returns: (h, D) of dtype
    """
    if isinstance(chosen, slice):
        taken = matrix[chosen].reshape(chosen.stop - chosen.start, parts, -1)[:, place]
    else:
        single = matrix.reshape(parts * len(matrix), -1)  # a part a row
        taken = matrices.scratch("rows", (len(chosen), single.shape[1]), matrix.dtype)
        np.take(single, parts * chosen + place, axis=0, out=taken, mode="clip")
    if format != "float32":
        tile = matrices.scratch("tile", taken.shape, np.float32)
        taken = decode(taken.view(np.uint16), format, out=tile)
    return taken.astype(dtype, copy=False)
