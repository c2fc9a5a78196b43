"""After any exception at any point a Model is right or says that it cannot be used.

Here at a few chosen points; at every line and at random moments in tests/campaign/.
"""

import sys

import numpy as np
import pytest
from helpers_interrupts import NEW, PACKAGE, PROMPTS, Subject, Trace, write_stores

import tinyflash
from tinyflash.matrices import half
from tinyflash.speculative.draft_model import DraftModel

# Between what was done and what counts it, at the end of a `with`, and half-way through a change.
POINTS = [
    ("flash/reading/read_queue.py", "system_call", "return"),
    ("flash/reading/reader.py", "_read", "return"),
    ("flash/reading/read_queue.py", "close", "call"),
    ("flash/neuron_cache.py", "drop", "return"),
    ("flash/neuron_cache.py", "append", "return"),
    ("flash/neuron_cache.py", "find", "return"),
    ("flash/window.py", "use", "return"),
    ("flash/window.py", "suppose", "return"),
    ("flash/window.py", "keep", "call"),
    ("flash/read_ahead.py", "begin", "return"),
    ("flash/read_ahead.py", "end", "call"),
    ("flash/windowed.py", "_begin_reading", "return"),
    ("flash/engine.py", "begin", "return"),
    ("flash/engine.py", "end", "return"),
    ("turns.py", "__exit__", "call"),
    ("workers.py", "__exit__", "call"),
    ("kv_cache.py", "append", "return"),
    ("kv_cache.py", "advance", "return"),
    ("kv_cache.py", "keep", "return"),
    ("kv_cache.py", "truncate", "return"),
    ("model.py", "logits", "return"),
    ("speculative/draft_model.py", "_read", "return"),
    ("generate.py", "_step", "return"),
]
# Lines, by what they say.
LINES = [
    ("flash/neuron_cache.py", "self.row_of[stale] = -1"),
    ("flash/neuron_cache.py", "self.num_used = left"),
    ("flash/neuron_cache.py", "self.row_of[neurons] = np.arange("),
    ("flash/window.py", "self.k += tokens"),
    ("flash/read_ahead.py", "self.cache.append(arrived"),
    ("flash/windowed.py", "self.cache.append(missing"),
    ("flash/reading/read_queue.py", "results[ended"),
    ("speculative/draft_model.py", "self.cached = ids[:kept]"),
    ("speculative/draft_model.py", "self.cached = ids"),
]


def line_of(file, text):
    lines = (PACKAGE / file).read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if line.strip().startswith(text)][-1:]
    return file, number


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield write_stores(folder, ["small"])


@pytest.fixture(scope="module", params=["all draft", "hybrid none", "dense ngram"])
def subject(request, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "TILE_BYTES", 4096)  # several tiles, so that workers share them
        yield Subject(folder, *request.param.split(), brief=True)


