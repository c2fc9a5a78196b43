"""How good a model is: perplexity on a text. (Multiple choice is in choices.py.)

An encoder has no perplexity, since each of its predictions sees the whole text. What it is judged
by is the pseudo-perplexity, and what it is for is filling in masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyflash.kv_cache import PREFILL
from tinyflash.ops import log_softmax, softmax

MASK = "[MASK]"  # what stands in a text for a word that an encoder is to fill in


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text and what it was measured over.

    nats    : mean negative log-likelihood of a token
    tokens  : how many tokens were predicted
    context : tokens in a full window
    masked  : pseudo-perplexity: each token was predicted from those on both sides of it

    >>> round(Perplexity(nats=math.log(50), tokens=10, context=96).perplexity)
    50
    """

    nats: float
    tokens: int
    context: int
    masked: bool = False

    @property
    def perplexity(self) -> float:
        """exp(nats): as unsure as between so many equally likely tokens; inf beyond 1.8e308."""
        try:
            return math.exp(self.nats)
        except OverflowError:
            return math.inf

    @property
    def rule(self) -> str:
        """The context rule in words; perplexities under other rules do not compare."""
        if self.masked:
            return (
                f"pseudo-perplexity: in windows of {self.context} tokens without overlap, each "
                "token is masked by itself and predicted from all others of its window"
            )
        return (
            f"windows of {self.context} tokens without overlap, each begun by what the tokenizer "
            "puts before a text; every token of the text is predicted once, from its window alone"
        )


def token_log_probabilities(model: Any, ids: Sequence[int], first: int = 1) -> np.ndarray:
    """log p of each token given all before it, a few hundred tokens at a time.

    ids : list of int;  first : first token to be judged, ≥ 1
    returns: float64 (len(ids) - first,)

    >>> import tinyflash
    >>> token_log_probabilities(tinyflash.load("default"), [5, 6, 7, 8], first=2).shape
    (2,)
    """
    cache = model.new_cache(len(ids))
    parts = []
    for start in range(0, len(ids) - 1, PREFILL):
        chunk = ids[start : min(start + PREFILL, len(ids) - 1)]
        log_p = log_softmax(model.logits(chunk, cache).astype(np.float64))
        targets = np.array(ids[start + 1 : start + 1 + len(chunk)], dtype=np.int64)
        parts.append(np.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0])
    return np.concatenate(parts)[first - 1 :]


def perplexity(
    model: Any, text: str, progress: Callable[[int, int], object] | None = None
) -> Perplexity:
    """Perplexity of a text: exp of the mean negative log-likelihood of its tokens.

    exp(-1/N Σ log p(token | those before it in the window))

    The text is cut into windows that fill the context, without overlap; each begins with what the
    tokenizer puts before a text (BOS). Where that is nothing, a window's first token is given and
    not judged. What it puts after a text is left out. Of an encoder it is the `pseudo_perplexity`.

    progress : function (done, total tokens) or None
    returns  : Perplexity
    raises   : ValueError if there is nothing to predict

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> known = perplexity(model, "To be, or not to be: that is the question.").perplexity
    >>> known < perplexity(model, "be not that question or: is To to the be,.").perplexity
    True
    """
    if not model.config.causal:
        return pseudo_perplexity(model, text, progress)
    before, ids, _ = framed(model, text)
    width, given = window_width(model, before), max(1, len(before))
    losses = []
    for start in range(0, len(ids), width):
        window = before + ids[start : start + width]
        if len(window) > given:
            losses.append(-token_log_probabilities(model, window, given))
        if progress:
            progress(min(start + width, len(ids)), len(ids))
    if not losses:
        raise ValueError("The text has no token to predict; give a longer one.")
    losses = np.concatenate(losses)
    return Perplexity(float(np.mean(losses)), len(losses), model.config.context)


