"""The formulas, each against a computation with Python numbers, one at a time."""

import math
import warnings

import numpy as np
import pytest

from tinyflash import ops
from tinyflash.config import Rope
from tinyflash.matrices.half import HalfMatrix

X = np.random.default_rng(0).standard_normal((3, 5))
GAIN = np.array([0.5, -1.2, 2.0, 0.1, 1.0], dtype=np.float64)
BIAS = np.array([0.1, 0.2, -0.3, 4.0, 0.0], dtype=np.float64)


def row_by_row(function, x):
    """A function of a list of numbers applied to every row."""
    rows = [function(row) for row in x.reshape(-1, x.shape[-1]).tolist()]
    return np.array(rows, dtype=np.float64).reshape(x.shape)


def layer_normed(row, gain=None, bias=None, eps=1e-5):
    mean = math.fsum(row) / len(row)
    variance = math.fsum((value - mean) ** 2 for value in row) / len(row)
    normed = [(value - mean) / math.sqrt(variance + eps) for value in row]
    return [
        value * (1 if gain is None else gain[i]) + (0 if bias is None else bias[i])
        for i, value in enumerate(normed)
    ]


def softmaxed(row):
    top = max(row)
    total = math.fsum(math.exp(value - top) for value in row)
    return [math.exp(value - top) / total for value in row]


def test_linear_is_x_times_the_transpose():
    W = np.random.default_rng(1).standard_normal((2, 5))
    b = np.array([10.0, 20.0], dtype=np.float64)
    exact = [[sum(x * w for x, w in zip(row, line, strict=True)) for line in W] for row in X]
    np.testing.assert_allclose(ops.linear(X, W), exact, rtol=1e-13)
    np.testing.assert_allclose(ops.linear(X, W, b), np.array(exact) + [10, 20], rtol=1e-13)
    half = HalfMatrix(W.astype(np.float16))
    np.testing.assert_allclose(ops.linear(X, half, b), X @ half.dense().T + b, rtol=1e-6)


def test_rows_looks_up_arrays_and_matrices():
    W = np.arange(12, dtype=np.float16).reshape(4, 3)
    ids = np.array([[3, 0], [0, 2]], dtype=np.int64)
    for matrix in (W.astype(np.float32), HalfMatrix(W)):
        np.testing.assert_array_equal(
            ops.rows(matrix, ids), [[[9, 10, 11], [0, 1, 2]], [[0, 1, 2], [6, 7, 8]]]
        )


@pytest.mark.parametrize("gain, bias", [(None, None), (GAIN, None), (GAIN, BIAS)])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1])
def test_layer_norm(gain, bias, eps):
    exact = row_by_row(lambda row: layer_normed(row, gain, bias, eps), X)
    np.testing.assert_allclose(ops.layer_norm(X, gain, bias, eps), exact, rtol=1e-12)


@pytest.mark.parametrize("gain", [None, GAIN])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1])
def test_rms_norm(gain, eps):
    def normed(row):
        root = math.sqrt(math.fsum(value * value for value in row) / len(row) + eps)
        return [value / root * (1 if gain is None else gain[i]) for i, value in enumerate(row)]

    np.testing.assert_allclose(ops.rms_norm(X, gain, None, eps), row_by_row(normed, X), rtol=1e-12)


def test_a_constant_row_has_no_norm_but_its_bias():
    same = np.full((2, 5), 7, dtype=np.float64)
    np.testing.assert_array_equal(ops.layer_norm(same, GAIN, BIAS, 1e-5), [BIAS, BIAS])
    nothing = np.zeros((1, 5), dtype=np.float32)
    np.testing.assert_array_equal(ops.rms_norm(nothing, None, None, 1e-6), nothing)


def test_softmax_and_its_logarithm():
    exact = row_by_row(softmaxed, 5 * X)
    np.testing.assert_allclose(ops.softmax(5 * X), exact, rtol=1e-12)
    np.testing.assert_allclose(ops.log_softmax(5 * X), np.log(exact), rtol=1e-12)
    np.testing.assert_allclose(ops.softmax(X).sum(axis=-1), 1, rtol=1e-15)


