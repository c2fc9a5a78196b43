"""Exact GELU, squared ReLU, ALiBi and partial rotary positions, number by number."""

import math

import numpy as np
import pytest

from tinyflash import ops
from tinyflash.config import Rope

X = np.concatenate([np.linspace(-40, 40, 20001), [0.0, -0.0, 1e-300, -1e-300, 1e300, -1e300]])


def test_erfc_has_all_digits_of_a_float64():
    z = np.linspace(0, 30, 30001)
    exact = np.array([math.erfc(value) for value in z.tolist()], dtype=np.float64)
    assert np.max(np.abs(ops.erfc(z) - exact)) <= 1e-15
    near = z < 5  # relatively too, until what is left of 1 is 10⁻¹²
    assert np.max(np.abs(ops.erfc(z)[near] / exact[near] - 1)) <= 1e-14
    single = ops.erfc(z.astype(np.float32))
    assert single.dtype == np.float32 and np.max(np.abs(single - exact)) <= 5e-7
    ends = ops.erfc(np.array([0, 1e30, math.inf], dtype=np.float64))
    assert abs(ends[0] - 1) <= 1e-15 and ends[1:].tolist() == [0, 0]


def test_gelu_is_x_times_the_share_of_normal_numbers_below_it():
    exact = [0.5 * x * math.erfc(-x / math.sqrt(2)) for x in X.tolist()]
    np.testing.assert_allclose(ops.gelu(X), exact, rtol=2e-15, atol=1e-15)
    x = X[:20001].astype(np.float32)
    assert ops.gelu(x).dtype == np.float32
    np.testing.assert_allclose(ops.gelu(x), exact[:20001], rtol=5e-7, atol=5e-7)
    # the tanh formula is another function, by up to 5 in 10 000
    assert 1e-4 < np.max(np.abs(ops.gelu(X[:20001]) - ops.gelu_tanh(X[:20001]))) < 1e-3


def test_squared_relu():
    x = np.array([-3, -0.0, 0.5, 1, 20], dtype=np.float32)
    np.testing.assert_array_equal(ops.relu_squared(x), np.array([0, 0, 0.25, 1, 400], np.float32))
    assert ops.ACTIVATIONS["relu2"] is ops.relu_squared


@pytest.mark.parametrize(
    "H, slopes",
    [
        (1, [2.0**-8]),
        (4, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]),
        (8, [2.0**-h for h in range(1, 9)]),
        # of 4 and then the 1st and 3rd of 8
        (6, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]),
    ],
)
def test_alibi_slopes(H, slopes):
    bias = ops.alibi(H, 9)
    assert bias.shape == (H, 1, 9) and bias.dtype == np.float32
    np.testing.assert_array_equal(bias[:, 0], np.outer(slopes, np.arange(9)))


def test_alibi_is_rounded_to_bfloat16():
    bias = ops.alibi(1, 1000)[0, 0] * 2**8
    assert bias[256] == 256 and bias[257] == 256 and bias[258] == 258 and bias[259] == 260
    assert not np.any(ops.alibi(12, 1000).view(np.uint32) & np.uint32(0xFFFF))
    slope = ops.alibi(16, 2)[0, 0, 1]  # 2^-0.5 = 0.70710678 lies between two bfloat16 numbers
    assert slope == 0.70703125


def test_in_bfloat16_rounds_to_the_nearest_and_ties_to_even():
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.14159, 0], np.float32)
    expected = np.array([1, 1, 1 + 2**-6, 1 + 2**-7, -3.140625, 0], np.float32)
    np.testing.assert_array_equal(ops.in_bfloat16(x), expected)


def test_partial_rotary_turns_the_first_numbers_and_leaves_the_rest():
    x = np.random.default_rng(0).standard_normal((7, 3, 10))
    positions, frequencies = np.arange(2, 9), ops.rotary_frequencies(Rope(100.0), 6)
    turned = ops.rotary(x, positions, frequencies)
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(turned[..., :6], ops.rotary(x[..., :6], positions, frequencies))
    assert np.all(turned[..., :6] != x[..., :6])
