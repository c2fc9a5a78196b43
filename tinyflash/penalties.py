"""What a text speaks against saying again: plain functions from logits to logits.

Each looks at the tokens before, and at nothing else, so that speculation stays exact: verification
calls them at every node of a draft tree with the tokens on that node's own path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyflash.settings import Sampling

Ids = Sequence[int] | np.ndarray
LARGEST = np.finfo(np.float64).max


def penalized(
    logits: np.ndarray, sampling: Sampling, prompt: Sequence[int], new: Sequence[int]
) -> np.ndarray:
    """Logits after all penalties and bans of `sampling`.

    The order is that of transformers: the repetition penalty, then what may not be said at all.
    Presence and frequency penalties, which transformers has not, follow the repetition penalty.

    logits : (V,);  sampling : sampling.Sampling;  prompt, new : lists of int
    returns: float64 (V,), or the logits as they are where nothing is penalized
    raises : ValueError if no token is left to say

    >>> sampling = Sampling(repetition_penalty=2.0, suppress_tokens=(2,))
    >>> penalized(np.array([4, 4, 4], dtype=np.float64), sampling, prompt=[0], new=[]).tolist()
    [2.0, 4.0, -inf]
    """
    if not sampling.penalizes:
        return logits
    ids = np.array([*prompt, *new], dtype=np.int64)
    logits = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # what is beyond all numbers is held at the largest
        logits = less_repeated(logits, ids, sampling.repetition_penalty)
        logits = np.minimum(logits, LARGEST)
        logits = less_frequent(logits, new, sampling.presence_penalty, sampling.frequency_penalty)
        logits = np.minimum(logits, LARGEST)
    logits = without(logits, completing_ngrams(ids, sampling.no_repeat_ngram))
    logits = without(logits, sampling.suppress_tokens)
    if np.max(logits) == -np.inf:
        raise ValueError(
            "No token is left to say: the penalties, no_repeat_ngram and suppress_tokens forbid "
            "all of them; allow more."
        )
    return logits


def less_repeated(logits: np.ndarray, ids: Ids, penalty: float) -> np.ndarray:
    """Logits of tokens that the text has: those above 0 divided by the penalty, others multiplied.

    (CTRL, arXiv 1909.05858, §4.1, which divides all of them; multiplying those below 0 is what
    came into use.)

    logits : (V,);  ids : int, prompt and answer;  penalty : above 0, 1 changes nothing
    returns: (V,)

    >>> less_repeated(np.array([3.0, -1.0, 2.0], dtype=np.float64), [0, 1], 2.0).tolist()
    [1.5, -2.0, 2.0]
    """
    seen = np.isin(np.arange(len(logits), dtype=np.int64), ids)
    changed = np.where(logits < 0, logits * penalty, logits / penalty)
    return np.where(seen, changed, logits)


def less_frequent(
    logits: np.ndarray, new: Sequence[int], presence: float, frequency: float
) -> np.ndarray:
    """Subtract `presence` from every token of the answer, and `frequency` as often as it is there.

    logits - presence · (count > 0) - frequency · count. The prompt does not count. (The rule of
    OpenAI's API, which others took over.)

    logits : (V,);  new : int, the answer so far;  presence, frequency : 0 changes nothing
    returns: (V,)

    >>> less_frequent(np.array([3.0, 3.0, 3.0], dtype=np.float64), [0, 0, 1], 1.0, 0.5).tolist()
    [1.0, 1.5, 3.0]
    """
    said = np.array(new, dtype=np.int64)
    counts = np.bincount(said[said < len(logits)], minlength=len(logits))
    return logits - (presence * (counts > 0) + frequency * counts)


def completing_ngrams(ids: np.ndarray, n: int) -> np.ndarray:
    """The tokens that would complete a row of n tokens which the text has already.

    ids : int (T,), prompt and answer;  n : 0 for none
    returns: int64, in any order and as often as they occur

    >>> completing_ngrams(np.array([5, 6, 7, 5, 6], dtype=np.int64), 3).tolist()
    [7]
    """
    if n == 0 or len(ids) < n:
        return np.zeros(0, dtype=np.int64)
    rows = np.lib.stride_tricks.sliding_window_view(ids, n)  # (T - n + 1, n)
    begun = np.all(rows[:, :-1] == ids[len(ids) + 1 - n :], axis=1)
    return rows[begun, -1]


def without(logits: np.ndarray, tokens: Ids) -> np.ndarray:
    """Logits with -inf for these tokens; those that the vocabulary has not are passed over.

    >>> without(np.array([1, 2], dtype=np.float64), [1, 99]).tolist()
    [1.0, -inf]
    """
    return np.where(np.isin(np.arange(len(logits), dtype=np.int64), tokens), -np.inf, logits)
