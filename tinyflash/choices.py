"""Multiple choice by log-likelihood: which of several endings a model finds likeliest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyflash.checks import short
from tinyflash.evaluate import framed, token_log_probabilities
from tinyflash.files import json_value, read_text
from tinyflash.kv_cache import common_length


@dataclass(frozen=True)
class Choices:
    """Result of multiple choice.

    questions           : how many were asked
    accuracy            : share of those judged whose largest log p(choice | context) is the right's
    normalized_accuracy : the same after dividing by the choice's length in bytes
    shortened           : questions too long for the context, whose first tokens were left out
    not_judged          : dict from a question's number, from 1 on, to why it could not be judged

    >>> Choices(questions=4, accuracy=0.5, normalized_accuracy=0.75).shortened
    0
    """

    questions: int
    accuracy: float
    normalized_accuracy: float
    shortened: int = 0
    not_judged: dict = field(default_factory=dict)


def multiple_choice(
    model: Any, questions: Sequence[dict], progress: Callable[[int, int], object] | None = None
) -> Choices:
    """Answer each question by the choice that the model finds likeliest after the context.

    log p(choice | context) = Σ log p(token | context and the tokens before it), the way zero-shot
    tables are made; a choice is appended to its context as it stands, so it brings its own space.
    A question that cannot be judged is passed over and named in the result.

    questions : list of dicts: context (str), choices (list of str), answer (index of the right)
    returns   : Choices
    raises    : ValueError if not one question can be judged

    >>> import tinyflash
    >>> question = {"context": "To be, or not to", "choices": [" be", " xylophone"], "answer": 0}
    >>> multiple_choice(tinyflash.load("default"), [question]).accuracy
    1.0
    """
    right = right_normalized = shortened = 0
    not_judged = {}
    for number, question in enumerate(questions, start=1):
        try:
            scores, per_byte, long = judged(model, question["context"], question["choices"])
        except ValueError as error:
            not_judged[number] = str(error)
        else:
            right += int(np.argmax(scores)) == question["answer"]
            right_normalized += int(np.argmax(per_byte)) == question["answer"]
            shortened += long
        if progress:
            progress(number, len(questions))
    n = len(questions) - len(not_judged)
    if n == 0:
        number, why = next(iter(not_judged.items()))
        raise ValueError(f"No question could be judged. Question {number}: {why}")
    return Choices(len(questions), right / n, right_normalized / n, shortened, not_judged)


def judged(
    model: Any, context: str, choices: Sequence[str]
) -> tuple[list[float], list[float], bool]:
    """Every choice's log p, the same for each of its bytes, and whether one had to be shortened.

    raises: ValueError if there is one that cannot be judged

    >>> import tinyflash
    >>> model, context = tinyflash.load("default"), "To be, or not to"
    >>> scores, per_byte, shortened = judged(model, context, [" be", " go"])
    >>> scores[0] > scores[1], shortened
    (True, False)
    """
    asked = [choice_tokens(model, context, choice) for choice in choices]
    scores = [score(model, ids, first) for ids, first in asked]
    per_byte = [
        value / max(1, len(choice.encode())) for value, choice in zip(scores, choices, strict=True)
    ]
    return scores, per_byte, any(len(ids) > model.config.context + 1 for ids, _ in asked)


def choice_score(model: Any, context: str, choice: str) -> float:
    """log p(choice | context) in nats; see `choice_tokens` and `score`.

    >>> import tinyflash
    >>> model, context = tinyflash.load("default"), "To be, or not to"
    >>> choice_score(model, context, " be") > choice_score(model, context, " go")
    True
    """
    return score(model, *choice_tokens(model, context, choice))


def choice_tokens(model: Any, context: str, choice: str) -> tuple[list[int], int]:
    """The tokens of a context with its choice, and where the choice's begin.

    Both are encoded together, because a tokenizer may join them, and split at the number of tokens
    that the context has by itself; white space at the context's end goes to the choice. That is the
    rule of lm-evaluation-harness, with which the field's tables are made. Where it leaves nothing,
    because the two melt into fewer tokens, those that differ from the context's are the choice's.
    Where nothing stands before a choice, the token that begins a text does, or one that ends it.

    returns: list of int, and the number of its first token to be judged, at least 1
    raises : ValueError if the choice adds no token, or nothing stands before it

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> ids, first = choice_tokens(model, "To be ", "or not")  # the space goes to the choice
    >>> model.tokenizer.decode(ids[first:])
    ' or not'
    """
    words = context.rstrip()
    choice = context[len(words) :] + choice
    before, both, _ = framed(model, words + choice)
    alone = framed(model, words)[1] if words else []
    first = len(alone)
    if first >= len(both):
        first = common_length(alone, both)
    if first == len(both):
        raise ValueError(f"The choice {short(choice)} adds no token to its context.")
    if not before and first == 0:
        tokenizer = model.tokenizer
        before = [id for id in (tokenizer.bos_id, *tokenizer.eos_ids) if id is not None][:1]
    if not before and first == 0:
        raise ValueError(
            f"Nothing stands before the choice {short(choice)}: its context is empty and the model "
            "has no token that begins or ends a text; give it a context."
        )
    return before + both, len(before) + first


def score(model: Any, ids: Sequence[int], first: int) -> float:
    """Σ log p of the tokens from number `first` on, in nats.

    Where they do not fit the context all together, the first ones are left out, as many as must be.

    raises: ValueError if those to be judged alone do not fit

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> all_of_them = score(model, [5, 6, 7, 8], 1)
    >>> score(model, [5, 6, 7, 8], 3) > all_of_them  # fewer terms, each below 0
    True
    """
    most = model.config.context + 1  # the last token is predicted, never read
    cut = max(0, len(ids) - most)
    if first <= cut:
        raise ValueError(
            f"A choice of {len(ids) - first} tokens does not fit the model's context of "
            f"{model.config.context}; shorten it."
        )
    return float(np.sum(token_log_probabilities(model, ids[cut:], first - cut)))


def read_questions(path: str | Path) -> list[dict]:
    """Questions from a JSON-lines file: one object a line with context, choices, answer.

    raises: ValueError that names the first line that is not one

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     file = Path(directory) / "questions.jsonl"
    ...     written = file.write_text('{"context": "1 + 1 =", "choices": ["2", "3"], "answer": 0}')
    ...     read_questions(file)[0]["answer"]
    0
    """
    questions = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            question = json_value(line)
            fits = (
                isinstance(question["context"], str)
                and isinstance(question["choices"], list)
                and all(isinstance(choice, str) for choice in question["choices"])
                and question["answer"] in range(len(question["choices"]))
            )
        except (ValueError, KeyError, TypeError):
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