def test_a_model_is_right_after_an_interruption(subject):
    assert subject.judge() == "right"
    trace = Trace()
    trace.record(subject.use)
    counted = trace.calls + trace.lines
    assert subject.judge() == "right"
    lines = [line_of(*line) for line in LINES]
    points = {("call", point): counted[point] for point in POINTS}
    points |= {("line", line): counted[line] for line in lines}
    reached = set()
    for (kind, point), hits in points.items():
        for hit in {hits // 2, hits} - {0}:
            if trace.interrupt(subject.use, **{kind: (*point, hit)}):
                reached.add(point)
                assert subject.judge() == "right", (point, hit)
    assert len(reached) >= {"all": 26, "hybrid": 10, "dense": 6}[subject.mode]


@pytest.mark.parametrize("mode", ["dense", "hybrid", "predictor", "window", "all"])
def test_a_tap_that_fails_harms_nothing(folder, mode):
    subject = Subject(folder, mode, "none")
    model, caches = subject.model, [subject.right.new_cache(), subject.model.new_cache()]
    for one, cache in zip((subject.right, model), caches, strict=True):
        one.logits(PROMPTS[0][:2], cache)
    for at in ("layers.0.attn.q", "layers.0.ffn.out", "layers.1.resid_mid", "logits"):

        def tap(name, tensor, at=at):
            if name == at:
                raise RuntimeError(at)

        with pytest.raises(RuntimeError, match=at):
            model.logits(PROMPTS[0][2:], caches[1], tap)
        assert caches[1].length == 2, "tokens are cached that nobody was told of"
    expected = subject.right.logits(PROMPTS[0][2:], caches[0])
    logits = model.logits(PROMPTS[0][2:], caches[1])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_a_pass_whose_logits_mean_nothing_leaves_the_cache(folder):
    model = Subject(folder, "dense", "none").model
    cache = model.new_cache()
    model.logits([3, 4], cache)
    whole = model.weights["final_norm.weight"]
    model.weights["final_norm.weight"] = np.full_like(whole, np.inf)
    with pytest.raises(ValueError, match="Inf or NaN"):
        model.logits([5], cache)
    assert cache.length == 2
    model.weights["final_norm.weight"] = whole
    after, expected = model.logits([5], cache), model.logits([3, 4, 5])
    np.testing.assert_allclose(after[0], expected[2], rtol=0, atol=1e-4)


def test_a_text_that_was_interrupted_says_so(folder):
    model = Subject(folder, "hybrid", "none").model
    text = model.generate(PROMPTS[0], temperature=0, max_new_tokens=NEW)
    next(text)
    known = list(text.ids)
    keep, model.logits = model.logits, lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        list(text)
    model.logits = keep
    for _ in range(2):
        with pytest.raises(ValueError, match="This text was interrupted .* generate it again"):
            next(text)
    assert text.ids == known
    whole = model.generate(PROMPTS[0], temperature=0, max_new_tokens=NEW)
    assert "".join(whole) == whole.text and list(whole) == []  # at its end it just ends


def test_an_answer_ends_where_the_next_question_begins(folder):
    """Both would write into one cache."""
    model = tinyflash.load(folder / "small")
    chat = model.chat()
    first = chat.say("one", temperature=0, max_new_tokens=20)
    next(first)
    second = chat.say("two", temperature=0, max_new_tokens=5)
    with pytest.raises(ValueError, match="interrupted"):
        next(first)
    list(second)
    alone = model.generate(second.prompt_ids, temperature=0, max_new_tokens=5)
    list(alone)
    assert second.ids == alone.ids


def test_a_draft_model_goes_by_what_its_cache_holds(folder, monkeypatch):
    """Ctrl-C comes after tokens went from its cache and before they went from its list."""
    model = tinyflash.load(folder / "small")
    drafter, long, short = DraftModel(model, model, length=2), [2, 50, 60, 70, 80, 90], [2, 7]
    expected = drafter.propose(long).tokens.tolist()
    real = drafter.cache.truncate

    def interrupted(length):
        real(length)
        raise KeyboardInterrupt

    monkeypatch.setattr(drafter.cache, "truncate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drafter.propose(short)
    monkeypatch.undo()
    assert drafter.propose(long).tokens.tolist() == expected


@pytest.mark.parametrize("do", ["say", "clear"])
def test_a_conversation_is_whole_at_every_bytecode(folder, do):
    """It is the one before or the one after; never the answer of one to the question of another."""
    chat = tinyflash.load(folder / "small").chat()
    settings = {"temperature": 0, "max_new_tokens": 1}

    def interrupted_at(number):
        seen = 0

        def trace(frame, event, arg):
            nonlocal seen
            frame.f_trace_opcodes = True
            seen += event == "opcode"
            if seen == number:
                raise KeyboardInterrupt
            return trace

        code = getattr(type(chat), do).__code__
        sys.settrace(lambda frame, event, arg: trace if frame.f_code is code else None)
        try:
            chat.say("two", **settings) if do == "say" else chat.clear()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    states = set()
    for number in range(1, 1000):
        chat.clear()
        list(chat.say("one", **settings))
        before = chat.messages
        after = [*before, {"role": "user", "content": "two"}, {"role": "assistant", "content": ""}]
        again = interrupted_at(number)
        assert chat.messages in (before, after if do == "say" else []), number
        states.add(len(chat.messages))
        if not again:
            break
    assert number > 20 and len(states) == 2
