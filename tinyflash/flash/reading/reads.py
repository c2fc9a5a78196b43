"""Which reads bring some pieces of a file: sorted, joined where their blocks touch, not too long.

Direct reads know only whole blocks of 4096 bytes, in the file and in DRAM. A read whose pieces are
such, and go to addresses that are such, may scatter them straight to where they belong. All others
bring the blocks around their pieces into a buffer, from where the pieces are copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tinyflash.flash.reading.direct_io import BLOCK

LARGEST_READ = 1 << 20  # bytes: longer reads are not faster, and cannot be shared out to threads


@dataclass(frozen=True)
class Reads:
    """Pieces of a file in ascending order, and the reads that bring them.

    Of n pieces:
    begins, ends : int (n,), piece i is the bytes [begins[i], ends[i]) of the file
    places       : int (n,), the byte of the destination where it belongs

    Of each read:
    lows, highs  : int (reads,), it brings the pieces from low to high - 1
    firsts, lasts: int (reads,), it reads the bytes [first, last) of the file, whole blocks
    straight     : bool (reads,), whether its pieces go to their places without a copy
    """

    begins: np.ndarray
    ends: np.ndarray
    places: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    firsts: np.ndarray
    lasts: np.ndarray
    straight: np.ndarray

    def __len__(self):
        return len(self.firsts)

    @property
    def nbytes(self):
        """Bytes of the blocks that each read asks for: int (reads,)."""
        return self.lasts - self.firsts

    @property
    def needed(self):
        """Bytes that each must bring; the rest may lie behind the end of the file: int (reads,)."""
        return self.ends[self.highs - 1] - self.firsts

    def only(self, chosen):
        """Some of the reads, by their numbers or a mask; the pieces stay as they are."""
        names = "lows", "highs", "firsts", "lasts", "straight"
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def plan(begins, ends, places, address):
    """Cut sorted pieces into Reads.

    begins, ends: int (n,), ascending, n ≥ 1;  places: int (n,), as in Reads
    address     : where in DRAM the destination begins
    """
    cuts = neighbors(begins, ends)
    lows, highs = cuts[:-1], cuts[1:]
    whole = (begins | ends | (address + places)) % BLOCK == 0  # (n,)
    return Reads(
        begins,
        ends,
        places,
        lows,
        highs,
        firsts=round_down(begins[lows]),
        lasts=round_up(ends[highs - 1]),
        straight=np.logical_and.reduceat(whole, lows),
    )


def neighbors(begins, ends):
    """Where to cut sorted pieces of a file into reads: pieces whose blocks touch share one.

    A run of touching blocks is cut after every LARGEST_READ bytes.

    begins, ends: int (n,), ascending
    returns     : int (reads + 1,): read i covers the pieces from cuts[i] to cuts[i + 1] - 1
    """
    firsts, lasts = round_down(begins), round_up(ends)
    index = np.arange(len(begins), dtype=np.int64)
    apart = np.ones(len(begins), dtype=bool)
    apart[1:] = firsts[1:] > lasts[:-1]
    run = np.maximum.accumulate(np.where(apart, index, 0))  # the first piece of one's run
    part = (firsts - firsts[run]) // LARGEST_READ
    apart[1:] |= part[1:] > part[:-1]
    return np.append(np.flatnonzero(apart), len(begins))


def edges(begin, end):
    """Where to cut one long run of bytes, [begin, end), so that threads can share it: int (n,)."""
    inner = range(round_down(begin) + LARGEST_READ, end, LARGEST_READ)
    return np.array([begin, *inner, end], dtype=np.int64)


def round_down(offsets):
    """The beginning of the block that holds a byte."""
    return offsets - offsets % BLOCK


def round_up(offsets):
    """The same, or the next block's beginning."""
    return offsets + -offsets % BLOCK
