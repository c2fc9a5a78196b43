"""What speculation saves: tokens a step, and seconds a token against plain decoding in one run.

    tinyflash bench speculative MODEL --drafters ngram,redrafter,replay

From each of a few prompts the model goes on greedily, first by plain decoding, then with each
drafter in turn, so that what the machine does meanwhile falls on all alike. No text ends early.

A replay is measured while the model is fed a recorded text in place of its own: every pass costs
what it costs, and how many drafts are accepted is known beforehand. Synthetic models, which have
nothing to say, are measured so.
"""

import dataclasses
import itertools
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np

import tinyflash
from tinyflash.checkpoint.sources import embedded
from tinyflash.files import read_text
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.engine import refuse_idle_window
from tinyflash.generate import Generation
from tinyflash.progress import quiet
from tinyflash.speculative.counts import StepCounts
from tinyflash.speculative.redrafter import ReDrafter
from tinyflash.speculative.replay import Replay, expected_tokens


class Fed:
    """A model that says a recorded text, at the cost of finding out what it would say itself."""

    def __init__(self, model, text):
        """text : ints, from position 0 on, at least one more than will be computed"""
        self.model = model
        self.text = np.array(text, dtype=np.int64)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def logits(self, ids, cache=None, tap=None, tree=None):
        """Model.logits, replaced by a 1 at the recorded next token and 0 elsewhere."""
        start = 0 if cache is None else cache.length
        logits = np.zeros_like(self.model.logits(ids, cache, tap, tree))
        rows = np.arange(len(ids), dtype=np.int64)
        positions = start + (rows if tree is None else tree.depths)
        logits[rows, self.text[positions + 1]] = 1
        return logits


