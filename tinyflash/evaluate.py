"""How good a model is: perplexity on a text, and multiple choice by log-likelihood."""

import json
import math
from dataclasses import dataclass

import numpy as np

from tinyflash.generate import PREFILL
from tinyflash.ops import log_softmax


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text and what it was measured over.

    nats    : mean negative log-likelihood of a token
    tokens  : how many tokens were predicted
    context : tokens in a full window
    """

    nats: float
    tokens: int
    context: int

    @property
    def perplexity(self):
        """exp(nats): as unsure as between so many equally likely tokens."""
        return math.exp(self.nats)

    @property
    def rule(self):
        """The context rule in words; perplexities under other rules do not compare."""
        return (
            f"windows of {self.context} tokens without overlap, each begun by the model's own "
            "first token if it has one; every token is predicted once, from its window alone"
        )


def token_log_probabilities(model, ids, first=1):
    """log p of each token given all before it, a few hundred tokens at a time.

    ids : list of int;  first : first token to be judged, ≥ 1
    returns: float64 (len(ids) - first,)
    """
    cache = model.new_cache()
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
    given and not judged.

    progress : function (done, total tokens) or None
    returns  : Perplexity
    raises   : ValueError if there is nothing to predict
    """
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
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
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
