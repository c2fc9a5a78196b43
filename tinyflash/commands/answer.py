"""How `generate` shows a text while it is made, and what it cost."""

import sys
from dataclasses import asdict

from tinyflash import terminal


def show(generation, options):
    """Stream a generation, then what it cost: for people on standard error, or as JSON."""
    if options.json:
        with terminal.progress("Generating", "tokens") as report:
            for _ in generation:
                report(len(generation.ids), generation.max_new_tokens)
        terminal.json_line(cost_of(generation, options))
        return
    stream(generation)
    cost = cost_of(generation, options)
    terminal.note(in_one_line(cost))
    if generation.counts.drafted:
        terminal.note(generation.counts.describe())
    if options.stats:
        terminal.table(
            "flash, for each new token but the first", ("what", "mean"), flash_rows(cost["flash"])
        )


def stream(generation):
    """Say the text piece by piece; a spinner stands for it while the prompt is read."""
    with terminal.waiting(f"Reading {len(generation.prompt_ids):,} tokens"):
        piece = next(generation, "")
    terminal.say(piece, end="")
    for piece in generation:
        terminal.say(piece, end="")
    terminal.say("")


def cost_of(generation, options):
    """What a finished generation said and took, for JSON."""
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
    flash = generation.model.flash
    if flash:
        cost["flash"] = generation.spent.per_token(counts.steps, counts.tokens)
        cost["dram_bytes"] = flash.components()
    return cost


def in_one_line(cost):
    """Tokens, seconds and DRAM, for people."""
    speed = cost["tokens_per_second"]
    peak = cost["peak_dram_bytes"]
    dram = f"peak DRAM {peak / 1e6:,.0f} MB, " if peak else ""
    rate = "no time" if speed is None else f"{speed:.1f} tokens/s"
    return (
        f"{cost['prompt_tokens']} prompt tokens in {cost['prompt_seconds']:.2f} s, "
        f"{cost['tokens']} new tokens in {cost['seconds']:.2f} s ({rate}), "
        f"{dram}ended by: {cost['stop_reason']}"
    )


def flash_rows(spent):
    """Rows of the table of what a token cost on flash."""
    rows = [(name, f"{value:,.4g}") for name, value in spent.items() if name != "chunk_sizes"]
    sizes = spent.get("chunk_sizes", {})
    return rows + [(f"reads of {size / 1024:g} KiB", f"{n:,.3g}") for size, n in sizes.items()]


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
