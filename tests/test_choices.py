"""Multiple choice: which tokens are the choice's, what each is worth, and what ends no file."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_models import GPT2_CONFIG, LLAMA_CONFIG, OPT_CONFIG, write_model
from test_evaluate import log_probability

import tinyflash
from tinyflash.choices import choice_score, multiple_choice, read_questions
from tinyflash.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """OPT begins its texts with a token of its own, GPT-2 does not."""
    directory = tmp_path_factory.mktemp("models")
    return {
        name: tinyflash.load(write_model(directory / name, hf_config, seed=8), dtype="float64")
        for name, hf_config in (("opt", OPT_CONFIG), ("gpt2", GPT2_CONFIG))
    }


def summed(model, ids, first):
    """log p of the tokens from number `first` on, one by one."""
    return sum(log_probability(model, ids[:t], ids[t]) for t in range(first, len(ids)))


class Bigrams:
    """A model whose next byte depends on the last one alone; a token is a byte."""

    def __init__(self, likely):
        """likely: dict pair of bytes -> probability; the rest of 1 is shared by all others."""
        self.config = SimpleNamespace(context=20)
        self.tokenizer = self
        self.bos_id, self.eos_ids = None, ()
        self.p = np.full((256, 256), np.nan, dtype=np.float64)
        for first in range(256):
            known = {pair[1]: p for pair, p in likely.items() if pair[0] == first}
            self.p[first] = (1 - sum(known.values())) / (256 - len(known))
            self.p[first, list(known)] = list(known.values())

    def encode(self, text):
        return list(text.encode())

    def framed(self, text):
        return [], self.encode(text), []

    def new_cache(self, tokens):
        return SimpleNamespace()

    def logits(self, ids, cache):
        return np.log(self.p[ids]) + 5


def test_the_likeliest_choice_wins_and_per_byte_the_likeliest_letters():
    # After a: "b" with 0.2; "cdcd" with 0.4 · 0.6 · 0.6 · 0.6 = 0.086, but 0.54 a letter.
    model = Bigrams({b"ab": 0.2, b"ac": 0.4, b"cd": 0.6, b"dc": 0.6})
    assert choice_score(model, "a", "b") == pytest.approx(math.log(0.2))
    assert choice_score(model, "xa", "cdcd") == pytest.approx(math.log(0.4 * 0.6**3))
    questions = [
        {"context": "xa", "choices": ["b", "cdcd"], "answer": 0},
        {"context": "xa", "choices": ["cdcd", "b"], "answer": 1},
        {"context": "xa", "choices": ["cdcd", "b", "zz"], "answer": 0},
        {"context": "xa", "choices": ["b", "cdcd", "zz"], "answer": 2},
    ]
    seen = []
    result = multiple_choice(model, questions, lambda *numbers: seen.append(numbers))
    assert result.questions == 4
    assert result.accuracy == 2 / 4  # "b"
    assert result.normalized_accuracy == 1 / 4  # "cdcd"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bytes_are_counted_and_not_letters():
    # é is two bytes: log(0.2 · 0.9) / 2 = -0.86 a byte, against log 0.3 = -1.2.
    model = Bigrams({b"ab": 0.3, b"a\xc3": 0.2, b"\xc3\xa9": 0.9})
    result = multiple_choice(model, [{"context": "a", "choices": ["b", "é"], "answer": 1}])
    assert (result.accuracy, result.normalized_accuracy) == (0, 1)


@pytest.mark.parametrize(
    "context, choice, judged",
    [
        ("The river", " came", 1),
        ("The river", " knew every stone", 3),
        ("The riv", "er", 1),  # together they make one token, which is the choice's
        ("", "The river", 2),
    ],
)
def test_choice_score_judges_the_tokens_that_the_choice_brings(models, context, choice, judged):
    model = models["opt"]
    ids = model.encode(context + choice)
    exact = summed(model, ids, len(ids) - judged)
    assert choice_score(model, context, choice) == pytest.approx(exact, rel=1e-10)


def test_an_empty_context_is_the_token_that_begins_or_ends_a_text(models):
    model = models["gpt2"]  # it puts nothing before a text, and </s> ends one
    for text in ("The river", "The"):
        ids = model.encode(text)
        exact = sum(log_probability(model, [2, *ids[:t]], ids[t]) for t in range(len(ids)))
        for context in ("", "  ", "\n"):
            white = model.encode(context + text)
            exact = sum(
                log_probability(model, [2, *white[:t]], white[t]) for t in range(len(white))
            )
            assert choice_score(model, context, text) == pytest.approx(exact, rel=1e-10)
    with pytest.raises(ValueError, match="Nothing stands before the choice 'b'"):
        choice_score(Bigrams({}), "", "b")


def test_white_space_at_the_contexts_end_is_the_choices(models):
    for model in models.values():
        exact = choice_score(model, "The river", "  came back")
        assert choice_score(model, "The river ", " came back") == exact
        assert choice_score(model, "The river  ", "came back") == exact


def test_a_choice_that_merges_into_the_contexts_token(models):
    """Split at the context's own number of tokens, as in lm-evaluation-harness."""
    model = models["gpt2"]
    frame = model.tokenizer.framed
    for context, choice in (("The r", "iver came"), ("The riv", "er"), ("ri", "ver")):
        alone, both = frame(context)[1], frame(context + choice)[1]
        assert both[: len(alone)] != alone  # they melt
        shared = next(i for i in range(len(both)) if alone[i] != both[i])
        first = len(alone) if len(alone) < len(both) else shared
        ids = both if first else [2, *both]
        exact = summed(model, ids, max(1, first))
        assert choice_score(model, context, choice) == pytest.approx(exact, rel=1e-10)


