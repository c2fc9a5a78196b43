"""The formulas of a transformer, one function each, on arrays of any leading shape.

They are written with plain NumPy expressions that never write in place, so that the same code
runs forward on arrays and, traced by `training/tape.py`, yields gradients. Constants come from
`math`, because `np.sqrt(64)` is a float64 and would promote nothing today and something tomorrow.
"""

import math
from functools import cache

import numpy as np


def linear(x, W, b=None):
    """A linear map: x Wᵀ + b.

    x : (..., in);  W : (out, in), an array, or a Matrix of matrices/matrix.py;  b : (out,) or None
    returns: (..., out)
    """
    if hasattr(W, "multiply"):
        y = W.multiply(x)
    elif x.ndim == 2:  # the same, but BLAS takes up to twice as long for x @ W.T of a few rows
        y = (W @ x.T).T
    else:
        y = x @ W.T
    return y if b is None else y + b


def rows(W, ids):
    """Rows of a matrix by number: an embedding lookup.

    W : (V, E), an array or a Matrix;  ids : int (...)
    returns: (..., E)
    """
    return W.rows(ids) if hasattr(W, "rows") else W[ids]


def dense(W):
    """A weight as an array: (out, in), or a vector as it is.

    W : an array or a Matrix
    """
    return W.dense() if hasattr(W, "dense") else np.asarray(W)


def layer_norm(x, gain, bias, eps):
    """Zero mean and unit variance over the last axis: (x - μ) / √(σ² + ε) · gain + bias.

    (Layer normalization, arXiv 1607.06450, §3; σ² is the biased variance.)

    x : (..., D);  gain, bias : (D,) or None
    """
    centered = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centered * centered, axis=-1, keepdims=True)
    return scale_and_shift(centered / np.sqrt(variance + eps), gain, bias)


def rms_norm(x, gain, bias, eps):
    """Unit root mean square over the last axis: x / √(mean(x²) + ε) · gain.

    (Root mean square layer normalization, arXiv 1910.07467, eq. 4; it has no bias.)

    x : (..., D);  gain : (D,) or None;  bias : None
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return scale_and_shift(x / np.sqrt(mean_square + eps), gain, bias)


def scale_and_shift(x, gain, bias):
    """x · gain + bias, each left out where it is None."""
    x = x if gain is None else x * gain
    return x if bias is None else x + bias


NORMS = {"layer": layer_norm, "rms": rms_norm}


def softmax(x):
    """Weights from 0 to 1 that sum to one over the last axis: exp(x) / Σ exp(x).

    The largest value is subtracted first, so that nothing overflows and -inf becomes exactly 0.
    """
    exponentials = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def log_softmax(x):
    """Logarithm of softmax over the last axis, without forming the softmax."""
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def relu(x):
    """max(x, 0)."""
    return np.maximum(x, 0)


def relu_squared(x):
    """max(x, 0)²      (Primer, arXiv 2109.08668, §4.1)"""
    return np.square(np.maximum(x, 0))


def silu(x):
    """x · sigmoid(x), as x / (1 + e⁻ˣ).

    The exponent is held below 80: there e⁻ˣ is 10³⁴ and the result is 0 to every digit, and a
    float32 does not overflow.
    """
    return x / (1 + np.exp(np.minimum(-x, 80)))


def gelu_tanh(x):
    """Tanh approximation of x · Φ(x) (Gaussian error linear units, arXiv 1606.08415, §2).

    ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def gelu(x):
    """x · Φ(x), Φ the distribution function of a normal number (arXiv 1606.08415, §2).

    Φ(x) = ½ erfc(-x/√2), taken from the side where nothing cancels: Φ(-x) = 1 - Φ(x).
    """
    tail = 0.5 * erfc(np.abs(x) * math.sqrt(0.5))
    return x * np.where(x < 0, tail, 1 - tail)


# Of (1 + 2z) exp(z²) erfc(z) in Chebyshev polynomials of t = (z - 4) / (z + 4): a function that is
# smooth to infinity, where it is 2/√π. (The form is that of Shepherd and Laframboise, Math. Comp.
# 36, 1981; the numbers were computed with 50 digits, by its values at the roots of T₄₀.)
ERFC_SERIES = (
    1.1774832005374487, -0.007260796620301901, -0.081265123236185, 0.06009212804122225,
    -0.02875393558027666, 0.01059566336347286, -0.003136927294554264, 0.0007456494372536184,
    -0.00013696965030100534, 1.7183861600301018e-05, -7.158364623449406e-07,
    -2.4261399442439417e-07, 5.576570939580425e-08, -2.10578695128829e-09, -1.171788935110809e-09,
    1.9098355178146217e-10, 1.4088717673935778e-11, -6.901108316055967e-12, 9.167956032685145e-14,
    2.1454503357785648e-13, -1.471664657361445e-14, -6.6687635403862224e-15,
    7.503612029363965e-16,
)  # fmt: skip