@dataclasses.dataclass
class Run:
    """One way of drafting, over all prompts.

    drafter : what the tables call it;  setting : its width, alpha or length, for JSON
    fed     : whether the model was fed a recorded text
    counts  : summed over the prompts;  seconds : for new tokens, drafting included
    spent   : TokenCounters of the passes that made them, with flash
    parted  : where its text left that of plain decoding: prompt, token, and by how much the
              likeliest token led there
    """

    drafter: str
    setting: dict
    fed: bool
    counts: StepCounts = dataclasses.field(default_factory=StepCounts)
    seconds: float = 0.0
    spent: TokenCounters = dataclasses.field(default_factory=TokenCounters)
    parted: list = dataclasses.field(default_factory=list)

    def add(self, made):
        """Count a Generation that has run to its end."""
        pairs = zip(dataclasses.astuple(self.counts), dataclasses.astuple(made.counts), strict=True)
        self.counts = StepCounts(*(a + b for a, b in pairs))
        self.seconds += made.seconds
        self.spent = self.spent + made.spent

    def to_json(self, plain):
        """A dict; `plain` is the run that it is compared with."""
        tokens = self.counts.tokens
        per_token = self.seconds / tokens
        alpha = self.setting.get("alpha")
        return {
            "drafter": self.drafter,
            **self.setting,
            "fed": self.fed,
            **vars(self.counts),
            "tokens": tokens,
            "tokens_per_step": self.counts.tokens_per_step,
            "tokens_per_step_expected": None
            if alpha is None
            else expected_tokens(alpha, self.setting["length"]),
            "seconds": self.seconds,
            "seconds_per_token": per_token,
            "speedup": plain.seconds / plain.counts.tokens / per_token,
            "flash_bytes_per_token": self.spent.bytes_read / tokens,
            "flash_io_ms_per_token": self.spent.io_ms / tokens,
            "flash_memory_ms_per_token": self.spent.memory_ms / tokens,
            "flash_compute_ms_per_token": self.spent.compute_ms / tokens,
            "parted": self.parted,
        }


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    drafters : words with commas, as for --drafter, and `replay`; None for those that there are
    widths   : beams of redrafter, numbers or a text with commas
    alphas   : how often a replay is right, numbers or a text with commas
    length   : of drafts, or None for as long as each drafter likes
    tokens   : new ones for each prompt;  prompt : tokens of each prompt;  prompts : how many
    text     : file where the prompts are from, or None for the embedded held-out text
    """

    drafters: str | None = None
    widths: Sequence[int] | str = (1, 2, 4, 16, 64)
    alphas: Sequence[float] | str = (0, 0.25, 0.5, 0.75, 1)
    length: int | None = None
    tokens: int = 64
    prompt: int = 32
    prompts: int = 8
    text: str | None = None

    def __post_init__(self):
        if min(self.tokens - 1, self.prompt, self.prompts) < 1:
            raise ValueError("The benchmark takes at least 1 prompt of 1 token, and 2 new tokens.")
        for name, kind in (("widths", int), ("alphas", float)):
            object.__setattr__(self, name, numbers(getattr(self, name), kind, f"--{name}"))


def bench_speculative(model, *, memory=None, mode=None, window=None, progress=quiet, **settings):
    """Measure what each drafter saves.

    model, memory, mode, window : as for `tinyflash.load`, where the window is called k
    settings : of Settings, as drafters="ngram"
    returns  : dict
    raises   : ValueError or OSError, one sentence, for bad input
    """
    wanted, name = Settings(**settings), str(model)
    model = tinyflash.load(model, memory=memory, mode=mode, k=window, progress=progress)
    if model.flash:
        refuse_idle_window(model.flash, window)
    model = dataclasses.replace(model, eos_ids=frozenset())
    texts = pieces(model, wanted)
    drafters, fed = drafters_of(model, wanted)
    model.logits(texts[0][:2])  # what is done once is done before
    groups = [[Run(*one[:2], False) for one in drafters], [Run(*one[:2], True) for one in fed]]
    total = len(texts) * (len(drafters) + len(fed))
    with progress("Speculation", "texts") as report:
        done = 0
        for named, runs in zip((drafters, fed), groups, strict=True):
            for number, text in enumerate(texts):
                report(done, total)
                measure(model, text, number, wanted, named, runs)
                done += len(runs)
    config_file = Path(model.path) / "config.json"
    synthetic = config_file.is_file() and '"_synthetic"' in read_text(config_file)
    return {
        "title": f"speculation: {name}" + (" (synthetic weights)" if synthetic else ""),
        "synthetic": synthetic,
        "model": name,
        "memory": memory,
        "mode": model.flash.mode if model.flash else None,
        "prompts": wanted.prompts,
        "prompt_tokens": wanted.prompt,
        "new_tokens": wanted.tokens,
        "machine": f"{platform.node()}, {platform.system()} {platform.machine()}",
        "date": date.today().isoformat(),
        "runs": [run.to_json(group[0]) for group in groups for run in group],
    }


def numbers(given, kind, option):
    """Numbers, which a text may hold with commas; ValueError if one is none."""
    try:
        return tuple(kind(word) for word in (given.split(",") if isinstance(given, str) else given))
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas, not {given!r}.") from None


def drafters_of(model, wanted):
    """What is measured: (name, setting, function (text, its number) -> drafter), plain first.

    returns: those that draft the model's own text; those that draft a text that it is fed
    """
    own = [("none", {}, lambda *text: None)]
    words = wanted.drafters.split(",") if wanted.drafters else ["ngram", "redrafter", "replay"]
    for word in map(str.strip, words):
        if word in ("none", "replay"):
            continue
        length = None if word == "ngram" else wanted.length
        try:
            drafter = model.drafter(word, length=length)
        except (ValueError, OSError):
            if wanted.drafters:
                raise
            continue  # nobody asked for it
        if isinstance(drafter, ReDrafter):
            for width in wanted.widths:
                wide = dataclasses.replace(drafter, width=width)
                setting = {"width": width, "length": drafter.length}
                own.append((f"{word}, width {width}", setting, lambda *text, wide=wide: wide))
        else:
            own.append((word, {"length": drafter.length}, lambda *text, made=drafter: made))
    fed = replays(model, wanted) if "replay" in map(str.strip, words) else []
    return (own if len(own) > 1 else []), fed


def replays(model, wanted):
    """The replays to be measured, plain decoding first; see `drafters_of`."""
    length, size = wanted.length or 4, model.config.vocab_size
    fed = [("none", {}, lambda *text: None)]
    for alpha in wanted.alphas:
        setting = {"alpha": alpha, "length": length}
        replay = Replay([], alpha, length, size)  # refused now, if at all
        name = f"replay, alpha {alpha:g}"
        fed.append((name, setting, lambda text, n, it=replay: told(it, text, n)))
    return fed


def told(replay, text, number):
    """A replay of a text, whose errors are others in each text."""
    return dataclasses.replace(replay, text=text, seed=number)


def pieces(model, wanted):
    """Beginnings of texts, as token ids, evenly spaced in one file.

    returns: list of int64 (prompt + tokens,), the embedded held-out text's where none is given
    raises : ValueError if there is no tokenizer, the text is short, or they exceed the context
    """
    path = Path(wanted.text) if wanted.text else embedded("tiny-opt").parent / "heldout.txt"
    ids = model.encode(read_text(path))
    need = wanted.prompt + wanted.tokens
    if need > model.config.context:
        raise ValueError(
            f"{wanted.prompt} tokens of prompt and {wanted.tokens} more do not fit the model's "
            f"context of {model.config.context}; give a smaller --prompt or --tokens."
        )
    if len(ids) < need + wanted.prompts:
        raise ValueError(f"{path} has only {len(ids)} tokens; give a longer text.")
    starts = np.linspace(0, len(ids) - need, wanted.prompts, endpoint=False).astype(np.int64)
    return [np.array(ids[start : start + need], dtype=np.int64) for start in starts]


def measure(model, text, number, wanted, named, runs):
    """Continue one text in every way, and add what it cost to the runs."""
    prompt, plain_ids = text[: wanted.prompt].tolist(), None
    for (_, _, drafter_of), run in zip(named, runs, strict=True):
        saying = Fed(model, text) if run.fed else model
        drafter = drafter_of(text.tolist(), number)
        made = Generation(saying, prompt, max_new_tokens=wanted.tokens, drafter=drafter)
        for _ in made:
            pass
        run.add(made)
        plain_ids = made.ids if plain_ids is None else plain_ids
        if made.ids != plain_ids:
            run.parted.append(parting(model, number, prompt, plain_ids, made.ids))


def parting(model, number, prompt, ids, others):
    """Where two continuations part, and by how much the likeliest token led there."""
    pairs = zip(ids, others, strict=True)
    place = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    second, first = np.sort(model.logits([*prompt, *ids[:place]])[-1])[-2:]
    return {"prompt": number, "token": place, "top_2_margin": float(first - second)}
