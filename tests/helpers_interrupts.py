"""A model that is interrupted wherever one likes, and then must still be right or refuse.

folder = write_stores(tmp_path)
subject = Subject(folder, "all", "ngram")
trace = Trace(main=True)
trace.record(subject.use)                 # what can be interrupted: trace.lines, trace.events
trace.interrupt(subject.use, line=("flash/engine.py", 120, 1))
subject.judge()                           # "right", "refused: …" or "WRONG …"
"""

import sys
import threading
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
from helpers_models import CONFIGS, write_model
from test_flash_model import with_predictors
from test_redrafter import random_drafter

import tinyflash
from tinyflash import workers
from tinyflash.flash import engine, read_ahead
from tinyflash.flash.reading.read_queue import open_queue
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store
from tinyflash.generate import greedy
from tinyflash.speculative.draft_model import DraftModel
from tinyflash.speculative.drafter_files import DrafterConfig
from tinyflash.speculative.ngram import PromptLookup
from tinyflash.speculative.redrafter import ReDrafter, embedder

PACKAGE = Path(tinyflash.__file__).parent
# A generation's own code: files that a model executes, token by token.
WATCHED = ("flash/", "speculative/", "matrices/", "model.py", "generate.py", "chat.py",
           "kv_cache.py", "transformer.py", "sampling.py", "stopping.py", "workers.py",
           "turns.py")  # fmt: skip
MODES = ("dense", "naive", "hybrid", "predictor", "window", "all")
DRAFTERS = ("none", "ngram", "draft", "redrafter")
PROMPTS = ([2, 50, 60, 70, 50, 60], [2, 9, 9, 200, 31], [2, 120])
NEW = 6  # tokens


def write_stores(directory, names=("small", "wide")):
    """Random models with predictors: rows of an odd size, and rows that are whole blocks."""
    small = dict(CONFIGS["llama"], hidden_act="relu")
    configs = {"small": small, "wide": dict(small, hidden_size=2048, intermediate_size=64)}
    for name in names:
        folder = write_model(directory / name, configs[name], seed=5, chat=True)
        with_predictors(open_store(convert(folder, directory / f"{name}.flash")))
    return directory


class Subject:
    """One Model that is used again and again, and another one that knows what is right."""

    def __init__(self, folder, mode, drafter, name="small", queue=True, brief=False):
        """mode : one of MODES;  drafter : one of DRAFTERS;  queue : whether Linux's reads

        brief : use it for fewer tokens, and judge it by one text
        """
        self.new, self.prompts = (3, PROMPTS[:1]) if brief else (NEW, PROMPTS)
        self.folder, self.mode, self.name, self.queue = folder, mode, name, queue
        self.model, self.right = self.opened(), self.opened()
        self.drafter = self.made(drafter)
        self.texts, self.answers = {}, {}
        self.chat, self.generation = self.model.chat(), None

    def opened(self):
        """A Model; its layers are read when it is first used."""
        if self.mode == "dense":
            return tinyflash.load(self.folder / self.name)
        store, predicted = self.folder / f"{self.name}.flash", ("predictor", "window", "all")
        memory = "120%" if self.mode in predicted and self.name == "small" else "90%"
        with mock.patch.object(engine, "open_queue", open_queue if self.queue else lambda: None):
            return tinyflash.load(store, memory=memory, mode=self.mode, k=2)

    def made(self, drafter):
        """A drafter, the same object for every text, so that what it remembers is tried too."""
        if drafter == "ngram":
            return PromptLookup(length=4)
        if drafter == "draft":  # itself of flash, and its guesses are good but not always right
            draft = tinyflash.load(self.folder / f"{self.name}.flash", memory="85%", mode="hybrid")
            return DraftModel(self.model, draft, length=3)
        if drafter == "redrafter":
            config = self.model.config
            sizes = DrafterConfig(config.vocab_size, config.width, 2 * config.width, 1)
            network = random_drafter(sizes)
            embed = embedder(self.model.config, self.model.weights, network)
            return ReDrafter(network, embed, width=2, length=3)
        return None

    def settings(self, new):
        """Of a text of at most so many tokens."""
        return {"max_new_tokens": new, "temperature": 0, "drafter": self.drafter}

    def use(self):
        """What is interrupted: a text, and one turn of a conversation."""
        self.generation = self.model.generate(PROMPTS[0], **self.settings(self.new))
        list(self.generation)
        self.generation = None
        list(self.chat.say("the river", **self.settings(2)))

    def expected(self, prompt, new):
        """The right continuation of some tokens, up to an end of text."""
        key = tuple(prompt), new
        if key not in self.texts:
            ids = greedy(self.right, prompt, new)
            ends = [i for i, token in enumerate(ids) if token in self.right.eos_ids]
            self.texts[key] = ids[: ends[0]] if ends else ids
        return self.texts[key]

    def judge(self):
        """Whether everything that can be used again is right, or says that it cannot be."""
        said = []
        for judged in (self.judge_the_text, self.judge_texts, self.judge_the_chat):
            try:
                said.append(judged())
            except (ValueError, OSError) as error:
                said.append(f"refused: {error}" if "again" in str(error) else f"WRONG {error!r}")
            except Exception as error:
                said.append(f"WRONG {error!r}")
        wrong = [one for one in said if one.startswith("WRONG")]
        refused = [one for one in said if one.startswith("refused")]
        if wrong:
            self.model = self.opened()
            self.chat = self.model.chat()
        return (wrong or refused or ["right"])[0]

    def judge_the_text(self):
        """The text that was interrupted: what it has is right, and it does not just end."""
        made, self.generation = self.generation, None
        if made is None:
            return "right"
        expected = self.expected(PROMPTS[0], self.new)
        if made.ids != expected[: len(made.ids)]:
            return f"WRONG ids of the interrupted text: {made.ids} of {expected}"
        try:
            list(made)
        except ValueError as error:
            return "right" if "again" in str(error) else f"WRONG {error!r}"
        if made.ids != expected or made.text != self.model.tokenizer.decode(expected):
            return f"WRONG end of the interrupted text: {made.ids} of {expected}"
        return "right"

    def judge_texts(self):
        """Three texts, and logits, by the same Model and the same drafter."""
        for prompt in self.prompts:
            made = self.model.generate(prompt, **self.settings(self.new))
            list(made)
            if made.ids != self.expected(prompt, self.new):
                return f"WRONG text {made.ids} instead of {self.expected(prompt, self.new)}"
        if "logits" not in self.texts:
            self.texts["logits"] = self.right.logits(PROMPTS[0])
        away = np.abs(self.model.logits(PROMPTS[0]) - self.texts["logits"]).max()
        return "right" if away < 1e-4 else f"WRONG logits by {away}"

    def judge_the_chat(self):
        """The conversation goes on from what was said; then a new one begins."""
        said = self.chat.messages
        if said:
            if [message["role"] for message in said] != ["user", "assistant"]:
                return f"WRONG conversation {said}"
            made = self.chat.say("a stone", **self.settings(2))
            list(made)
            expected = self.expected(made.prompt_ids, 2)
            if made.ids != expected:
                return f"WRONG answer {made.ids} instead of {expected}"
        self.chat = self.model.chat()
        return "right"


