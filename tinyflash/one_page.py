"""LLM in a flash, the whole paper on one page: read it from top to bottom, then run it.

    python -m tinyflash.one_page

Two thirds of OPT-6.7B are feed-forwards, y = W_down relu(W_up x + b). Suppose that DRAM holds half
of the model, and flash the rest: reading the rest for every token takes a second. But behind a
ReLU nearly all numbers are zero, and what will be multiplied by zero need not be read. Cut the
feed-forward into *neurons*, of which number j has row j of W_up and column j of W_down:

    y = Σ_j relu(up_j · x + b_j) down_j

Only neurons with up_j · x + b_j > 0 count, 3 % of them in OPT-6.7B. The rest of the paper is five
steps: predict them, store each in one piece, keep those of the last tokens, move nothing in DRAM
without need, and count the cost. (Alizadeh et al., "LLM in a flash: Efficient Large Language Model
Inference with Limited Memory", arXiv 2312.11514.)

This page needs NumPy only, and imports nothing else of tinyflash: the engine is tested against it.
"""

import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np


def dense(x, up, b, down):
    """The feed-forward with all of its neurons. x (D,), up (F, D), b (F,), down (D, F)."""
    return down @ np.maximum(up @ x + b, 0)


# 1. Predict (§3.1). Which neurons will fire must be known before anything is read. The paper
# trains a small network of low rank for each layer, which stays in DRAM; it misses 5 % of those
# that fire, and names 7 % of the others for nothing. This page keeps W_up in DRAM instead, as an
# oracle that is always right: so its result must equal `dense`.


def active_neurons(x, up, b):
    """Numbers of the neurons that fire."""
    return np.flatnonzero(up @ x + b > 0)


# 2. Bundle (§3.2). Flash likes large pieces: before its first byte, each read waits for the same
# small eternity. Row j of W_up and column j of W_down are always wanted together. So they are
# stored together, and one read of twice the size replaces two.


class Flash:
    """A file of neurons, and the account of what was read from it."""

    def __init__(self, path, up, down, bundled):
        """Write 2·D numbers for each neuron, together if `bundled`, else first up, then downᵀ."""
        self.F, self.D = up.shape
        self.dtype, self.bundled = up.dtype, bundled
        np.concatenate((up, down.T), axis=1 if bundled else 0).tofile(path)
        self.file = open(path, "rb", buffering=0)
        self.cost = Counter()

    def read(self, neurons, rows):
        """Fill rows (n, 2·D) with neurons (n,): a read each if bundled, else two."""
        half = self.D * self.dtype.itemsize
        for j, row in zip(neurons.tolist(), rows, strict=True):
            if self.bundled:
                self.read_piece(2 * j * half, row)
            else:
                self.read_piece(j * half, row[: self.D])
                self.read_piece((self.F + j) * half, row[self.D :])

    def read_piece(self, offset, numbers):
        """Fill an array with the bytes at an offset: one read."""
        self.file.seek(offset)
        if self.file.readinto(numbers) != numbers.nbytes:
            raise OSError("The file of neurons ends too early; write it again.")
        self.cost += Counter(bytes=numbers.nbytes, reads=1)


class FlashLayer:
    """A feed-forward on flash, of which DRAM holds at most `rows` neurons at a time."""

    def __init__(self, flash, b, rows, k):
        """Allocate all that will ever be needed. b: (F,) biases of up; k: tokens in the window."""
        self.flash, self.b, self.k = flash, b, k
        self.matrix = np.empty((rows, 2 * flash.D), dtype=flash.dtype)  # up row | down column
        self.pointer = np.full(rows, -1, dtype=np.int64)  # which neuron a row holds
        self.bias = np.zeros(rows, dtype=b.dtype)  # and its bias
        self.num_used = 0  # rows in use; they are the first
        self.age = np.full(flash.F, 1 << 30, dtype=np.int64)  # tokens since a neuron fired
        self.cost = Counter()

    # 3. Keep a window (§3.1). Neighboring tokens fire nearly the same neurons. What the last k
    # tokens used stays, so a new token reads only what it adds. Memory is a ceiling and never an
    # excuse: where the window does not fit, it shrinks; and where the neurons of a single token
    # do not, they pass through the rows in slices.

    def __call__(self, x, active):
        """The feed-forward of one token, by the neurons in `active`. x (D,), returns (D,)."""
        rows = len(self.matrix)
        self.age += 1
        self.age[active] = 0
        k = self.k
        while k and np.count_nonzero(self.age < k) > rows:
            k -= 1
        portions = [active]
        if k == 0:  # first what is there, then slices; the last is a full one, because it stays
            here = np.isin(active, self.held)
            missing = active[~here]
            cuts = range(len(missing) % rows, len(missing), rows)
            portions = [active[here], *np.split(missing, cuts)]
        y = np.zeros_like(x)
        for neurons in portions:
            keep = self.age < k
            keep[neurons] = True
            self.fetch(neurons, keep)
            y += self.compute(x, neurons)
        self.cost["wanted"] += len(active)
        return y

    @property
    def held(self):
        """The neurons in DRAM, row by row."""
        return self.pointer[: self.num_used]

    # 4. Manage DRAM (§3.3). A sum does not mind in which order its terms stand. So a neuron that
    # must go is overwritten by one from the end, and a new one is put at the end. Nothing else
    # moves, and nothing is allocated again: c rows are copied for c deletions.

    def fetch(self, neurons, keep):
        """Delete what is not kept, and read what is missing. keep: bool (F,)."""
        began = time.perf_counter()
        stale = np.flatnonzero(~keep[self.held])  # row numbers
        left = self.num_used - len(stale)
        end = np.arange(left, self.num_used, dtype=np.int64)
        holes, movers = stale[stale < left], end[~np.isin(end, stale)]
        for column in (self.matrix, self.pointer, self.bias):
            column[holes] = column[movers]
        self.num_used = left
        missing = neurons[~np.isin(neurons, self.held)]
        new = slice(left, left + len(missing))
        self.pointer[new], self.bias[new] = missing, self.b[missing]
        managed = time.perf_counter()
        self.flash.read(missing, self.matrix[new])
        self.num_used = new.stop
        self.cost += Counter(loaded=len(missing), evicted=len(stale))
        self.cost["memory"] += managed - began
        self.cost["I/O"] += time.perf_counter() - managed

    def compute(self, x, neurons):
        """Σ relu(up_j · x + b_j) down_j, from the rows that hold the neurons."""
        began = time.perf_counter()
        row_of = np.empty(self.flash.F, dtype=np.int64)
        row_of[self.held] = np.arange(self.num_used, dtype=np.int64)
        rows = row_of[neurons]
        decoded = self.matrix[rows].astype(x.dtype)  # from float16, once for both products
        up, down = np.split(decoded, 2, axis=1)
        y = np.maximum(up @ x + self.bias[rows], 0) @ down
        self.cost["compute"] += time.perf_counter() - began
        return y