@cache
def erfc_polynomial(terms):
    """Coefficients of 1, t, t² … of the first `terms` of the series; Python numbers."""
    return [float(c) for c in np.polynomial.chebyshev.cheb2poly(ERFC_SERIES[:terms])]


def erfc(z):
    """Complementary error function of z ≥ 0: 2/√π ∫ exp(-u²) du from z to infinity.

    NumPy has none. A series of 23 terms gives it to 10⁻¹⁵, one of 13 to all digits of a float32.

    z : float array, nowhere below 0
    """
    z = np.minimum(z, 30)  # where it is 0 to every digit; from infinity t would be no number
    t = (z - 4) / (z + 4)
    *lower, sum_ = erfc_polynomial(23 if z.dtype == np.float64 else 13)
    for coefficient in reversed(lower):
        sum_ = sum_ * t + coefficient
    return sum_ * np.exp(-z * z) / (1 + 2 * z)


def fatrelu(a, threshold):
    """a where |a| ≥ threshold, else 0: an activation forced to rest more often.

    After a ReLU this is FATReLU(x) = x if x ≥ T else 0 (LLM in a flash, for Llama 2). After
    another activation the trained curve stays as it is beyond the threshold, on both sides: in
    models that were not trained again, small negative activations matter.

    a : (..., F), activations;  threshold : 0-d array or number; 0 changes nothing
    """
    return np.where((a >= threshold) | (a <= -threshold), a, 0)


# The names that config.json files use for them.
ACTIVATIONS = {
    "relu": relu,
    "relu2": relu_squared,
    "silu": silu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}


def activation(name, threshold=None):
    """The activation called `name`, cut off below a threshold where one is given (`fatrelu`)."""
    activate = ACTIVATIONS[name]
    return activate if threshold is None else lambda x: fatrelu(activate(x), threshold)


def rotary_frequencies(rope, K):
    """Angle per token of each of the K/2 pairs of numbers that are turned, in radians.

    ω_i = θ^(-2i/K)      (RoFormer, arXiv 2104.09864, §3.4.2)

    A longer context divides all of them by `factor` ("linear"), or, as in Llama 3.1, only the
    slow ones: a pair whose wavelength 2π/ω exceeds original_context / low is divided, one below
    original_context / high is kept, and those between are blended linearly in 1/wavelength.

    returns: float32 (K/2,)
    """
    # Rounded to float32 after every step, as where these models were trained: rounded once, in
    # the end, the frequencies would be better, and token 2000 turned by another 10⁻⁴ radians.
    exponents = np.arange(0, K, 2, dtype=np.float32) / np.float32(K)
    powers = float(np.float32(rope.theta)) ** exponents.astype(np.float64)
    frequencies = np.float32(1) / powers.astype(np.float32)
    if rope.scaling == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.scaling == "llama3":
        turns = rope.original_context * frequencies / (2 * math.pi)  # over the old context
        kept = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
        return ((1 - kept) * frequencies / rope.factor + kept * frequencies).astype(np.float32)
    return frequencies


def rotary(x, positions, frequencies):
    """Turn each pair (x_i, x_{i+K/2}) of a head by the angle position · ω_i.

    This is the half-split layout of Hugging Face checkpoints: the pair of number i is number
    i + K/2. (The paper, Meta's files and GGUF files pair neighbors, 2i with 2i + 1.)
    Fewer frequencies than K/2 turn as many pairs of the head's first numbers; the rest passes.
    The angles are float32 in every mode, as in the code that these models were trained with.

    x : (..., T, heads, K);  positions : int (T,);  frequencies : (half,), half ≤ K/2
    """
    half = len(frequencies)
    angles = positions[:, None].astype(np.float32) * frequencies  # (T, half)
    cos = np.cos(angles)[:, None, :].astype(x.dtype)  # (T, 1, half)
    sin = np.sin(angles)[:, None, :].astype(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def alibi(H, S):
    """What every head adds to the scores of key s, before they are divided by √K: m_h · s.

    m_h = 2^(-8h/H), h = 1 … H      (Train short, test long, arXiv 2108.12409, §3)

    Where H is no power of two, the slopes of the next lower one are followed by every other slope
    of the next higher. Counted from the first key instead of back from the query, the bias of a
    row differs by a constant, which softmax ignores. Slopes, positions and products are rounded
    to bfloat16, as where these models were trained: key 257 counts as number 256.

    returns: float32 (H, 1, S)
    """
    base = 2 ** math.floor(math.log2(H))  # heads, the power of two
    exponents = [8 * h / base for h in range(1, base + 1)]
    exponents += [8 * h / (2 * base) for h in range(1, 2 * (H - base), 2)]
    slopes = in_bfloat16(2.0 ** -np.array(exponents, dtype=np.float64))
    positions = in_bfloat16(np.arange(S, dtype=np.float32))
    return in_bfloat16(slopes[:, None, None] * positions)


def in_bfloat16(x):
    """Numbers rounded to the nearest bfloat16, to the even one where two are as near: float32."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
