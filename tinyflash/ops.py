"""The formulas of a transformer, one function each, on arrays of any leading shape.

They are written with plain NumPy expressions that never write in place, so that the same code
runs forward on arrays and, traced by `training/tape.py`, yields gradients. Constants come from
`math`, because `np.sqrt(64)` is a float64 and would promote nothing today and something tomorrow.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyflash.config import Rope
from tinyflash.erfc import erfc


def linear(x: np.ndarray, W: np.ndarray | Any, b: np.ndarray | None = None) -> np.ndarray:
    """A linear map: x Wᵀ + b.

    x : (..., in);  W : (out, in), an array, or a Matrix of matrices/matrix.py;  b : (out,) or None
    returns: (..., out)

    >>> x, W = np.eye(2, dtype=np.float32), np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    >>> linear(x, W).tolist()  # (out, in) is (3, 2): three numbers a row
    [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    """
    if hasattr(W, "multiply"):
        y = W.multiply(x)
    elif x.ndim == 2:  # the same, but BLAS takes up to twice as long for x @ W.T of a few rows
        y = (W @ x.T).T
    else:
        y = x @ W.T
    return y if b is None else y + b


def rows(W: np.ndarray | Any, ids: np.ndarray) -> np.ndarray:
    """Rows of a matrix by number: an embedding lookup.

    W : (V, E), an array or a Matrix;  ids : int (...)
    returns: (..., E)

    >>> rows(np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32), [2, 0]).tolist()
    [[5.0, 6.0], [1.0, 2.0]]
    """
    return W.rows(ids) if hasattr(W, "rows") else W[ids]


def dense(W: np.ndarray | Any) -> np.ndarray:
    """A weight as an array: (out, in), or a vector as it is.

    W : an array or a Matrix

    >>> from tinyflash.matrices.half import HalfMatrix
    >>> dense(HalfMatrix(np.array([[0.5, 2]], dtype=np.float16))).tolist()
    [[0.5, 2.0]]
    """
    return W.dense() if hasattr(W, "dense") else np.asarray(W)


def layer_norm(
    x: np.ndarray, gain: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> np.ndarray:
    """Zero mean and unit variance over the last axis: (x - μ) / √(σ² + ε) · gain + bias.

    (Layer normalization, arXiv 1607.06450, §3; σ² is the biased variance.)

    x : (..., D);  gain, bias : (D,) or None

    >>> x = np.array([1.0, 3.0, 101.0, 103.0], dtype=np.float64)
    >>> layer_norm(x, None, None, 0).round(2).tolist()
    [-1.02, -0.98, 0.98, 1.02]
    """
    centered = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centered * centered, axis=-1, keepdims=True)
    return scale_and_shift(centered / np.sqrt(variance + eps), gain, bias)


def rms_norm(x: np.ndarray, gain: np.ndarray | None, bias: None, eps: float) -> np.ndarray:
    """Unit root mean square over the last axis: x / √(mean(x²) + ε) · gain.

    (Root mean square layer normalization, arXiv 1910.07467, eq. 4; it has no bias.)

    x : (..., D);  gain : (D,) or None;  bias : None

    >>> x = np.array([3.0, 4.0], dtype=np.float64)  # nothing is shifted: both stay positive
    >>> rms_norm(x, None, None, 0).round(2).tolist()
    [0.85, 1.13]
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return scale_and_shift(x / np.sqrt(mean_square + eps), gain, bias)


