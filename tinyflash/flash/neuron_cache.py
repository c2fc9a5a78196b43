"""The neurons of one layer that DRAM holds: a matrix whose rows are given away and taken back.

    row     matrix (rows, parts·D)              pointer   bias
    0       up row 17 | down column 17              17     b₁₇
    1       up row  4 | down column  4               4     b₄      num_used = 3
    2       up row 93 | down column 93              93     b₉₃
    3       free                                    -1
    4       free                                    -1

The order of the rows means nothing, because a feed-forward is a sum over its neurons. So a
neuron that is no longer wanted is overwritten by one from the end, and a new one is put at the
end: the matrix is allocated once, and only c rows are copied for c deletions.
(LLM in a flash, §3.3)
"""

import numpy as np

from tinyflash.flash.reading.direct_io import aligned_empty
from tinyflash.turns import Turn


class NeuronCache:
    """Rows of neurons in a matrix that is allocated once.

    matrix   : (rows, width), undecoded, as in the file; rows num_used … are free
    pointer  : int (rows,), which neuron a row holds, -1 where it is free
    bias     : (rows,), of the up projection, 0 where the row is free
    num_used : rows in use; these are the first
    row_of   : int (F,), the inverse of pointer: which row holds a neuron, -1 for none
    turn     : held by a thread that reads into the rows while another computes (read_ahead.py)
    epoch    : how often it was cleared
    """

    def __init__(self, rows, width, F, dtype, bias_dtype=np.float32):
        """Allocate `rows` rows of `width` numbers for a layer of F neurons.

        dtype  : of the file: float16, uint16 with the bits of bfloat16, or float32
        raises : ValueError if there is not at least one row
        """
        if rows < 1:
            raise ValueError(f"A neuron cache needs at least 1 row, not {rows}.")
        self.matrix = aligned_empty((rows, width), dtype)
        self.pointer = np.empty(rows, dtype=np.int64)
        self.bias = np.empty(rows, dtype=bias_dtype)
        self.row_of = np.empty(F, dtype=np.int64)
        self.turn = Turn("This cache")
        self.epoch = 0
        self.clear()

    def clear(self):
        """Hold no neuron. It waits first for what another thread reads into the rows."""
        self.epoch += 1
        with self.turn:
            pass
        self.pointer[:] = -1
        self.bias[:] = 0
        self.row_of[:] = -1
        self.num_used = 0

    @property
    def neurons(self):
        """The neurons held, in the order of their rows: int (num_used,)."""
        return self.pointer[: self.num_used]

    @property
    def free(self):
        """The free rows of the matrix, a view: where a reader may put what it reads."""
        return self.matrix[self.num_used :]

    def find(self, neurons):
        """The row of each neuron, -1 for those that are not held: int (n,)."""
        return self.row_of[neurons]

    def drop(self, stale):
        """Delete neurons: the rows at the end move into the holes that these leave.

        stale  : int (c,), distinct neurons that are held
        raises : ValueError if one is not held
        """
        holes = self.find(stale)
        if np.any(holes < 0):
            raise ValueError(f"Neuron {stale[holes < 0][0]} is not in the cache, so it cannot go.")
        left = self.num_used - len(stale)
        end = np.arange(left, self.num_used, dtype=np.int64)
        movers = end[~np.isin(end, holes)]  # rows beyond the new end that must stay
        holes = holes[holes < left]  # as many

        self.matrix[holes] = self.matrix[movers]
        self.bias[holes] = self.bias[movers]
        self.pointer[holes] = self.pointer[movers]
        self.row_of[stale] = -1
        self.row_of[self.pointer[holes]] = holes
        self.pointer[left : self.num_used] = -1
        self.bias[left : self.num_used] = 0
        self.num_used = left

    def append(self, neurons, rows, bias=None):
        """Put neurons into the next free rows.

        neurons : int (n,), distinct, none of them held
        rows    : (n, width) undecoded; may be `free[:n]` itself, filled beforehand, and then
                  nothing is copied
        bias    : (n,), or None for a layer without
        raises  : ValueError if they do not fit, or one is held already; never drops a neuron
        """
        first, last = self.num_used, self.num_used + len(neurons)
        if last > len(self.matrix):
            raise ValueError(
                f"{len(neurons)} neurons do not fit the {len(self.free)} free rows of "
                f"{len(self.matrix)}; drop some first, or take fewer at a time."
            )
        if np.any(self.find(neurons) >= 0):
            raise ValueError("A neuron that is to be appended is in the cache already.")
        self.matrix[first:last] = rows
        self.bias[first:last] = 0 if bias is None else bias
        self.pointer[first:last] = neurons
        self.row_of[neurons] = np.arange(first, last, dtype=np.int64)
        self.num_used = last


class NaiveNeuronCache:
    """What NeuronCache saves us from: every change allocates the matrix anew and copies it all.

    The same attributes and methods, for comparison; `benchmarks/neuron_cache.py` measures both.
    """

    def __init__(self, rows, width, F, dtype, bias_dtype=np.float32):
        """An empty matrix that may grow to `rows` rows of `width` numbers."""
        self.rows, self.F = rows, F
        self.matrix = np.empty((0, width), dtype=dtype)
        self.pointer = np.empty(0, dtype=np.int64)
        self.bias = np.empty(0, dtype=bias_dtype)

    @property
    def num_used(self):
        """Rows in use: all that there are."""
        return len(self.matrix)

    @property
    def neurons(self):
        """The neurons held, in the order of their rows."""
        return self.pointer

    def find(self, neurons):
        """The row of each neuron, -1 for those that are not held."""
        row_of = np.full(self.F, -1, dtype=np.int64)
        row_of[self.pointer] = np.arange(self.num_used, dtype=np.int64)
        return row_of[neurons]

    def drop(self, stale):
        """Delete neurons: copy the others into a smaller matrix."""
        stay = ~np.isin(self.pointer, stale)
        self.matrix, self.bias = self.matrix[stay], self.bias[stay]
        self.pointer = self.pointer[stay]

    def append(self, neurons, rows, bias=None):
        """Add neurons: copy everything into a larger matrix; ValueError if it is too large."""
        if self.num_used + len(neurons) > self.rows:
            raise ValueError(f"{self.rows} rows do not hold {len(neurons)} neurons more.")
        if bias is None:
            bias = np.zeros(len(neurons), dtype=self.bias.dtype)
        self.matrix = np.concatenate((self.matrix, rows))
        self.bias = np.concatenate((self.bias, bias.astype(self.bias.dtype)))
        self.pointer = np.concatenate((self.pointer, neurons))
