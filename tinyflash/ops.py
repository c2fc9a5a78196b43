"""The formulas of a transformer, one function each, on arrays of any leading shape.

They are written with plain NumPy expressions that never write in place, so that the same code
runs forward on arrays and, traced by `training/tape.py`, yields gradients. Constants come from
`math`, because `np.sqrt(64)` is a float64 and would promote nothing today and something tomorrow.
"""

import math

import numpy as np


def linear(x, W, b=None):
    """A linear map: x Wᵀ + b.

    x : (..., in);  W : (out, in), an array or anything with `multiply`;  b : (out,) or None
    returns: (..., out)
    """
    y = W.multiply(x) if hasattr(W, "multiply") else x @ W.T
    return y if b is None else y + b


def rows(W, ids):
    """Rows of a matrix by number: an embedding lookup.

    W : (V, E), an array or anything with `rows`;  ids : int (...)
    returns: (..., E)
    """
    return W.rows(ids) if hasattr(W, "rows") else W[ids]


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


def fatrelu(a, threshold):
    """a where a ≥ threshold, else 0: an activation forced to rest more often.

    After a ReLU this is FATReLU(x) = x if x ≥ T else 0 (LLM in a flash, §5, for Llama 2). After
    another activation the trained curve stays as it is above the threshold.

    a : (..., F), activations;  threshold : 0-d array or number, above 0
    """
    return np.where(a >= threshold, a, 0)


# The names that config.json files use for them.
ACTIVATIONS = {
    "relu": relu,
    "silu": silu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}


def activation(name, threshold=None):
    """The activation called `name`, cut off below a threshold where one is given (`fatrelu`)."""
    activate = ACTIVATIONS[name]
    return activate if threshold is None else lambda x: fatrelu(activate(x), threshold)


def rotary_frequencies(rope, K):
    """Angle per token of each of the K/2 pairs of numbers in a head, in radians.

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
    The angles are float32 in every mode, as in the code that these models were trained with.

    x : (..., T, heads, K);  positions : int (T,);  frequencies : (K/2,)
    """
    K = x.shape[-1]
    angles = positions[:, None].astype(np.float32) * frequencies  # (T, K/2)
    cos = np.cos(angles)[:, None, :].astype(x.dtype)  # (T, 1, K/2)
    sin = np.sin(angles)[:, None, :].astype(x.dtype)
    first, second = x[..., : K // 2], x[..., K // 2 :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
