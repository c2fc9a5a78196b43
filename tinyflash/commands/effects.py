"""Options that would have no effect are refused: what is ignored silently is believed to work.

One table for every verb. A rule applies to an option that was given, in every verb that has it.
Not in the table, on purpose: values that happen to change nothing (`--top-p 1`, a `--stop` that
never comes, `--squares` for a short text), for they hold of other texts too; and what a drafter
makes of `--draft-width` and `--draft-length`, which drafters.py says when it is known.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tinyflash.flash.store.directory import is_store
from tinyflash.speculative.drafters import is_redrafter

WINDOWED = ("window", "all")  # modes that keep what the last tokens used


WINDOWED = ("window", "all")  # modes that keep what the last tokens used


@dataclass(frozen=True)
class Idle:
    """When an option has no effect.

    verbs   : where the rule holds
    option  : its name in the parsed arguments
    when    : function of the parsed arguments
    because : the end of the sentence, which says what would give it one
    """

    verbs: tuple[str, ...]
    option: str
    when: Callable
    because: str


def all_in_dram(options):
    """Whether flash was not asked for, and the model is no flash directory."""
    return options.memory is None and not is_store(options.model)


def keeps_no_window(options):
    """Whether none of the modes asked for keeps a window."""
    modes = getattr(options, "modes", None) or getattr(options, "mode", None)
    return modes is not None and not any(mode.strip() in WINDOWED for mode in modes.split(","))


def greedy(options):
    """Whether the likeliest token is asked for."""
    return options.temperature == 0


def drafts_of(options):
    """What sorts of drafters `bench speculative` is to measure; "model" for smaller models."""
    words = [word.strip() for word in (options.drafters or "ngram,redrafter,replay").split(",")]
    known = ("none", "ngram", "replay", "redrafter")
    return {
        word if word in known else "redrafter" if is_redrafter(word) else "model" for word in words
    }


ON_FLASH = ("generate", "evaluate", "bench speculative")
FLASHLESS = "where all weights are in DRAM; give --memory, as in 50%"
NO_WINDOW = "in a mode that keeps no window; take mode window or all"
LIKELIEST = "where --temperature 0 takes the likeliest token; ask for another temperature"
CHECK = "with --check, which writes nothing; leave --check out"
RULES = (
    Idle(ON_FLASH, "mode", all_in_dram, FLASHLESS),
    Idle(ON_FLASH, "window", all_in_dram, FLASHLESS),
    Idle((*ON_FLASH, "bench flash"), "window", keeps_no_window, NO_WINDOW),
    Idle(("generate",), "top_k", greedy, LIKELIEST),
    Idle(("generate",), "top_p", greedy, LIKELIEST),
    Idle(("generate",), "min_p", greedy, LIKELIEST),
    Idle(("generate",), "seed", greedy, LIKELIEST),
    Idle(("generate",), "system", lambda o: not o.chat, "outside a conversation; add --chat"),
    Idle(
        ("generate",), "chat_template", lambda o: not o.chat, "outside a conversation; add --chat"
    ),
    Idle(("generate",), "stats", lambda o: o.json, "with --json, which has them; leave --json out"),
    Idle(("convert",), "bundling", lambda o: o.check, CHECK),
    Idle(("convert",), "dtype", lambda o: o.check, CHECK),
    Idle(
        ("bench speculative",),
        "widths",
        lambda o: "redrafter" not in drafts_of(o),
        "where no ReDrafter is measured; name one in --drafters",
    ),
    Idle(
        ("bench speculative",),
        "alphas",
        lambda o: "replay" not in drafts_of(o),
        "where no replay is measured; name replay in --drafters",
    ),
    Idle(
        ("bench speculative",),
        "length",
        lambda o: drafts_of(o) <= {"none", "ngram"},
        "on prompt lookup; name another drafter in --drafters",
    ),
    Idle(("diff",), "all", lambda o: o.json, "with --json, which has all; leave --json out"),
)


def refuse_idle(options):
    """Raise a ValueError, one sentence, for the first option given that has no effect."""
    for rule in RULES:
        here = options.name in rule.verbs and rule.option in options.given
        if here and rule.when(options):
            option = "--" + rule.option.replace("_", "-")
            raise ValueError(f"{option} has no effect {rule.because}, or leave {option} out.")


def refuse_idle_seed(options, recommended):
    """Raise a ValueError if --seed was given, and the model, now open, draws nothing.

    recommended : the model's Recommended
    """
    asked = {name: True for name in options.given}
    if "seed" in asked and not recommended.draws(asked):
        raise ValueError(
            "--seed has no effect where nothing is drawn: the model takes the likeliest token; "
            "give a --temperature above 0, or leave --seed out."
        )