class Trace:
    """Counts the events of some code, line by line, or raises KeyboardInterrupt at one of them.

    main : whether this thread is looked at; else the package's other threads, which must begin
           after this was made
    lines: Counter of (file, line);  events: number of bytecodes
    calls: Counter of (file, function, "call" or "return")
    """

    def __init__(self, main=True):
        self.main, self.on, self.hit = main, False, False
        self.line = self.event = self.call = None
        self.watched = {}
        self.forget()
        if not main:
            threading.settrace(self.called)

    def forget(self):
        self.lines, self.events, self.calls = Counter(), 0, Counter()

    def record(self, run):
        """Count what `run` does."""
        self.forget()
        self._traced(run)
        return self.lines, self.events

    def interrupt(self, run, line=None, event=None, call=None):
        """Raise in `run`; whether that point was reached.

        line : (file, line, which hit);  event : a number
        call : (file, function, "call" or "return", which hit): before its first line, after its
               last; what it was to return is lost
        """
        self.line, self.event, self.call, self.hit = line, event, call, False
        self.forget()
        if not self.main:  # a thread that has raised is not traced any more
            workers.pool.cache_clear()
            read_ahead.background.cache_clear()
        try:
            self._traced(run)
        except KeyboardInterrupt:
            pass
        finally:
            self.line = self.event = self.call = None
        return self.hit

    def _traced(self, run):
        self.on = True
        if self.main:
            sys.settrace(self.called)
        try:
            run()
        finally:
            sys.settrace(None)
            self.on = False

    def called(self, frame, event, arg):
        if not self.on:
            return None
        file = frame.f_code.co_filename
        if file not in self.watched:
            inside = Path(file).is_relative_to(PACKAGE)
            name = str(Path(file).relative_to(PACKAGE)) if inside else ""
            self.watched[file] = name if name.startswith(WATCHED) else None
        if self.watched[file] is None:
            return None
        frame.f_trace_opcodes = self.line is None and self.call is None
        self.count_call(frame, event)
        return self.stepped

    def count_call(self, frame, event):
        place = self.watched[frame.f_code.co_filename], frame.f_code.co_name, event
        self.calls[place] += 1
        if self.call == (*place, self.calls[place]):
            self.raise_now()

    def stepped(self, frame, event, arg):
        if not self.on:
            return self.stepped
        if event == "line":
            place = self.watched[frame.f_code.co_filename], frame.f_lineno
            self.lines[place] += 1
            if self.line == (*place, self.lines[place]):
                self.raise_now()
        elif event == "return":
            self.count_call(frame, event)
        elif event == "opcode":
            self.events += 1
            if self.event == self.events:
                self.raise_now()
        return self.stepped

    def raise_now(self):
        self.hit, self.on = True, False
        raise KeyboardInterrupt