def test_softmax_of_what_is_masked_and_of_huge_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked = ops.softmax(np.array([[1, -math.inf, 1], [-math.inf, 0, -math.inf]], np.float32))
        np.testing.assert_array_equal(masked, [[0.5, 0, 0.5], [0, 1, 0]])
        for huge in (1e4, 3e38):
            x = np.array([huge, huge, -huge], dtype=np.float32)
            with np.errstate(over="ignore"):  # -3e38 - 3e38: beyond float32, and e to it is 0
                np.testing.assert_array_equal(ops.softmax(x), [0.5, 0.5, 0])
        x = np.array([1000, 998, -1000], dtype=np.float64)
        logs = ops.log_softmax(x)
    np.testing.assert_allclose(logs[:2], [-math.log1p(math.exp(-2)), -2.126928011042972], rtol=1e-9)
    assert logs[2] == pytest.approx(-2000.1269, rel=1e-7)  # and not log 0


def test_activations_number_by_number():
    x = np.concatenate([X.reshape(-1), [0.0, -0.0, 3.0, -3.0, 20.0, -20.0]])

    def gelu_new(v):
        return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    formulas = {
        "relu": lambda v: v if v > 0 else 0.0,
        "relu2": lambda v: v * v if v > 0 else 0.0,
        "gelu": lambda v: 0.5 * v * math.erfc(-v / math.sqrt(2)),
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu_new": gelu_new,
        "gelu_pytorch_tanh": gelu_new,
    }
    assert set(formulas) == set(ops.ACTIVATIONS)
    for name, formula in formulas.items():
        exact = [formula(v) for v in x.tolist()]
        np.testing.assert_allclose(ops.ACTIVATIONS[name](x), exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted(ops.ACTIVATIONS))
