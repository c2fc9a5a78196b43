"""The rows of one layer's neurons, fetched from flash by number.

Whatever the store's bundling, a row arrives in DRAM with its parts side by side: its row of up
(and of gate), its column of down, each D numbers. From a row-column store one read brings them;
from a plain one, or where `apart`, each part is a read of its own (LLM in a flash, §3.2). Parts
that are known otherwise are left out.
"""

import numpy as np

from tinyflash.flash.counters import ReadCounters
from tinyflash.flash.reading.direct_io import aligned_empty
from tinyflash.flash.store.bundles import regions_of
from tinyflash.matrices.half import refuse_infinite


class NeuronRows:
    """Some parts of every neuron of a layer, as rows that can be read.

    parts  : the parts fetched, in the order of the store's, as ("up", "down")
    width  : numbers in a row, len(parts)·D
    format : "float16", "bfloat16" or "float32";  dtype: what NumPy reads them as
    pieces : where the row of neuron 0 lies: for each piece (byte of the file, bytes from there to
             the same piece of neuron 1, bytes of the piece, byte of the row where it belongs)
    """

    def __init__(self, store, layer, reader, parts, apart=False):
        """The rows of `layer`; `reader` is a FlashReader of the store's ffn_path.

        apart: read part by part even what lies together, to see what bundling is good for
        """
        self.reader = reader
        self.apart = apart
        self.parts = tuple(parts)
        self.F, D = store.config.ffn_width, store.config.width
        self.width = len(self.parts) * D
        self.format = store.dtype
        self.dtype = np.dtype(store.numpy_dtype)
        self.name = f"layers.{layer}.ffn ({', '.join(self.parts)})"
        self.checked = np.zeros(self.F, dtype=bool)  # which rows were found finite

        self.pieces = []
        part_bytes = D * self.dtype.itemsize
        for region, of in regions_of(store.parts, store.bundling).items():
            base, stride = store.regions[layer][region], len(of) * part_bytes
            if of == self.parts and not apart:
                self.pieces.append((base, stride, stride, 0))
                continue
            for part in (part for part in of if part in self.parts):
                first = base + of.index(part) * part_bytes
                self.pieces.append((first, stride, part_bytes, self.parts.index(part) * part_bytes))

    @property
    def row_bytes(self):
        """Bytes of one row."""
        return self.width * self.dtype.itemsize

    def empty(self, n):
        """Room for n rows, as the reader likes it: (n, width) of the store's dtype."""
        return aligned_empty((n, self.width), self.dtype)

    def read(self, neurons, out):
        """Fetch the rows of some neurons.

        neurons : int (n,), distinct
        out     : (n, width) C-contiguous, filled in the order of `neurons`
        returns : ReadCounters of it
        raises  : OSError or ValueError if they cannot be read, or hold Inf or NaN
        """
        begins = [base + neurons * stride for base, stride, _, _ in self.pieces]
        ends = [first + piece[2] for first, piece in zip(begins, self.pieces, strict=True)]
        rows = self.row_bytes * np.arange(len(neurons), dtype=np.int64)
        places = [rows + place for _, _, _, place in self.pieces]
        calls = list(zip(begins, ends, places, strict=True))
        if not self.apart:  # in one call the reader joins what touches
            calls = [tuple(map(np.concatenate, (begins, ends, places)))]
        counted = (self.reader.read_extents(*extents, out.view(np.uint8)) for extents in calls)
        counted = sum(counted, ReadCounters())
        self._refuse_infinite(neurons, out)
        return counted

    def read_range(self, first, last, out):
        """Fetch the rows of neurons first … last - 1, which is quicker where they lie in one block.

        out : (last - first, width) C-contiguous;  returns, raises: as read
        """
        neurons = np.arange(first, last, dtype=np.int64)
        base, stride, _, _ = self.pieces[0]
        if stride != self.row_bytes:  # other parts lie between the rows, or ours lie apart
            return self.read(neurons, out)
        place = base + first * stride
        counted = self.reader.read_block(place, out.nbytes, out.view(np.uint8))
        self._refuse_infinite(neurons, out)
        return counted

    def _refuse_infinite(self, neurons, rows):
        """Look for Inf and NaN in 16-bit rows that are seen for the first time."""
        if self.format != "float32" and not self.checked[neurons].all():
            refuse_infinite(rows.view(np.uint16), self.format, self.name)
            self.checked[neurons] = True


def ranges(first, last, height):
    """[first, last) in pieces of at most `height`: yields (first, last) of each."""
    for start in range(first, last, max(1, height)):
        yield start, min(start + height, last)
