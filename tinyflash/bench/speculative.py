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
from datetime import date
from pathlib import Path

import numpy as np

import tinyflash
from tinyflash import terminal
from tinyflash.checkpoint.sources import embedded
from tinyflash.files import read_text
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.engine import refuse_idle_window
from tinyflash.generate import Generation
from tinyflash.speculative.counts import StepCounts
from tinyflash.speculative.redrafter import ReDrafter
from tinyflash.speculative.replay import Replay, expected_tokens

# Tokens a step of Vicuna 7B by beam width, batch 1 (ReDrafter, arXiv 2403.09919, Table 4):
# distilled; without distillation they are 2.21, 2.31, 2.48, 2.87 and 3.30.
PAPER_STEPS = {1: 2.35, 2: 2.50, 4: 2.73, 16: 3.09, 64: 3.58}


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


def bench_speculative(options):
    """`tinyflash bench speculative`: measure, and show a table unless JSON is wanted.

    options : model, drafters (names with commas, or None), widths, alphas, length, tokens, prompt,
              prompts, text, memory, mode, window, json
    returns : dict
    raises  : ValueError or OSError, one sentence, for bad input
    """
    if min(options.tokens - 1, options.prompt, options.prompts) < 1:
        raise ValueError("The benchmark takes at least 1 prompt of 1 token, and 2 new tokens.")
    widths = numbers(options.widths, int, "--widths")
    alphas = numbers(options.alphas, float, "--alphas")
    flash = {"memory": options.memory, "mode": options.mode, "k": options.window}
    model = tinyflash.load(options.model, **flash, progress=terminal.progress)
    if model.flash:
        refuse_idle_window(model.flash, options.window)
    model = dataclasses.replace(model, eos_ids=frozenset())
    texts = pieces(model, options)
    drafters, fed = drafters_of(model, options, widths, alphas)
    model.logits(texts[0][:2])  # what is done once is done before
    groups = [[Run(*one[:2], False) for one in drafters], [Run(*one[:2], True) for one in fed]]
    total = len(texts) * (len(drafters) + len(fed))
    with terminal.progress("Speculation", "texts") as report:
        done = 0
        for named, runs in zip((drafters, fed), groups, strict=True):
            for number, text in enumerate(texts):
                report(done, total)
                measure(model, text, number, options, named, runs)
                done += len(runs)
    runs = [run.to_json(group[0]) for group in groups for run in group]
    config_file = Path(model.path) / "config.json"
    synthetic = config_file.is_file() and '"_synthetic"' in read_text(config_file)
    result = {
        "title": f"speculation: {options.model}" + (" (synthetic weights)" if synthetic else ""),
        "synthetic": synthetic,
        "model": str(options.model),
        "memory": options.memory,
        "mode": model.flash.mode if model.flash else None,
        "prompts": options.prompts,
        "prompt_tokens": options.prompt,
        "new_tokens": options.tokens,
        "machine": f"{platform.node()}, {platform.system()} {platform.machine()}",
        "date": date.today().isoformat(),
        "runs": runs,
    }
    if not options.json:
        show(result)
    return result


