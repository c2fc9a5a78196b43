"""How good a model is: perplexity on a text, and multiple choice by log-likelihood.

An encoder has no perplexity, since each of its predictions sees the whole text. What it is judged
by is the pseudo-perplexity, and what it is for is filling in masks.
"""

import json
import math
from dataclasses import dataclass

import numpy as np

from tinyflash.files import read_text
from tinyflash.generate import PREFILL
from tinyflash.ops import log_softmax, softmax

MASK = "[MASK]"  # what stands in a text for a word that an encoder is to fill in


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text and what it was measured over.

    nats    : mean negative log-likelihood of a token
    tokens  : how many tokens were predicted
    context : tokens in a full window
    masked  : pseudo-perplexity: each token was predicted from those on both sides of it
    """

    nats: float
    tokens: int
    context: int
    masked: bool = False

    @property
    def perplexity(self):
        """exp(nats): as unsure as between so many equally likely tokens."""
        return math.exp(self.nats)

    @property
    def rule(self):
        """The context rule in words; perplexities under other rules do not compare."""
        if self.masked:
            return (
                f"pseudo-perplexity: in windows of {self.context} tokens without overlap, each "
                "token is masked by itself and predicted from all others of its window"
            )
        return (
            f"windows of {self.context} tokens without overlap, each begun by the model's own "
            "first token if it has one; every token is predicted once, from its window alone"
        )


def token_log_probabilities(model, ids, first=1):
    """log p of each token given all before it, a few hundred tokens at a time.

    ids : list of int;  first : first token to be judged, ≥ 1
    returns: float64 (len(ids) - first,)
    """
    cache = model.new_cache(len(ids))
    parts = []
    for start in range(0, len(ids) - 1, PREFILL):
        chunk = ids[start : min(start + PREFILL, len(ids) - 1)]
        log_p = log_softmax(model.logits(chunk, cache).astype(np.float64))
        targets = np.array(ids[start + 1 : start + 1 + len(chunk)], dtype=np.int64)
        parts.append(np.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0])
    return np.concatenate(parts)[first - 1 :]


def perplexity(model, text, progress=None):
    """Perplexity of a text: exp of the mean negative log-likelihood of its tokens.

    exp(-1/N Σ log p(token | those before it in the window))

    The text is cut into windows that fill the context, without overlap; each begins with the
    token that begins a text (BOS) where the model has one, and otherwise its first token is
    given and not judged. Of an encoder it is the `pseudo_perplexity`.

    progress : function (done, total tokens) or None
    returns  : Perplexity
    raises   : ValueError if there is nothing to predict
    """
    if not model.config.causal:
        return pseudo_perplexity(model, text, progress)
    begin = model.encode("")[:1]  # BOS, or nothing
    ids = model.encode(text)[len(begin) :]
    width = model.config.context - len(begin)
    losses = []
    for start in range(0, len(ids), width):
        window = begin + ids[start : start + width]
        if len(window) > 1:
            losses.append(-token_log_probabilities(model, window))
        if progress:
            progress(min(start + width, len(ids)), len(ids))
    if not losses:
        raise ValueError("The text has no token to predict; give a longer one.")
    losses = np.concatenate(losses)
    return Perplexity(float(np.mean(losses)), len(losses), model.config.context)


def pseudo_perplexity(model, text, progress=None):
    """Pseudo-perplexity of a text under an encoder: each token is masked once and predicted.

    exp(-1/N Σ log p(token | all others of the window))
                                    (Masked language model scoring, arXiv 1910.14659, eq. 2 and 4)

    The text is cut as in `perplexity`; a window stands between the encoder's own first and last
    token. It takes one pass over the window for every token.

    progress : function (done, total tokens) or None
    returns  : Perplexity
    raises   : ValueError if there is nothing to predict, or no mask in the vocabulary
    """
    around, mask = model.encode(""), mask_id(model)
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise ValueError("The text has no token to predict; give a longer one.")
    width = model.config.context - len(around)
    losses = []
    for start in range(0, len(ids), width):
        window = [*around[:1], *ids[start : start + width], *around[1:]]
        for t in range(len(around[:1]), len(window) - len(around[1:])):
            masked = [*window[:t], mask, *window[t + 1 :]]
            log_p = log_softmax(model.logits(masked)[t].astype(np.float64))
            losses.append(-log_p[window[t]])
            if progress:
                progress(len(losses), len(ids))
    return Perplexity(float(np.mean(losses)), len(losses), model.config.context, masked=True)


def fill_mask(model, text, top=5):
    """What an encoder would put in place of each [MASK] of a text.

    text   : str with at least one [MASK];  top : how many words to give for each, at least 1
    returns: for each mask, in order, a list of (word, probability), the likeliest first
    raises : ValueError if there is no mask in the text or the vocabulary, the text does not fit
             the context, or the model is no encoder
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


