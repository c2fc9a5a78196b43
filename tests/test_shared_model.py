"""One Model used by several threads, by texts in turn, by a forked child; and many that go."""

import gc
import os
import sys
import threading

import pytest
from helpers_interrupts import NEW, PROMPTS, Subject, write_stores
from test_turns import in_a_child

import tinyflash
from tinyflash.flash import engine
from tinyflash.matrices import half
from tinyflash.speculative.tree import chain

MODES = ("dense", "hybrid", "predictor", "all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(half, "TILE_BYTES", 4096)  # several tiles, so that workers share them
        yield write_stores(folder, ["small"])


@pytest.fixture
def often():
    """Threads that give way to one another all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*functions):
    """What each of them returned, in a thread of its own; an exception as its text."""
    said = [None] * len(functions)

    def work(i):
        try:
            said[i] = functions[i]()
        except Exception as error:
            said[i] = repr(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return said


def text_of(subject, i):
    made = subject.model.generate(PROMPTS[i % len(PROMPTS)], **subject.settings(NEW))
    list(made)
    return made.ids


@pytest.mark.parametrize(
    "subject", ["dense none", "hybrid none", "predictor none", "all ngram", "all draft"]
)
def test_threads_may_share_a_model(folder, often, subject):
    subject = Subject(folder, *subject.split())
    expected = [subject.expected(PROMPTS[i % len(PROMPTS)], NEW) for i in range(8)]
    said = together(*(lambda i=i: text_of(subject, i) for i in range(8)))
    assert said == expected
    assert text_of(subject, 0) == expected[0]


def test_what_a_tree_keeps_is_known_by_its_cache(folder):
    """Another text's pass comes between a tree and what is kept of it."""
    subject = Subject(folder, "all", "ngram")
    model = subject.model
    kept = []
    for layer in model.flash.feed_forwards:
        layer.keep = lambda path, real=layer.keep: (kept.append(path), real(path))
    caches = [model.new_cache() for _ in range(2)]
    trees = [chain([9, 20, 21, 22, 23]), chain([9, 20])]
    for cache, tree in zip(caches, trees, strict=True):
        model.logits(PROMPTS[0], cache)
        model.logits(tree.tokens, cache, tree=tree)
    model.keep(caches[0], 6, [0, 1, 2, 3])  # the second tree has no node 3
    assert kept == [] and caches[0].length == 10
    model.keep(caches[1], 6, [0, 1])
    assert kept == [[0, 1]] * 2


def test_texts_may_take_turns_and_be_left(folder):
    subject = Subject(folder, "all", "draft")
    texts = [subject.model.generate(p, **subject.settings(NEW)) for p in (*PROMPTS, PROMPTS[0])]
    next(texts[-1])  # and nobody goes on with it
    while left := [text for text in texts[:-1] if text.stop_reason is None]:
        for text in left:
            next(text, None)
    for prompt, text in zip(PROMPTS, texts, strict=False):
        assert text.ids == subject.expected(prompt, NEW)


def test_texts_that_share_a_drafter_draw_as_they_would_alone(folder):
    """A draft model draws by the settings and the seed of the text that it drafts for."""
    subject = Subject(folder, "dense", "draft")
    ways = [{"temperature": 1.0, "seed": 1}, {"temperature": 0.5, "seed": 2, "top_k": 3}]

    def begin(way):
        return subject.model.generate(PROMPTS[0], **(subject.settings(8) | way))

    alone = [begin(way) for way in ways]
    for text in alone:
        list(text)
    by_turns = [begin(way) for way in ways]
    while any(text.stop_reason is None for text in by_turns):
        for text in by_turns:
            next(text, None)
    assert [text.ids for text in by_turns] == [text.ids for text in alone]


@pytest.mark.parametrize("mode", ["hybrid", "all"])
def test_a_tap_that_asks_for_a_pass_is_told(folder, mode):
    subject = Subject(folder, mode, "none")
    expected = subject.right.logits(PROMPTS[0])

    def tap(name, tensor):
        if name == "layers.1.attn.q":
            subject.model.logits([3])

    with pytest.raises(ValueError, match="This model is at work already"):
        subject.model.logits(PROMPTS[0], tap=tap)
    assert abs(subject.model.logits(PROMPTS[0]) - expected).max() < 1e-4


def test_models_of_one_store_do_not_wait_for_one_another(folder):
    """Each holds its pass open until the other's is open, too."""
    both = threading.Barrier(2, timeout=20)
    models = [Subject(folder, "hybrid", "none").model for _ in range(2)]

    def tap(name, tensor):
        if name == "layers.0.attn.q":
            both.wait()

    one, other = together(*(lambda m=m: m.logits(PROMPTS[0], tap=tap) for m in models))
    assert (one == other).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("mode", MODES)
def test_a_forked_child_writes_the_right_text(folder, mode):
    subject = Subject(folder, mode, "none")
    expected = [subject.expected(prompt, NEW) for prompt in PROMPTS]

    def texts():
        return [text_of(subject, i) for i in range(3)] == expected

    assert in_a_child(texts) == "True"  # nothing is allocated yet
    assert texts()
    begun = subject.model.generate(PROMPTS[0], **subject.settings(NEW))
    next(begun)
    assert in_a_child(lambda: (texts(), "".join(begun) is not None, begun.ids == expected[0])) == (
        "(True, True, True)"
    )
    list(begun)
    assert begun.ids == expected[0] and texts()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("mode", ["hybrid", "all"])
def test_a_child_forked_during_a_pass_of_another_thread(folder, mode):
    subject = Subject(folder, mode, "none")
    expected = subject.expected(PROMPTS[0], NEW)
    inside, leave = threading.Event(), threading.Event()

    def tap(name, tensor):
        if name == "layers.1.attn.q":
            inside.set()
            leave.wait(timeout=30)

    other = threading.Thread(target=subject.model.logits, args=(PROMPTS[1],), kwargs={"tap": tap})
    other.start()
    inside.wait(timeout=30)
    try:
        assert in_a_child(lambda: text_of(subject, 0) == expected) == "True"
    finally:
        leave.set()
        other.join()
    assert text_of(subject, 0) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_in_the_middle_of_a_pass_is_told(folder):
    """What was to be read ahead is read in the parent only."""
    subject = Subject(folder, "all", "none")
    expected, said = subject.expected(PROMPTS[0], NEW), []

    def tap(name, tensor):
        if name == "layers.0.ffn.out" and ahead.job is not None and not said:
            said.append("forked")
            child = os.fork()
            if child:
                said.append(os.waitpid(child, 0)[1])

    ahead = subject.model.flash.feed_forwards[1].ahead
    parent = os.getpid()
    try:
        for token in range(3, 50):
            subject.model.logits([token], tap=tap)
    except ValueError as error:
        os._exit(0 if "begin it again" in str(error) and text_of(subject, 0) == expected else 7)
    finally:
        if os.getpid() != parent:
            os._exit(8)
    assert said == ["forked", 0] and text_of(subject, 0) == expected


def test_models_that_are_gone_leave_nothing(folder, monkeypatch):
    queues, real = [], engine.open_queue
    monkeypatch.setattr(engine, "open_queue", lambda: queues.append(real()) or queues[-1])

    def open_one():
        model = tinyflash.load(folder / "small.flash", memory="120%", mode="all")
        model.logits([2, 5])

    def used():
        gc.collect()
        return len(os.listdir("/dev/fd")), threading.active_count()

    open_one()
    contexts = [queue and queue.context for queue in queues]
    queues.clear()
    before = used()
    for _ in range(10):
        open_one()
        contexts += [queue and queue.context for queue in queues]
        queues.clear()
    after = used()
    assert after[0] <= before[0] and after[1] <= before[1] + 1
    assert len(contexts) == 11 and not any(context and context.value for context in contexts)
