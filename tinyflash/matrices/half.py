"""HalfMatrix: 16-bit numbers, decoded tile by tile just before they are multiplied."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tinyflash.matrices.matrix import Matrix
from tinyflash.workers import WORKERS, OneBlasThread, pool, scratch

FLOAT16_SCALE = np.float32(2.0**112)  # between the exponents' biases: 127 and 15
TILE_BYTES = 4 << 20  # of decoded float32 a worker: stays in the last-level cache


class HalfMatrix(Matrix):
    """A matrix kept in 16 bits and decoded tile by tile, just before it is multiplied.

    NumPy has no product of half-precision matrices, and a float32 copy takes twice the DRAM.
    Here two workers each decode a few hundred rows into a buffer that stays in the processor's
    cache, and multiply it there by BLAS. Both formats decode bit for bit.

    float16  : s eeeee mmmmmmmmmm, moved into the places of a float32, with the exponent's bias
               mended by one product: 2^(127-15) = 2^112. Subnormal numbers come out right too.
               The product is made with x, which is small, instead of with every tile.
    bfloat16 : the upper half of a float32.

    >>> W = HalfMatrix(np.array([0x3F80, 0xC000], dtype=np.uint16).reshape(1, 2))  # 1 and -2
    >>> W, W.nbytes, W.dense().tolist()
    (<HalfMatrix 'matrix': bfloat16 (1, 2)>, 4, [[1.0, -2.0]])
    """

    def __init__(
        self, stored: np.ndarray, name: str = "matrix", dtype: DTypeLike = np.float32
    ) -> None:
        """Wrap 16-bit numbers without copying them.

        stored : (out, in), float16, or uint16 with the bits of bfloat16; may be memory-mapped
        name   : what to call it in messages
        dtype  : of `rows`, `dense` and `multiply`'s tiles: float32, or float64 for proofs
        raises : ValueError if it is neither; Inf or NaN are found at first use
        """
        if stored.dtype not in (np.float16, np.uint16) or stored.ndim != 2:
            raise ValueError(
                f"{name}: a HalfMatrix holds a 2-D array of float16, or of uint16 for bfloat16, "
                f"not a {stored.ndim}-D array of {stored.dtype}."
            )
        self.name = name
        self.format = "float16" if stored.dtype == np.float16 else "bfloat16"
        self.bits = stored.view(np.uint16)
        self.shape = stored.shape
        self.dtype = np.dtype(dtype)
        self.checked = False

    def __repr__(self):
        return f"<HalfMatrix {self.name!r}: {self.format} {self.shape}>"

    @property
    def nbytes(self) -> int:
        """Bytes that the numbers take, in DRAM or mapped."""
        return self.bits.nbytes

    def rows(self, ids: ArrayLike) -> np.ndarray:
        """The rows `ids`, decoded: (..., in)."""
        flat = self.bits[np.asarray(ids, dtype=np.int64).reshape(-1)]
        refuse_infinite(flat, self.format, self.name)
        return decode(flat, self.format).astype(self.dtype).reshape(*np.shape(ids), self.shape[1])

    def dense(self) -> np.ndarray:
        """The whole matrix decoded: (out, in)."""
        return self.rows(np.arange(self.shape[0], dtype=np.int64))

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """x Wᵀ, by two workers, tile by tile of rows.

        x : (..., in);  returns: (..., out), of x's dtype
        raises: ValueError that names the matrix if it holds Inf or NaN (looked for once), or if x
                is of whole numbers, which would round its tiles, or of another width
        """
        rows, columns = self.shape
        if x.dtype not in (np.float32, np.float64) or x.shape[-1] != columns:
            raise ValueError(
                f"{self.name} multiplies float32 or float64 of {columns} numbers a row, not an "
                f"array of {x.dtype} with shape {x.shape}."
            )
        flat = np.ascontiguousarray(x).reshape(-1, columns)  # (T, in)
        y = np.empty((flat.shape[0], rows), dtype=x.dtype)
        height = max(1, TILE_BYTES // (4 * columns))
        starts = range(0, rows, height)
        waiting = iter(starts)  # whichever worker is free takes the next tile
        flat, decode_tile = decoder_for(flat, self.format)

        def work(_):
            decoded = scratch("tile", (min(height, rows), columns), np.float32)
            for start in waiting:
                bits = self.bits[start : start + height]
                if not self.checked:
                    refuse_infinite(bits, self.format, self.name)
                tile = decode_tile(bits, self.format, out=decoded[: len(bits)])
                tile = tile.astype(x.dtype, copy=False)
                if len(flat) == 1:
                    np.dot(tile, flat[0], out=y[0, start : start + height])
                else:
                    y[:, start : start + height] = (tile @ flat.T).T

        if len(starts) == 1:
            work(0)
        else:
            with OneBlasThread():
                list(pool().map(work, range(WORKERS)))
        self.checked = True
        return y.reshape(*x.shape[:-1], rows)


def decode(bits: np.ndarray, format: str, out: np.ndarray | None = None) -> np.ndarray:
    """16-bit numbers as float32, exactly.

    bits : uint16, any shape; format: "float16" or "bfloat16"; Inf and NaN must not occur
    out  : float32 array of the same shape to fill, or None for a new one

    >>> decode(np.array([0x3F80, 0xC000], dtype=np.uint16), "bfloat16").tolist()
    [1.0, -2.0]
    >>> decode(np.array([0.1, 6e-8], dtype=np.float16).view(np.uint16), "float16").tolist()
    [0.0999755859375, 5.960464477539063e-08]
    """
    out = widen(bits, format, out)
    if format == "float16":
        out *= FLOAT16_SCALE
    return out


def widen(bits: np.ndarray, format: str, out: np.ndarray | None = None) -> np.ndarray:
    """16-bit numbers in the places of a float32: `decode` without the product by 2^112.

    bits, format, out: as for `decode`

    >>> bits = np.array([1, -2], dtype=np.float16).view(np.uint16)
    >>> (widen(bits, "float16") * FLOAT16_SCALE).tolist()
    [1.0, -2.0]
    """
    out = np.empty(bits.shape, dtype=np.float32) if out is None else out
    words = out.view(np.int32)
    if format == "float16":
        words[...] = bits.view(np.int16)  # widened with its sign: bits 15 … 31 are the sign's
        words <<= 13  # exponent and mantissa in place
        words &= np.int32(-0x70002000)  # 0x8fffe000: the sign bit, and no copies of it below
    else:
        words[...] = bits
        words <<= 16
    return out


def decoder_for(x: np.ndarray, format: str) -> tuple[np.ndarray, Callable[..., np.ndarray]]:
    """How to decode what x is multiplied by: x, and the function that makes the tiles.

    For float16 it is x that is multiplied by 2^112, exactly, and tiles are only widened: a quarter
    of the work less. An x beyond 2^15, which would overflow, is left, and tiles are decoded.

    >>> for largest in (1, 2**15):
    ...     scaled, decoder = decoder_for(np.array([largest], dtype=np.float32), "float16")
    ...     print(decoder.__name__, bool(scaled[0] > largest))
    widen True
    decode False
    """
    if format == "float16" and np.max(np.abs(x), initial=0) < 2**15:
        return x * FLOAT16_SCALE, widen
    return x, decode


def decode_plainly(bits: np.ndarray, format: str, out: np.ndarray | None = None) -> np.ndarray:
    """What `decode` does, said in NumPy's own words: for float16 a third of the speed.

    >>> every = np.arange(0x7C00, dtype=np.uint16)  # each finite float16 that is not negative
    >>> bool(np.all(decode_plainly(every, "float16") == decode(every, "float16")))
    True
    """
    out = np.empty(bits.shape, dtype=np.float32) if out is None else out
    if format == "float16":
        out[...] = bits.view(np.float16)
    else:
        out.view(np.uint32)[...] = bits.astype(np.uint32) << np.uint32(16)
    return out


def refuse_infinite(bits: np.ndarray, format: str, name: str) -> None:
    """Raise a ValueError that names the matrix if any 16-bit number is Inf or NaN.

    >>> refuse_infinite(np.array([0x7F80], dtype=np.uint16), "bfloat16", "layers.0.ffn.up.weight")
    Traceback (most recent call last):
        ...
    ValueError: layers.0.ffn.up.weight holds Inf or NaN in bfloat16, ...
    """
    exponent = 0x7C00 if format == "float16" else 0x7F80
    if bits.size and np.max(bits & np.uint16(0x7FFF)) >= exponent:
        raise ValueError(
            f"{name} holds Inf or NaN in {format}, so no result computed with it would mean "
            "anything; get another copy of the checkpoint, or one stored as bfloat16 or float32."
        )