def mask_id(model):
    """The id of the token that masks a word.

    raises: ValueError if the model is no encoder or its vocabulary has no such token
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


@dataclass(frozen=True)
class Choices:
    """Result of multiple choice.

    accuracy            : share answered right by the largest log p(choice | context)
    normalized_accuracy : the same after dividing by the choice's length in bytes
    """

    questions: int
    accuracy: float
    normalized_accuracy: float


def multiple_choice(model, questions, progress=None):
    """Answer each question by the choice that the model finds likeliest after the context.

    log p(choice | context) = Σ log p(token | context and the tokens before it), the way zero-shot
    tables are made; a choice is appended to its context as it stands, so it brings its own space.

    questions : list of dicts: context (str), choices (list of str), answer (index of the right)
    returns   : Choices
    raises    : ValueError if a question does not fit the model's context
    """
    right = right_normalized = 0
    for number, question in enumerate(questions, start=1):
        scores = [choice_score(model, question["context"], c) for c in question["choices"]]
        per_byte = [
            score / max(1, len(choice.encode()))
            for score, choice in zip(scores, question["choices"], strict=True)
        ]
        right += int(np.argmax(scores)) == question["answer"]
        right_normalized += int(np.argmax(per_byte)) == question["answer"]
        if progress:
            progress(number, len(questions))
    n = len(questions)
    return Choices(n, right / n, right_normalized / n)


def choice_score(model, context, choice):
    """log p(choice | context) in nats.

    Context and choice are encoded together, because a tokenizer may join them; the tokens that
    differ from the context's own are the choice's.
    """
    alone, both = model.encode(context), model.encode(context + choice)
    first = 0
    while first < min(len(alone), len(both)) and alone[first] == both[first]:
        first += 1
    if first == len(both):
        raise ValueError(f"The choice {choice!r} adds no token to its context.")
    if len(both) == 1:
        raise ValueError(
            f"Nothing stands before the choice {choice!r}: its context is empty and the model has "
            "no token that begins a text; give it a context."
        )
    if len(both) > model.config.context + 1:
        raise ValueError(
            f"A question of {len(both)} tokens does not fit the model's context of "
            f"{model.config.context}; shorten it."
        )
    return float(np.sum(token_log_probabilities(model, both, max(1, first))))


def read_questions(path):
    """Questions from a JSON-lines file: one object a line with context, choices, answer.

    raises: ValueError that names the first line that is not one
    """
    questions = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            question = json.loads(line)
            fits = (
                isinstance(question["context"], str)
                and isinstance(question["choices"], list)
                and all(isinstance(choice, str) for choice in question["choices"])
                and question["answer"] in range(len(question["choices"]))
            )
        except (json.JSONDecodeError, KeyError, TypeError):
            fits = False
        if not fits:
            raise ValueError(
                f"{path}, line {number}: each line must be a JSON object with a context "
                "(text), choices (texts) and answer (the index of the right one)."
            )
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no question.")
    return questions
