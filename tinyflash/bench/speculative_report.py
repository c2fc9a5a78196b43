"""The table of the benchmark of drafters, for people."""

from tinyflash import terminal

# Tokens a step of Vicuna 7B by beam width, batch 1 (ReDrafter, arXiv 2403.09919, Table 4):
# distilled; without distillation they are 2.21, 2.31, 2.48, 2.87 and 3.30.
PAPER_STEPS = {1: 2.35, 2: 2.50, 4: 2.73, 16: 3.09, 64: 3.58}


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