def numbers(text, kind, option):
    """Numbers from a text with commas; ValueError if it is none."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas, not {text!r}.") from None


def drafters_of(model, options, widths, alphas):
    """What is measured: (name, setting, function (text, its number) -> drafter), plain first.

    returns: those that draft the model's own text; those that draft a text that it is fed
    """
    own = [("none", {}, lambda *text: None)]
    words = options.drafters.split(",") if options.drafters else ["ngram", "redrafter", "replay"]
    for word in map(str.strip, words):
        if word in ("none", "replay"):
            continue
        length = None if word == "ngram" else options.length
        try:
            drafter = model.drafter(word, length=length)
        except (ValueError, OSError):
            if options.drafters:
                raise
            continue  # nobody asked for it
        if isinstance(drafter, ReDrafter):
            for width in widths:
                wide = dataclasses.replace(drafter, width=width)
                setting = {"width": width, "length": drafter.length}
                own.append((f"{word}, width {width}", setting, lambda *text, wide=wide: wide))
        else:
            own.append((word, {"length": drafter.length}, lambda *text, made=drafter: made))
    fed = []
    if "replay" in map(str.strip, words):
        length, size = options.length or 4, model.config.vocab_size
        fed.append(("none", {}, lambda *text: None))
        for alpha in alphas:
            setting = {"alpha": alpha, "length": length}
            replay = Replay([], alpha, length, size)  # refused now, if at all
            name = f"replay, alpha {alpha:g}"
            fed.append((name, setting, lambda text, n, it=replay: told(it, text, n)))
    return (own if len(own) > 1 else []), fed


def told(replay, text, number):
    """A replay of a text, whose errors are others in each text."""
    return dataclasses.replace(replay, text=text, seed=number)


def pieces(model, options):
    """Beginnings of texts, as token ids, evenly spaced in one file.

    returns: list of int64 (prompt + tokens,), the embedded held-out text's where none is given
    raises : ValueError if there is no tokenizer, the text is short, or they exceed the context
    """
    path = Path(options.text) if options.text else embedded("tiny-opt").parent / "heldout.txt"
    ids = model.encode(read_text(path))
    need = options.prompt + options.tokens
    if need > model.config.context:
        raise ValueError(
            f"{options.prompt} tokens of prompt and {options.tokens} more do not fit the model's "
            f"context of {model.config.context}; give a smaller --prompt or --tokens."
        )
    if len(ids) < need + options.prompts:
        raise ValueError(f"{path} has only {len(ids)} tokens; give a longer text.")
    starts = np.linspace(0, len(ids) - need, options.prompts, endpoint=False).astype(np.int64)
    return [np.array(ids[start : start + need], dtype=np.int64) for start in starts]


def measure(model, text, number, options, named, runs):
    """Continue one text in every way, and add what it cost to the runs."""
    prompt, plain_ids = text[: options.prompt].tolist(), None
    for (_, _, drafter_of), run in zip(named, runs, strict=True):
        saying = Fed(model, text) if run.fed else model
        drafter = drafter_of(text.tolist(), number)
        made = Generation(saying, prompt, max_new_tokens=options.tokens, drafter=drafter)
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


def show(result):
    """The table for people."""
    rows = []
    for run in result["runs"]:
        wanted = run["tokens_per_step_expected"]
        if run["drafter"].startswith("redrafter") and run["width"] in PAPER_STEPS:
            wanted = PAPER_STEPS[run["width"]]
        rows.append(
            (
                run["drafter"] + (" (fed a text)" if run["fed"] else ""),
                f"{run['tokens_per_step']:.2f}" + (f" ({wanted:.2f})" if wanted else ""),
                f"{run['accepted']:,} of {run['drafted']:,}",
                f"{1000 * run['seconds_per_token']:.2f}",
                f"{1000 * run['draft_seconds'] / run['tokens']:.2f}",
                f"{run['speedup']:.2f}",
                f"{run['flash_bytes_per_token'] / 1e6:,.2f}",
                len(run["parted"]),
            )
        )
    header = ("drafter", "tokens a step", "accepted", "ms a token", "drafting", "x plain")
    terminal.table(result["title"], (*header, "flash MB a token", "texts that part"), rows)
    terminal.say(
        "In brackets: of a replay, what alpha makes one expect; of ReDrafter, the paper's Table 4\n"
        "(Vicuna 7B, distilled). LLM in a flash reports 1.4x with speculation, 1.58x without flash."
    )
    for run in result["runs"]:
        for parted in run["parted"]:
            terminal.say(
                f"{run['drafter']}: text {parted['prompt']} parts from plain decoding at token "
                f"{parted['token']}, where the likeliest led by {parted['top_2_margin']:.2g}"
            )
