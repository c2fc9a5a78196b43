"""HalfMatrix: every 16-bit number, bit for bit; products tile by tile; what must be refused."""

import math
from functools import cache

import numpy as np
import pytest

from tinyflash.matrices import half as matrices
from tinyflash.matrices.half import HalfMatrix, decode, decode_plainly, widen

ALL_BITS = np.arange(1 << 16, dtype=np.uint16)
MANTISSA = {"float16": 10, "bfloat16": 7}
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}
FORMATS = tuple(MANTISSA)


def finite_bits(format):
    return ALL_BITS[(ALL_BITS & 0x7FFF) < INFINITY[format]]


@cache
def value_of(bits, format):
    """What IEEE 754 says one 16-bit number is, as a Python float."""
    digits = MANTISSA[format]
    bias = (1 << (14 - digits)) - 1  # 15 and 127
    exponent = (bits & 0x7FFF) >> digits
    mantissa = bits & ((1 << digits) - 1)
    if exponent == 0:
        size = math.ldexp(mantissa, 1 - bias - digits)
    else:
        size = math.ldexp(mantissa + (1 << digits), exponent - bias - digits)
    return -size if bits >> 15 else size


def stored(values, format):
    """Numbers rounded to 16 bits, as a HalfMatrix takes them."""
    if format == "float16":
        return values.astype(np.float16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def random_matrix(format, shape, seed=0, dtype=np.float32):
    """A HalfMatrix and its numbers in float64, decoded one by one."""
    numbers = stored(np.random.default_rng(seed).standard_normal(shape), format)
    exact = [value_of(int(bits), format) for bits in numbers.view(np.uint16).reshape(-1)]
    plain = np.array(exact, dtype=np.float64).reshape(shape)
    return HalfMatrix(numbers, "some.weight", dtype), plain


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of three rows of 13 numbers, so that small matrices have several."""
    monkeypatch.setattr(matrices, "TILE_BYTES", 3 * 4 * 13)


@pytest.mark.parametrize("format", FORMATS)
def test_every_finite_number_decodes_bit_for_bit(format):
    bits = finite_bits(format)
    assert len(bits) == {"float16": 63488, "bfloat16": 65280}[format]
    exact = np.array([value_of(int(b), format) for b in bits], dtype=np.float32)
    for function in (decode, decode_plainly):
        decoded = function(bits, format)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded.view(np.uint32), exact.view(np.uint32))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("function", [decode, decode_plainly])
def test_decoding_into_a_buffer_fills_it_and_leaves_the_bits(format, function):
    bits = finite_bits(format)
    before = bits.copy()
    buffer = np.full(bits.shape, 7, dtype=np.float32)
    assert function(bits, format, out=buffer) is buffer
    np.testing.assert_array_equal(buffer.view(np.uint32), function(bits, format).view(np.uint32))
    np.testing.assert_array_equal(bits, before)


@pytest.mark.parametrize("format", FORMATS)
def test_a_matrix_of_all_numbers_is_dense_bit_for_bit(format):
    bits = finite_bits(format).reshape(-1, 128)
    matrix = HalfMatrix(bits.view(np.float16) if format == "float16" else bits)
    exact = decode_plainly(bits, format)
    np.testing.assert_array_equal(matrix.dense().view(np.uint32), exact.view(np.uint32))


@pytest.mark.parametrize("format", FORMATS)
def test_the_product_with_unit_vectors_is_the_matrix_bit_for_bit(format, small_tiles):
    bits = finite_bits(format)[: 256 * 64].reshape(256, 64)
    matrix = HalfMatrix(bits.view(np.float16) if format == "float16" else bits)
    columns = np.eye(64, dtype=np.float32)
    exact = decode_plainly(bits, format)
    np.testing.assert_array_equal(matrix.multiply(columns).T, exact)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 18, 31])
@pytest.mark.parametrize("leading", [(1,), (2,), (8,), (), (2, 3), (0,)])
def test_multiply_is_the_dense_product(format, rows, leading, small_tiles):
    matrix, plain = random_matrix(format, (rows, 13))
    x = np.random.default_rng(1).standard_normal((*leading, 13))
    exact = x @ plain.T

    y = matrix.multiply(x.astype(np.float32))
    assert y.dtype == np.float32 and y.shape == (*leading, rows)
    limit = 1e-6 * (np.abs(x) @ np.abs(plain).T)
    assert np.all(np.abs(y - exact) <= limit)

    y = matrix.multiply(x)  # float64, for proofs
    assert y.dtype == np.float64
    assert np.all(np.abs(y - exact) <= 1e-12)


def test_a_large_x_does_not_overflow_on_the_way(small_tiles):
    matrix, plain = random_matrix("float16", (10, 13))
    for size in (2.0**14, 2.0**15, 2.0**17):  # times 2^112, the last would be infinite
        x = np.full((1, 13), size, dtype=np.float32)
        np.testing.assert_allclose(matrix.multiply(x), x @ plain.T, rtol=1e-5, atol=size * 1e-5)


def test_multiply_takes_views_and_leaves_them_alone(small_tiles):
    matrix, plain = random_matrix("float16", (10, 13))
    wide = np.random.default_rng(1).standard_normal((13, 4)).astype(np.float32)
    before = wide.copy()
    np.testing.assert_allclose(matrix.multiply(wide.T), wide.T @ plain.T, atol=1e-5)
    np.testing.assert_array_equal(wide, before)


def test_small_tiles_really_are_several(monkeypatch, small_tiles):
    matrix, _ = random_matrix("float16", (10, 13))
    heights = []
    monkeypatch.setattr(
        matrices, "widen", lambda bits, *a, **k: heights.append(len(bits)) or widen(bits, *a, **k)
    )
    matrix.multiply(np.ones(13, dtype=np.float32))
    assert sorted(heights) == [1, 3, 3, 3]


def test_a_skipped_tile_would_be_seen(monkeypatch, small_tiles):
    """The negative control of the tests above: a worker that takes a tile and does nothing."""
    matrix, plain = random_matrix("float16", (10, 13))
    x = np.ones((2, 13), dtype=np.float32)

    def lazy_range(first, last=None, step=1):
        starts = range(first) if last is None else range(first, last, step)
        return starts if last is None else starts[1:]

    monkeypatch.setattr(matrices, "range", lazy_range, raising=False)
    monkeypatch.setattr(np, "empty", np.zeros)  # what is not computed stays 0
    assert not np.allclose(matrix.multiply(x), x @ plain.T, atol=1e-2)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_those_of_the_dense_matrix(format, dtype):
    matrix, plain = random_matrix(format, (9, 5), dtype=dtype)
    for ids in (4, [0, 8, 8], np.array([[1, 2], [3, 8]], dtype=np.int64), []):
        looked_up = matrix.rows(ids)
        assert looked_up.dtype == dtype and looked_up.shape == (*np.shape(ids), 5)
        np.testing.assert_array_equal(looked_up, plain[np.array(ids, dtype=np.int64)])
    assert matrix.dense().dtype == dtype
    np.testing.assert_array_equal(matrix.dense(), plain)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_copied(format):
    numbers = stored(np.ones((6, 4), dtype=np.float32), format)
    matrix = HalfMatrix(numbers)
    assert matrix.shape == (6, 4)
    assert matrix.nbytes == 2 * 6 * 4
    assert np.shares_memory(matrix.bits, numbers)
    matrix.multiply(np.ones(4, dtype=np.float32))
    matrix.rows([1])
    assert np.shares_memory(matrix.bits, numbers)


def test_a_mapped_read_only_file_stays_mapped(tmp_path):
    numbers = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float16)
    numbers.tofile(tmp_path / "numbers")
    mapped = np.memmap(tmp_path / "numbers", dtype=np.float16, mode="r", shape=(6, 4))
    matrix = HalfMatrix(mapped)
    assert np.shares_memory(matrix.bits, mapped)
    x = np.ones(4, dtype=np.float32)
    np.testing.assert_allclose(matrix.multiply(x), numbers.astype(np.float32) @ x, rtol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("row", [0, 4, 9])  # of 4 tiles the first, the second and the last
def test_inf_and_nan_are_refused_by_name_at_first_use(format, bad, row, small_tiles):
    numbers = stored(np.ones((10, 13), dtype=np.float32), format)
    bits = {"inf": INFINITY[format], "-inf": INFINITY[format] | 0x8000, "nan": 0x7FFF}[bad]
    numbers.view(np.uint16)[row, 12] = bits
    matrix = HalfMatrix(numbers, "layers.3.ffn.up.weight")  # not looked at yet
    x = np.ones((1, 13), dtype=np.float32)
    for _ in range(2):  # a failed first use does not count as a check
        with pytest.raises(ValueError, match=r"layers\.3\.ffn\.up\.weight holds Inf or NaN"):
            matrix.multiply(x)
    with pytest.raises(ValueError, match=r"layers\.3\.ffn\.up\.weight holds Inf or NaN"):
        matrix.rows([1, row])
    with pytest.raises(ValueError, match="Inf or NaN"):
        matrix.dense()
    assert np.all(matrix.rows([1, 2]) == 1)


@pytest.mark.parametrize("format", FORMATS)
def test_the_largest_numbers_are_not_taken_for_inf(format):
    largest = np.full((2, 3), INFINITY[format] - 1, dtype=np.uint16)
    matrix = HalfMatrix(largest.view(np.float16) if format == "float16" else largest)
    expected = value_of(INFINITY[format] - 1, format)
    assert np.all(matrix.dense() == np.float32(expected))
    assert np.all(matrix.multiply(np.eye(3, dtype=np.float32)) == np.float32(expected))


def test_inf_is_looked_for_once_only(monkeypatch, small_tiles):
    matrix, _ = random_matrix("float16", (10, 13))
    looked = []
    monkeypatch.setattr(matrices, "refuse_infinite", lambda *a: looked.append(a))
    for _ in range(3):
        matrix.multiply(np.ones(13, dtype=np.float32))
    assert len(looked) == 4  # tiles


@pytest.mark.parametrize(
    "wrong",
    [
        np.ones((3, 4), dtype=np.float32),
        np.ones((3, 4), dtype=np.float64),
        np.ones((3, 4), dtype=np.int16),
        np.ones(4, dtype=np.float16),
        np.ones((2, 3, 4), dtype=np.float16),
    ],
    ids=lambda array: f"{array.ndim}-D {array.dtype}",
)
def test_what_is_no_16_bit_matrix_is_refused(wrong):
    with pytest.raises(ValueError, match="that.weight: a HalfMatrix holds"):
        HalfMatrix(wrong, "that.weight")


@pytest.mark.parametrize(
    "x",
    [
        np.ones((2, 5), dtype=np.float32),
        np.ones((2, 8), dtype=np.float32),  # the right number of numbers for four rows
        np.ones((2, 4), dtype=np.int64),  # would round the weights
        np.ones((2, 4), dtype=np.float16),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_what_it_cannot_multiply_is_refused(x):
    matrix, _ = random_matrix("float16", (3, 4))
    with pytest.raises(ValueError, match="some.weight multiplies float32 or float64 of 4 numbers"):
        matrix.multiply(x)


def test_float32_never_passes_through_float64(monkeypatch, small_tiles):
    matrix, _ = random_matrix("bfloat16", (10, 13))
    made = []
    for name in ("empty", "ascontiguousarray", "dot"):
        original = getattr(np, name)

        def watched(*arguments, original=original, **keywords):
            result = original(*arguments, **keywords)
            made.append(result.dtype)
            return result

        monkeypatch.setattr(np, name, watched)
    for x in (np.ones((1, 13), dtype=np.float32), np.ones((4, 13), dtype=np.float32)):
        made.append(matrix.multiply(x).dtype)
    made += [matrix.rows([1]).dtype, matrix.dense().dtype]
    assert set(made) == {np.dtype(np.float32)}