def scale_and_shift(x: np.ndarray, gain: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
    """x · gain + bias, each left out where it is None.

    >>> scale_and_shift(np.array([1, 2], dtype=np.float32), np.float32(10), None).tolist()
    [10.0, 20.0]
    """
    x = x if gain is None else x * gain
    return x if bias is None else x + bias


NORMS: dict[str, Callable[..., np.ndarray]] = {"layer": layer_norm, "rms": rms_norm}


def softmax(x: np.ndarray) -> np.ndarray:
    """Weights from 0 to 1 that sum to one over the last axis: exp(x) / Σ exp(x).

    The largest value is subtracted first, so that nothing overflows and -inf becomes exactly 0.

    >>> softmax(np.array([1000.0, 1000.0, -np.inf], dtype=np.float64)).tolist()
    [0.5, 0.5, 0.0]
    """
    exponentials = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Logarithm of softmax over the last axis, without forming the softmax.

    >>> log_softmax(np.array([0.0, -1000.0], dtype=np.float64)).tolist()  # softmax would be 0 there
    [0.0, -1000.0]
    """
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0).

    >>> relu(np.array([-2.0, 0.0, 3.0], dtype=np.float32)).tolist()
    [0.0, 0.0, 3.0]
    """
    return np.maximum(x, 0)


def relu_squared(x: np.ndarray) -> np.ndarray:
    """max(x, 0)²      (Primer, arXiv 2109.08668, §4.1)

    >>> relu_squared(np.array([-2.0, 0.5, 3.0], dtype=np.float32)).tolist()
    [0.0, 0.25, 9.0]
    """
    return np.square(np.maximum(x, 0))


def silu(x: np.ndarray) -> np.ndarray:
    """x · sigmoid(x), as x / (1 + e⁻ˣ).

    The exponent is held below 80: there e⁻ˣ is 10³⁴ and the result is 0 to every digit, and a
    float32 does not overflow.

    >>> silu(np.array([-1000.0, 0.0, 10.0], dtype=np.float64)).round(3).tolist()
    [-0.0, 0.0, 10.0]
    """
    return x / (1 + np.exp(np.minimum(-x, 80)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Tanh approximation of x · Φ(x) (Gaussian error linear units, arXiv 1606.08415, §2).

    ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))

    >>> x = np.array([-1.0, 1.0], dtype=np.float64)
    >>> gelu_tanh(x).round(4).tolist(), gelu(x).round(4).tolist()
    ([-0.1588, 0.8412], [-0.1587, 0.8413])
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x), Φ the distribution function of a normal number (arXiv 1606.08415, §2).

    Φ(x) = ½ erfc(-x/√2), taken from the side where nothing cancels: Φ(-x) = 1 - Φ(x).

    >>> gelu(np.array([-1.0, 0.0, 1.0, 8.0], dtype=np.float64)).round(4).tolist()
    [-0.1587, 0.0, 0.8413, 8.0]
    """
    tail = 0.5 * erfc(np.abs(x) * math.sqrt(0.5))
    return x * np.where(x < 0, tail, 1 - tail)


def fatrelu(a: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """a where |a| ≥ threshold, else 0: an activation forced to rest more often.

    After a ReLU this is FATReLU(x) = x if x ≥ T else 0 (LLM in a flash, for Llama 2). After
    another activation the trained curve stays as it is beyond the threshold, on both sides: in
    models that were not trained again, small negative activations matter.

    a : (..., F), activations;  threshold : 0-d array or number; 0 changes nothing

    >>> fatrelu(np.array([0.05, -0.2, 0.7], dtype=np.float64), 0.1).tolist()
    [0.0, -0.2, 0.7]
    """
    return np.where((a >= threshold) | (a <= -threshold), a, 0)


# The names that config.json files use for them.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": relu,
    "relu2": relu_squared,
    "silu": silu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}


def activation(
    name: str, threshold: float | np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The activation called `name`, cut off below a threshold where one is given (`fatrelu`).

    >>> activation("relu", 0.1)(np.array([-1.0, 0.05, 0.5], dtype=np.float32)).tolist()
    [0.0, 0.0, 0.5]
    """
    activate = ACTIVATIONS[name]
    return activate if threshold is None else lambda x: fatrelu(activate(x), threshold)


