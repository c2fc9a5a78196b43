"""From logits to the next token: logits -> distribution -> token."""

import numpy as np

from tinyflash.ops import softmax


def check_sampling(temperature, top_k, top_p):
    """Raise a ValueError, one sentence, for settings that describe no distribution."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            f"The temperature must be 0 (always the likeliest token) or more, not {temperature}."
        )
    if top_k is not None and top_k < 1:
        raise ValueError(
            f"top-k keeps the k likeliest tokens, so k must be at least 1, not {top_k}."
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top-p is a share of probability above 0 and up to 1, not {top_p}.")


def distribution(logits, temperature=1.0, top_k=None, top_p=None):
    """The law by which the next token is drawn: softmax(logits / temperature), cut and rescaled.

    Temperature 0 is its limit, all weight on the likeliest token (the first of several).
    top_k keeps the k largest (and those equal to the k-th); top_p then keeps the fewest tokens
    whose probabilities reach p (The curious case of neural text degeneration,
    arXiv 1904.09751, §3.1).

    logits : (V,)
    returns: float64 (V,), sums to 1; float64, because speculative sampling divides by it
    """
    logits = logits.astype(np.float64)
    if temperature == 0:
        p = np.zeros(logits.shape, dtype=np.float64)
        p[np.argmax(logits)] = 1
        return p
    with np.errstate(over="ignore"):  # near temperature 0 a distance becomes inf, as it should
        logits = (logits - np.max(logits)) / temperature
    if top_k is not None and top_k < len(logits):
        kth = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits < kth, -np.inf, logits)
    p = softmax(logits)
    if top_p is not None and top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]  # probability of all likelier tokens
        p[order[before >= top_p]] = 0
        p = p / np.sum(p)
    return p


def draw(p, rng):
    """One token drawn from the distribution: the first whose cumulated probability exceeds u.

    p : float64 (V,);  rng : np.random.Generator;  returns: int
    """
    cumulated = np.cumsum(p)
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