# 5. Count the cost (§3). latency = I/O + memory management + compute, and I/O is bytes over a
# throughput that grows with the size of a read. In the paper, OPT-6.7B at half memory reads
# 13.4 GB a token if naive, 0.9 predicted, 0.2 with a window; and bundles bring these at 2.25
# instead of 1.25 GB/s (Table 2). Here is the same ladder, for a layer that is made up.

LADDER = ("naive", "predict", "predict, window", "predict, window, bundle")


def made_up_layer(F, D, tokens):
    """A layer of which 4 % fire, and inputs that drift slowly, as those of a text do.

    returns: up (F, D), b (F,), down (D, F), all float32 (the matrices have float16's numbers);
             xs (tokens, D)
    """
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((2, F, D)).astype(np.float16).astype(np.float32) / 8
    b = np.full(F, -1.75 * D**0.5 / 8, dtype=np.float32)
    xs = [rng.standard_normal(D)]
    while len(xs) < tokens:
        xs.append(0.97 * xs[-1] + 0.24 * rng.standard_normal(D))
    return up, b, down.T, np.array(xs, dtype=np.float32)


def climb(step, path, up, b, down, xs, rows, k):
    """Compute all tokens on one step of the ladder; returns the costs and the largest error."""
    in_file = up.astype(np.float16), down.astype(np.float16)
    flash = Flash(path, *in_file, bundled="bundle" in step)
    layer = FlashLayer(flash, b, rows, k)
    errors = []
    for token, x in enumerate(xs):
        before = Counter(layer.cost)
        if step == "naive":  # everything, in one piece
            everything = np.empty((2, flash.F, flash.D), dtype=flash.dtype)
            flash.read_piece(0, everything)
            y = dense(x, everything[0].astype(x.dtype), b, everything[1].T.astype(x.dtype))
        else:
            if "window" not in step:
                layer.num_used = 0  # nothing is kept
            y = layer(x, active_neurons(x, up, b))
        expected = dense(x, up, b, down)
        errors.append(np.max(np.abs(y - expected)) / np.max(np.abs(expected)))
        if step == LADDER[-1] and token % 40 < 3:
            new = layer.cost - before
            moved = ", ".join(
                f"{new[what]:2.0f} {what}" for what in ("wanted", "loaded", "evicted")
            )
            print(f"token {token:3d}: {moved}; {layer.num_used:3d} of {rows} rows in use")
    flash.file.close()
    return flash.cost + layer.cost, max(errors)


def main(F=1024, D=64, tokens=120, rows=128, k=5):
    """Climb the ladder, and print what each step saves; returns the costs."""
    print(f"{F} neurons of {2 * D} numbers on flash, {rows} rows in DRAM, a window of {k} tokens\n")
    layer = made_up_layer(F, D, tokens)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "neurons"
        results = {step: climb(step, path, *layer, rows, k) for step in LADDER}
    print(f"\n{'':25}bytes/token  reads/token  bytes/read  largest error")
    for step, (cost, error) in results.items():
        size = cost["bytes"] / cost["reads"]
        each = f"{cost['bytes'] / tokens:11,.0f}{cost['reads'] / tokens:13.1f}{size:12,.0f}"
        print(f"{step:25}{each}{error:15.0e}")
    parts = (f"{part} {1000 * cost[part] / tokens:.3f}" for part in ("I/O", "memory", "compute"))
    print("\nmilliseconds a token, on the last step:", ", ".join(parts))
    return results


if __name__ == "__main__":
    main()