def test_a_question_too_long_for_the_context_loses_its_beginning():
    likely = {b"ab": 0.9, b"bb": 0.5, b"ca": 0.7}
    model = Bigrams(likely)
    for length in (20, 21):  # the last token is predicted, never read
        assert choice_score(model, "a" * (length - 2), "bb") == pytest.approx(math.log(0.9 * 0.5))
    assert choice_score(model, "c" + "a" * 30, "bb") == pytest.approx(math.log(0.9 * 0.5))
    assert choice_score(model, "caa", "b" * 20) == pytest.approx(math.log(0.9 * 0.5**19))
    with pytest.raises(ValueError, match="choice of 21 tokens does not fit the model's context of"):
        choice_score(model, "caa", "b" * 21)
    asked = [{"context": "a" * n, "choices": ["b", "c"], "answer": 0} for n in (5, 20, 21, 99)]
    assert multiple_choice(model, asked).shortened == 2


@pytest.mark.parametrize("context", ["a", "", "a "])
def test_a_choice_that_adds_nothing_is_refused(context):
    with pytest.raises(ValueError, match="adds no token"):
        choice_score(Bigrams({}), context.strip(), "")


# No question ends the file.


def test_questions_that_cannot_be_judged_are_passed_over_and_named():
    model = Bigrams({b"ab": 0.9})
    good = {"context": "a", "choices": ["b", "c"], "answer": 0}
    bad = [
        {"context": "a", "choices": ["b", ""], "answer": 0},
        {"context": "", "choices": ["b", "c"], "answer": 0},
        {"context": "a", "choices": ["b", "c" * 30], "answer": 0},
        {"context": "a", "choices": ["b", "\ud800"], "answer": 0},
    ]
    seen = []
    result = multiple_choice(model, [good, *bad, good], lambda *numbers: seen.append(numbers))
    assert (result.questions, result.accuracy) == (6, 1.0)
    assert sorted(result.not_judged) == [2, 3, 4, 5] and len(seen) == 6
    assert all("\n" not in why for why in result.not_judged.values())
    with pytest.raises(
        ValueError, match="No question could be judged. Question 1: .*adds no token"
    ):
        multiple_choice(model, bad)


def test_a_question_whose_logits_are_no_numbers_is_passed_over(tmp_path):
    model = tinyflash.load(write_model(tmp_path, LLAMA_CONFIG, seed=8), dtype="float64")
    W = model.weights["embed.weight"].dense().astype(np.float64)
    (broken,) = model.tokenizer.encode("!", add_special_tokens=False)
    W[broken] = np.nan
    model = replace(model, weights=model.weights | {"embed.weight": W})
    asked = [
        {"context": context, "choices": [" came", " knew"], "answer": 0}
        for context in ("The river", "The river!", "The stone")
    ]
    result = multiple_choice(model, asked)
    assert list(result.not_judged) == [2] and "NaN" in result.not_judged[2]
    assert result.accuracy in (0, 0.5, 1)


def test_the_command_names_what_it_passed_over(tmp_path, capsys):
    folder = write_model(tmp_path / "model", OPT_CONFIG, seed=8)
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"choices": ["", " sang"]}) + "\n")
    assert main(["evaluate", str(folder), "--choices", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["not_judged"]) == ["2"] and json.loads(out)["questions"] == 2
    assert "1 of 2 questions could not be judged" in err and "Question 2" in err


# Question files.

GOOD = {"context": "The river", "choices": [" ran", " sang"], "answer": 1}


def test_read_questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n  \n" + json.dumps(GOOD | {"answer": 0, "id": 7}))
    assert read_questions(path) == [GOOD, GOOD | {"answer": 0, "id": 7}]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        '"text"',
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        json.dumps({"context": "a", "choices": ["b"]}),
        json.dumps(GOOD | {"context": 3}),
        json.dumps(GOOD | {"choices": [" ran", 3]}),
        json.dumps(GOOD | {"choices": " ran"}),
        json.dumps(GOOD | {"choices": []}),
        json.dumps(GOOD | {"choices": 3}),
        json.dumps(GOOD | {"answer": 2}),
        json.dumps(GOOD | {"answer": -1}),
        json.dumps(GOOD | {"answer": "1"}),
        json.dumps(GOOD | {"answer": None}),
    ],
)
def test_the_first_bad_line_is_named(tmp_path, line):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 3: each line must be") as refused:
        read_questions(path)
    assert "\n" not in str(refused.value)


def test_no_question_is_an_error(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(path)
    with pytest.raises(FileNotFoundError):
        read_questions(tmp_path / "elsewhere.jsonl")
