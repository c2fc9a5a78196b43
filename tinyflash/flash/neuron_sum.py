"""What some neurons of a feed-forward add to its output, from rows that stay undecoded in DRAM.

    y = Σ_j act(x · up_j + b_j) down_j
    gated:  Σ_j act(x · gate_j + c_j) (x · up_j + b_j) down_j

A sum does not mind the order of its terms, so the rows may lie in any order, and the neurons may
be taken in several portions.    (LLM in a flash, §3.3)

`sum_plainly` says it in six lines. `sum_of_neurons` decodes tile by tile: first the part that
tells who fires, then, of those neurons alone, the rest. Of the neurons that are predicted, often
less than half fire.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tinyflash import workers
from tinyflash.matrices import half
from tinyflash.matrices.half import FLOAT16_SCALE, decode_plainly, decoder_for, widen
from tinyflash.workers import OneBlasThread, pool, scratch

SHARED_ROWS = 64  # fewer are not worth a second worker


@dataclass(frozen=True)
class Rows:
    """Rows of n neurons in a matrix, undecoded, and what else their sum needs.

    matrix : (m, len(parts)·D)
    chosen : int (n,), which rows of it; or None for all of them as they lie, and n = m
    parts  : what a row holds, in order: of "up", "gate", "down"
    format : "float16", "bfloat16" or "float32"
    biases : dict part -> (n,), without the parts that have none
    known  : dict part -> (T, n), pre-activations (bias included) that need no row
    used   : bool (T, n), the neurons that each token uses, or None where a neuron that a token
             does not use gives it zero anyway
    """

    matrix: np.ndarray
    chosen: np.ndarray | None
    parts: tuple[str, ...]
    format: str
    biases: dict[str, np.ndarray]
    known: dict[str, np.ndarray]
    used: np.ndarray | None = None

    def __len__(self):
        return len(self.matrix if self.chosen is None else self.chosen)

    def together(self) -> Rows:
        """The same; where they follow one another in the matrix, nothing needs to be gathered."""
        if self.chosen is None or len(self.chosen) == 0:
            return self
        first, last = self.chosen[0], self.chosen[0] + len(self.chosen)
        if not np.array_equal(self.chosen, np.arange(first, last, dtype=np.int64)):
            return self
        return replace(self, matrix=self.matrix[first:last], chosen=None)

    def decoded(self, dtype) -> dict:
        """All parts of all rows: dict part -> (n, D)."""
        rows = self.matrix if self.chosen is None else self.matrix[self.chosen]
        if self.format != "float32":
            rows = decode_plainly(rows.view(np.uint16), self.format)
        parts = np.split(rows.astype(dtype), len(self.parts), axis=1)
        return dict(zip(self.parts, parts, strict=True))

    def part(self, name, some, decode, dtype):
        """One part of some rows, as numbers to multiply by; valid until this thread asks again.

        some   : which of the n: a slice, or int (h,)
        decode : `half.decode` or `half.widen`
        returns: (h, D) of dtype
        """
        place, parts = self.parts.index(name), len(self.parts)
        some = some if self.chosen is None else self.chosen[some]
        if isinstance(some, slice):
            taken = self.matrix[some].reshape(some.stop - some.start, parts, -1)[:, place]
        else:
            single = self.matrix.reshape(parts * len(self.matrix), -1)  # a part a row
            taken = scratch("rows", (len(some), single.shape[1]), self.matrix.dtype)
            np.take(single, parts * some + place, axis=0, out=taken, mode="clip")
        if self.format != "float32":
            tile = scratch("tile", taken.shape, np.float32)
            taken = decode(taken.view(np.uint16), self.format, out=tile)
        return taken.astype(dtype, copy=False)

    def pre(self, name, some, x, decode):
        """Pre-activations of some neurons: (T, h). x: (T, D), as `decoder_for` gave it."""
        if name in self.known:
            return self.known[name][:, some]
        part = self.part(name, some, decode, x.dtype)
        y = (part @ x.T).T  # for 2 to 16 rows twice as fast as x @ part.T
        return y + self.biases[name][some] if name in self.biases else y


def sum_plainly(x, rows: Rows, activate, gated: bool):
    """What `sum_of_neurons` computes: its specification. The same arguments; only y: (T, D)."""
    part = rows.decoded(x.dtype)
    pre = {p: x @ part[p].T + rows.biases.get(p, 0) for p in part if p != "down"} | rows.known
    act = activate(pre["gate"] if gated else pre["up"])
    act = act if rows.used is None else np.where(rows.used, act, 0)
    act = act * pre["up"] if gated else act
    return act @ part["down"]


def sum_of_neurons(x, rows: Rows, activate, gated: bool):
    """The feed-forward of some neurons only, each part decoded once, and only if it matters.

    x        : (T, D)
    activate : the activation, see `ops.activation`
    gated    : whether "gate" goes through it and multiplies "up"
    returns  : (T, D), of x's dtype; and how many (token, neuron) pairs fired: their activation
               (gated: of the gate) is not zero
    """
    n, D = len(rows), x.shape[1]
    height = max(1, half.TILE_BYTES // (4 * D))
    if n >= SHARED_ROWS:  # something to do for every worker
        height = min(height, -(-n // workers.WORKERS))
    tiles = [slice(start, min(n, start + height)) for start in range(0, n, height)]
    x, decode = decoder_for(x, rows.format)

    def work(tiles):
        return sum_of_tiles(x, decode, rows, tiles, activate, gated)

    if len(tiles) <= 1:
        return work(tiles)
    with OneBlasThread():
        shares = [tiles[w :: workers.WORKERS] for w in range(workers.WORKERS)]
        sums, fired = zip(*pool().map(work, shares), strict=True)
    return sum(sums), sum(fired)


def sum_of_tiles(x, decode, rows, tiles, activate, gated):
    """What one worker adds up. tiles: slices of the n rows; x, decode: as `decoder_for` gave them.

    returns: as sum_of_neurons
    """
    y, fired = np.zeros(x.shape, dtype=x.dtype), 0
    for some in tiles:
        act = activate(rows.pre("gate" if gated else "up", some, x, decode))  # (T, h)
        act = act if rows.used is None else np.where(rows.used[:, some], act, 0)
        fired += int(np.count_nonzero(act))
        awake = np.flatnonzero(act.any(axis=0))
        if len(awake) < act.shape[1]:  # the other parts of a neuron at rest add nothing
            act, some = act[:, awake], some.start + awake
        act = act * rows.pre("up", some, x, decode) if gated else act
        down = rows.part("down", some, decode, x.dtype)  # (h, D)
        if decode is widen:  # what the tile lacks, act gets
            act, again = decoder_for(act, rows.format)
            down = down if again is widen else down * FLOAT16_SCALE
        y += act @ down
    return y, fired