def pseudo_perplexity(
    model: Any, text: str, progress: Callable[[int, int], object] | None = None
) -> Perplexity:
    """Pseudo-perplexity of a text under an encoder: each token is masked once and predicted.

    exp(-1/N Σ log p(token | all others of the window))
                                    (Masked language model scoring, arXiv 1910.14659, eq. 2 and 4)

    The text is cut as in `perplexity`; a window stands between what the tokenizer puts before and
    after a text. It takes one pass over the window for every token.

    progress : function (done, total tokens) or None
    returns  : Perplexity
    raises   : ValueError if there is nothing to predict, or no mask in the vocabulary

    >>> import tinyflash
    >>> pseudo_perplexity(tinyflash.load("default"), "To be")  # it is no encoder
    Traceback (most recent call last):
        ...
    ValueError: default continues texts and has not learned to fill in masks; ...
    """
    mask = mask_id(model)
    before, ids, after = framed(model, text)
    if not ids:
        raise ValueError("The text has no token to predict; give a longer one.")
    width = window_width(model, before + after)
    losses = []
    for start in range(0, len(ids), width):
        window = [*before, *ids[start : start + width], *after]
        for t in range(len(before), len(window) - len(after)):
            masked = [*window[:t], mask, *window[t + 1 :]]
            log_p = log_softmax(model.logits(masked)[t].astype(np.float64))
            losses.append(-log_p[window[t]])
            if progress:
                progress(len(losses), len(ids))
    return Perplexity(float(np.mean(losses)), len(losses), model.config.context, masked=True)


def framed(model: Any, text: str) -> tuple[list[int], list[int], list[int]]:
    """Token ids of a text, and those that its tokenizer puts before and after every text.

    returns: before, ids, after: lists of int
    raises : ValueError if the model has no tokenizer

    >>> import tinyflash
    >>> before, ids, after = framed(tinyflash.load("default"), "To be")
    >>> len(before), len(ids), len(after)
    (1, 3, 0)
    """
    model.encode("")  # says so
    return model.tokenizer.framed(text)


def window_width(model: Any, around: Sequence[int]) -> int:
    """Tokens of a text that fit the context beside those around every text.

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> model.config.context - window_width(model, around=[2])
    1
    """
    width = model.config.context - len(around)
    if width < 1:
        raise ValueError(
            f"{model.name} has a context of {model.config.context}, and {len(around)} tokens stand "
            "around every text: there is no place for the text."
        )
    return width


def fill_mask(model: Any, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """What an encoder would put in place of each [MASK] of a text.

    text   : str with at least one [MASK];  top : how many words to give for each, at least 1
    returns: for each mask, in order, a list of (word, probability), the likeliest first
    raises : ValueError if there is no mask in the text or the vocabulary, the text does not fit
             the context, or the model is no encoder

    >>> import tinyflash
    >>> fill_mask(tinyflash.load("default"), "To [MASK]")
    Traceback (most recent call last):
        ...
    ValueError: default continues texts and has not learned to fill in masks; ...
    """
    if top < 1:
        raise ValueError(f"At least 1 word is given for each mask, not {top}.")
    ids, mask = model.encode(text), mask_id(model)
    if mask not in ids:
        raise ValueError(f"The text has no {MASK} to fill in; write one where a word is missing.")
    p = softmax(model.logits(ids).astype(np.float64))
    fillings = []
    for t in (t for t, token in enumerate(ids) if token == mask):
        likeliest = np.argsort(-p[t], kind="stable")[:top]
        words = (model.tokenizer.backend.id_to_token(int(token)) for token in likeliest)
        fillings.append(
            [(word or "", float(p[t, token])) for word, token in zip(words, likeliest, strict=True)]
        )
    return fillings


def mask_id(model: Any) -> int:
    """The id of the token that masks a word.

    raises: ValueError if the model is no encoder or its vocabulary has no such token

    >>> import tinyflash
    >>> mask_id(tinyflash.load("default"))
    Traceback (most recent call last):
        ...
    ValueError: default continues texts and has not learned to fill in masks; ...
    """
    if model.config.causal:
        raise ValueError(
            f"{model.name} continues texts and has not learned to fill in masks; that takes an "
            "encoder such as distilbert."
        )
    model.encode("")  # says so where there is no tokenizer
    mask = model.tokenizer.backend.token_to_id(MASK)
    if mask is None:
        raise ValueError(f"The vocabulary of {model.name} has no {MASK}; get its own tokenizer.")
    return mask
