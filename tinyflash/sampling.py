"""From logits to the next token: logits -> penalties -> distribution -> token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyflash.ops import softmax
from tinyflash.penalties import penalized
from tinyflash.settings import Sampling


def next_distribution(
    logits: np.ndarray, sampling: Sampling, prompt: Sequence[int], new: Sequence[int]
) -> np.ndarray:
    """The distribution of the token that follows a prompt and the new tokens after it.

    logits : (V,), after the last of them;  sampling : settings.Sampling
    prompt, new : lists of int
    returns: float64 (V,), sums to 1
    raises : ValueError if penalties leave no token to say

    >>> logits = np.array([2.0, 1.0], dtype=np.float64)
    >>> next_distribution(logits, Sampling(repetition_penalty=4.0), prompt=[0], new=[]).tolist()
    [0.0, 1.0]
    """
    logits = penalized(logits, sampling, prompt, new)
    return distribution(
        logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
    )


def distribution(
    logits: np.ndarray,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> np.ndarray:
    """softmax(logits / temperature), cut and rescaled.

    Temperature 0 is its limit, all weight on the likeliest token (the first of several).
    top_k keeps the k largest (and those equal to the k-th; 0 keeps all); top_p then keeps the
    fewest tokens whose probabilities reach p (The curious case of neural text degeneration,
    arXiv 1904.09751, §3.1); min_p then those at least p times as likely as the likeliest
    (Turning up the heat, arXiv 2407.01082, §3).

    logits : (V,), -inf for what is never said
    returns: float64 (V,), sums to 1; float64, because speculative sampling divides by it

    >>> p = np.array([0.5, 0.3, 0.2], dtype=np.float64)
    >>> distribution(np.log(p), top_k=2).round(3).tolist()
    [0.625, 0.375, 0.0]
    """
    logits = logits.astype(np.float64)
    if temperature == 0:
        p = np.zeros(logits.shape, dtype=np.float64)
        p[np.argmax(logits)] = 1
        return p
    with np.errstate(over="ignore"):  # near temperature 0 a distance becomes inf, as it should
        logits = (logits - np.max(logits)) / temperature
    if top_k and top_k < len(logits):
        kth = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits < kth, -np.inf, logits)
    p = softmax(logits)
    if top_p is not None and top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # probability of all likelier tokens
        p[order[before >= top_p]] = 0
        p = p / np.sum(p)
    if min_p:
        p[p < min_p * np.max(p)] = 0
        p = p / np.sum(p)
    return p


def draw(p: np.ndarray, rng: np.random.Generator) -> int:
    """One token drawn from the distribution: the first whose cumulated probability exceeds u.

    p : float64 (V,);  rng : np.random.Generator;  returns: int

    >>> rng = np.random.default_rng(0)
    >>> [draw(np.array([0.5, 0.0, 0.5], dtype=np.float64), rng) for _ in range(6)]
    [2, 0, 0, 0, 2, 2]
    """
    cumulated = np.cumsum(p)
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