def rotary_frequencies(rope: Rope, K: int) -> np.ndarray:
    """Angle per token of each of the K/2 pairs of numbers that are turned, in radians.

    ω_i = θ^(-2i/K)      (RoFormer, arXiv 2104.09864, §3.4.2)

    A longer context divides all of them by `factor` ("linear"), or, as in Llama 3.1, only the
    slow ones: a pair whose wavelength 2π/ω exceeds original_context / low is divided, one below
    original_context / high is kept, and those between are blended linearly in 1/wavelength.

    returns: float32 (K/2,)

    >>> rotary_frequencies(Rope(theta=16.0), 4).tolist()  # the second pair turns slower
    [1.0, 0.25]
    >>> rotary_frequencies(Rope(theta=16.0, scaling="linear", factor=2.0), 4).tolist()
    [0.5, 0.125]
    """
    # Rounded to float32 after every step, as where these models were trained: rounded once, in
    # the end, the frequencies would be better, and token 2000 turned by another 10⁻⁴ radians.
    exponents = np.arange(0, K, 2, dtype=np.float32) / np.float32(K)
    powers = float(np.float32(rope.theta)) ** exponents.astype(np.float64)
    frequencies = np.float32(1) / powers.astype(np.float32)
    if rope.scaling == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.scaling == "llama3":
        kept = share_kept(rope.original_context, frequencies, rope.low, rope.high)
        return ((1 - kept) * frequencies / rope.factor + kept * frequencies).astype(np.float32)
    return frequencies


def share_kept(context: float, frequencies: np.ndarray, low: float, high: float) -> np.ndarray:
    """How much of each frequency Llama 3.1's scaling leaves as it is: (half,), from 0 to 1.

    0 where a turn takes longer than context / low tokens, 1 where less than context / high.

    >>> turns = 2 * math.pi * np.array([0.5, 2.0, 8.0], dtype=np.float64)  # over 1 token
    >>> share_kept(1, turns, low=1.0, high=5.0).tolist()
    [0.0, 0.25, 1.0]
    """
    turns = context * frequencies / (2 * math.pi)
    return np.clip((turns - low) / (high - low), 0, 1)


def rotary(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Turn each pair (x_i, x_{i+K/2}) of a head by the angle position · ω_i.

    This is the half-split layout of Hugging Face checkpoints: the pair of number i is number
    i + K/2. (The paper, Meta's files and GGUF files pair neighbors, 2i with 2i + 1.)
    Fewer frequencies than K/2 turn as many pairs of the head's first numbers; the rest passes.
    The angles are float32 in every mode, as in the code that these models were trained with.

    x : (..., T, heads, K);  positions : int (T,);  frequencies : (half,), half ≤ K/2

    >>> x = np.array([[[1, 0, 0, 5]]], dtype=np.float64)  # one token, one head, K = 4
    >>> quarter = np.array([math.pi / 2], dtype=np.float32)  # one pair: numbers 0 and 1
    >>> (rotary(x, np.array([1], dtype=np.int64), quarter).round(3) + 0).tolist()
    [[[0.0, 1.0, 0.0, 5.0]]]
    """
    half = len(frequencies)
    angles = positions[:, None].astype(np.float32) * frequencies  # (T, half)
    cos = np.cos(angles)[:, None, :].astype(x.dtype)  # (T, 1, half)
    sin = np.sin(angles)[:, None, :].astype(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def alibi(H: int, S: int) -> np.ndarray:
    """What every head adds to the scores of key s, before they are divided by √K: m_h · s.

    m_h = 2^(-8h/H), h = 1 … H      (Train short, test long, arXiv 2108.12409, §3)

    Where H is no power of two, the slopes of the next lower one are followed by every other slope
    of the next higher. Counted from the first key instead of back from the query, the bias of a
    row differs by a constant, which softmax ignores. Slopes, positions and products are rounded
    to bfloat16, as where these models were trained: key 257 counts as number 256.

    returns: float32 (H, 1, S)

    >>> alibi(2, 4).tolist()
    [[[0.0, 0.0625, 0.125, 0.1875]], [[0.0, 0.00390625, 0.0078125, 0.01171875]]]
    """
    base = 2 ** math.floor(math.log2(H))  # heads, the power of two
    exponents = [8 * h / base for h in range(1, base + 1)]
    exponents += [8 * h / (2 * base) for h in range(1, 2 * (H - base), 2)]
    slopes = in_bfloat16(2.0 ** -np.array(exponents, dtype=np.float64))
    positions = in_bfloat16(np.arange(S, dtype=np.float32))
    return in_bfloat16(slopes[:, None, None] * positions)


def in_bfloat16(x: np.ndarray) -> np.ndarray:
    """Numbers rounded to the nearest bfloat16, to the even one where two are as near: float32.

    >>> in_bfloat16(np.array([256, 257, 258], dtype=np.float32)).tolist()
    [256.0, 256.0, 258.0]
    """
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