def test_activations_of_large_numbers_are_quiet(name, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = ops.ACTIVATIONS[name](np.array([-1e4, -100, -0.0, 100, 1e4], dtype=dtype))
    assert y.dtype == dtype
    largest = [100, 1e4] if name != "relu2" else [100**2, 1e4**2]
    np.testing.assert_allclose(y, [0, 0, 0, *largest], atol=1e-25)


def test_relu_of_negatives_is_exactly_zero():
    assert np.count_nonzero(ops.relu(np.array([-1e-30, -5, -0.0], dtype=np.float32))) == 0


# Rotary positions.


def turned(head, position, frequencies):
    """A head turned pair by pair (x_i, x_{i+K/2}), with Python numbers."""
    half = len(head) // 2
    result = [0.0] * len(head)
    for i in range(half):
        cos, sin = math.cos(position * frequencies[i]), math.sin(position * frequencies[i])
        result[i] = head[i] * cos - head[i + half] * sin
        result[i + half] = head[i + half] * cos + head[i] * sin
    return result


def test_rotary_turns_every_pair_by_its_angle():
    T, H, K = 4, 3, 6
    x = np.random.default_rng(2).standard_normal((T, H, K))
    positions = np.array([0, 1, 5, 30], dtype=np.int64)
    frequencies = np.array([1.0, 0.25, 0.0625], dtype=np.float32)  # exact in float32
    y = ops.rotary(x, positions, frequencies)
    for t in range(T):
        for h in range(H):
            exact = turned(x[t, h].tolist(), int(positions[t]), frequencies.tolist())
            np.testing.assert_allclose(y[t, h], exact, atol=1e-6)  # angles are float32
    np.testing.assert_array_equal(y[0], x[0])  # position 0 does not turn
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_rotary_with_batch_axes_is_rotary_of_each():
    x = np.random.default_rng(2).standard_normal((2, 4, 3, 6))
    positions = np.arange(4, dtype=np.int64)
    frequencies = ops.rotary_frequencies(Rope(), 6)
    y = ops.rotary(x, positions, frequencies)
    for b in range(2):
        np.testing.assert_array_equal(y[b], ops.rotary(x[b], positions, frequencies))


def test_rotated_products_depend_on_the_distance_alone():
    K = 8
    q, k = np.random.default_rng(3).standard_normal((2, 1, 1, K))
    frequencies = ops.rotary_frequencies(Rope(), K)

    def score(query_position, key_position):
        at = [np.array([position], dtype=np.int64) for position in (query_position, key_position)]
        turned_q, turned_k = ops.rotary(q, at[0], frequencies), ops.rotary(k, at[1], frequencies)
        return float(np.sum(turned_q * turned_k))

    for distance in (0, 1, 7):
        expected = score(distance, 0)
        for key_position in (1, 12, 300):
            assert score(key_position + distance, key_position) == pytest.approx(expected, abs=1e-4)
    assert abs(score(7, 0) - score(0, 0)) > 0.1  # and it does depend on it


@pytest.mark.parametrize("theta, K", [(10000.0, 8), (500000.0, 128), (100000.0, 64)])
def test_frequencies_are_powers_of_theta(theta, K):
    exact = [theta ** (-2 * i / K) for i in range(K // 2)]
    frequencies = ops.rotary_frequencies(Rope(theta=theta), K)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, exact, rtol=1e-7)


def test_linear_scaling_divides_all_frequencies():
    plain = ops.rotary_frequencies(Rope(), 64)
    scaled = ops.rotary_frequencies(Rope(scaling="linear", factor=4.0), 64)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, plain / 4, rtol=1e-7)


def llama3_frequency(frequency, rope):
    """One frequency stretched as Llama 3.1 does it, said by wavelengths."""
    wavelength = 2 * math.pi / frequency
    if wavelength < rope.original_context / rope.high:
        return frequency, "kept"
    if wavelength > rope.original_context / rope.low:
        return frequency / rope.factor, "divided"
    share = (rope.original_context / wavelength - rope.low) / (rope.high - rope.low)
    return (1 - share) * frequency / rope.factor + share * frequency, "blended"


@pytest.mark.parametrize(
    "rope",
    [
        Rope(500000.0, "llama3", factor=8.0, low=1.0, high=4.0, original_context=8192),
        Rope(500000.0, "llama3", factor=32.0, low=1.0, high=4.0, original_context=8192),
        Rope(10000.0, "llama3", factor=3.0, low=2.0, high=9.0, original_context=512),
    ],
    ids=lambda rope: f"factor {rope.factor:g}",
)
def test_llama3_scaling_keeps_blends_and_divides(rope):
    K = 128
    exact, bands = zip(
        *(llama3_frequency(rope.theta ** (-2 * i / K), rope) for i in range(K // 2)), strict=True
    )
    assert all(bands.count(band) >= 3 for band in ("kept", "blended", "divided"))
    frequencies = ops.rotary_frequencies(rope, K)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, exact, rtol=1e-6)
    plain = ops.rotary_frequencies(Rope(theta=rope.theta), K)
    for band, divisor in (("kept", 1), ("divided", rope.factor)):
        which = [i for i, name in enumerate(bands) if name == band]
        np.testing.assert_allclose(frequencies[which], plain[which] / divisor, rtol=1e-7)


def test_float32_stays_float32():
    x = X.astype(np.float32)
    gain, bias = GAIN.astype(np.float32), BIAS.astype(np.float32)
    results = {
        "linear": ops.linear(x, np.ones((2, 5), dtype=np.float32), np.ones(2, dtype=np.float32)),
        "rows": ops.rows(x, [1, 2]),
        "layer_norm": ops.layer_norm(x, gain, bias, 1e-5),
        "rms_norm": ops.rms_norm(x, gain, None, 1e-5),
        "softmax": ops.softmax(x),
        "log_softmax": ops.log_softmax(x),
        **{name: function(x) for name, function in ops.ACTIVATIONS.items()},
    }
    heads = np.ones((2, 3, 4), dtype=np.float32)
    for rope in (Rope(), Rope(scaling="linear", factor=2.0), Rope(scaling="llama3", factor=8.0)):
        frequencies = ops.rotary_frequencies(rope, 4)
        results[rope.scaling] = frequencies
        positions = np.arange(2, dtype=np.int64)
        results[f"rotary {rope.scaling}"] = ops.rotary(heads, positions, frequencies)
    for name, result in results.items():
        assert result.dtype == np.float32, name
