"""`tinyflash generate`: text, and what it cost."""

import sys
from dataclasses import asdict

from tinyflash import terminal
from tinyflash.commands.arguments import add_memory, verb
from tinyflash.commands.chat import questions
from tinyflash.commands.common import (
    flash_settings,
    open_model,
    standard_input,
    warnings_as_notes,
)
from tinyflash.commands.effects import refuse_idle_seed
from tinyflash.commands.sampling import add_sampling, sampling_of, say_recommended
from tinyflash.files import read_text


def arguments(verbs):
    """Add the verb."""
    add = verb(verbs, "generate", generate, "continue a text, or converse")
    add("prompt", nargs="?", help="the text; - reads it from standard input; default: converse")
    add("--model", default="default", metavar="MODEL", help="who writes")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="most tokens written")
    add_sampling(add)
    add("--stop", action="append", metavar="TEXT", help="end before this text; default: no such")
    add("--chat", action="store_true", help="the prompt is a question; without one, converse")
    add("--system", metavar="TEXT", help="with --chat: told before all else; default: nothing")
    add("--chat-template", metavar="FILE", help="with --chat: Jinja; default: the model's own")
    add("--drafter", default="none", metavar="D", help="none, ngram, redrafter, its DIR, or MODEL")
    add("--draft-width", type=int, metavar="W", help="beams of redrafter; default: its own")
    add("--draft-length", type=int, metavar="N", help="tokens of a draft; default: the drafter's")
    add_memory(add)
    add("--stats", action="store_true", help="what each token cost on flash")


def generate(options):
    """`tinyflash generate`"""
    given = sampling_of(options)
    if options.prompt is None and not options.chat:
        raise ValueError('Give a prompt, as in: tinyflash generate "Once upon a time".')
    template = options.chat_template and read_text(options.chat_template)
    prompt = standard_input("prompt") if options.prompt == "-" else options.prompt
    model = open_model(options.model, **flash_settings(options))
    refuse_idle_seed(options, model.recommended)
    if options.stats and not model.flash:
        raise ValueError("There are no statistics of flash without it; give --memory, as in 50%.")
    settings = {
        "drafter": model.drafter(options.drafter, options.draft_width, options.draft_length),
        "max_new_tokens": options.max_new_tokens,
        "stop": options.stop or (),
        **given,
    }
    say_recommended(model.recommended, given)
    with warnings_as_notes():
        if not options.chat:
            show(model.generate(prompt, **settings), options)
            return
        chat = model.chat(options.system, template)
        for message in [prompt] if prompt is not None else questions():
            show(chat.say(message, **settings), options)


def show(generation, options):
    """Stream a generation, then what it cost: for people on standard error, or as JSON."""
    flash, as_json = generation.model.flash, options.json
    for piece in generation:
        if not as_json:
            terminal.say(piece, end="")
    tokens, seconds, counts = len(generation.ids), generation.seconds, generation.counts
    cost = {
        "text": generation.text,
        "tokens": tokens,
        "stop_reason": generation.stop_reason,
        "prompt_tokens": len(generation.prompt_ids),
        "prompt_seconds": round(generation.prompt_seconds, 4),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
        "sampling": asdict(generation.sampling),
        "drafter": options.drafter,
        **vars(counts),
        "tokens_per_step": counts.tokens_per_step,
        "peak_dram_bytes": peak_dram(),
    }
    if flash:
        cost["flash"] = generation.spent.per_token(counts.steps, counts.tokens)
        cost["dram_bytes"] = flash.components()
    if as_json:
        terminal.json_line(cost)
        return
    terminal.say("")
    peak = f"peak DRAM {cost['peak_dram_bytes'] / 1e6:,.0f} MB, " if cost["peak_dram_bytes"] else ""
    rate = f"{tokens / seconds:.1f} tokens/s" if seconds else "no time"
    terminal.note(
        f"{cost['prompt_tokens']} prompt tokens in {generation.prompt_seconds:.2f} s, "
        f"{tokens} new tokens in {seconds:.2f} s ({rate}), "
        f"{peak}ended by: {generation.stop_reason}"
    )
    if counts.drafted:
        terminal.note(counts.describe())
    if options.stats:
        spent = dict(cost["flash"])
        sizes = spent.pop("chunk_sizes", {})
        rows = [(name, f"{value:,.4g}") for name, value in spent.items()]
        rows += [(f"reads of {size / 1024:g} KiB", f"{n:,.3g}") for size, n in sizes.items()]
        terminal.table("flash, for each new token but the first", ("what", "mean"), rows)


def peak_dram():
    """Most DRAM that this process has taken so far, mapped files included, in bytes.

    None where the system does not say (Windows).
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
