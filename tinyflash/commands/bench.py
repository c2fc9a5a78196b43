"""`tinyflash bench`: measures this machine."""

from tinyflash import terminal
from tinyflash.commands.arguments import add_memory, chosen, group_of_verbs, verb
from tinyflash.flash.feed_forward import MODES


def arguments(verbs):
    """Add the verbs."""
    benches = group_of_verbs(verbs, "bench", "measure this machine")
    disk_arguments(benches)
    flash_arguments(benches)
    speculative_arguments(benches)


def disk_arguments(benches):
    """Add `tinyflash bench disk`."""
    add = verb(benches, "disk", bench_disk, "read speed by size and threads")
    add("path", nargs="?", metavar="PATH", help="a directory on the disk; default: here")
    add("--seconds", type=float, default=60.0, metavar="S", help="of reading, in all")
    add("--out", metavar="PROFILE.json", help="save the device profile; default: do not")
    add("--plot", metavar="FILE.png", help="draw the curve; default: do not")


def flash_arguments(benches):
    """Add `tinyflash bench flash`."""
    add = verb(benches, "flash", bench_flash, "the paper's Tables 2 and 3, measured here")
    add("model", metavar="MODEL", help="what is measured")
    add("--memory", default="50%", metavar="M", help="DRAM for weights and KV cache")
    add("--tokens", type=int, default=32, metavar="N", help="measured, after the prompt")
    add("--prompt", type=int, default=128, metavar="N", help="tokens of text read first")
    add("--text", metavar="FILE", help="the tokens fed; default: the embedded held-out text")
    add("--modes", metavar="A,B", help=f"of {', '.join(MODES)}; default: all of them")
    add("--window", type=int, metavar="K", help="tokens it is long; default: as many as fit")
    add(
        "--profile",
        metavar="PROFILE.json",
        help="of this disk, by tinyflash bench disk --out; default: no bound by the disk",
    )


def speculative_arguments(benches):
    """Add `tinyflash bench speculative`."""
    add = verb(benches, "speculative", bench_speculative, "what each drafter saves")
    add("model", metavar="MODEL", help="what is measured")
    add(
        "--drafters",
        metavar="A,B",
        help="of ngram, redrafter, its DIR, replay, MODEL; "
        "default: the first, second and fourth, where they can",
    )
    add("--widths", default="1,2,4,16,64", metavar="W,W", help="beams of redrafter")
    add("--alphas", default="0,.25,.5,.75,1", metavar="A,A", help="how often a replay is right")
    add(
        "--length",
        type=int,
        metavar="N",
        help="of drafts, as for generate --draft-length; default: as long as each drafter likes",
    )
    add("--tokens", type=int, default=64, metavar="N", help="new ones for each prompt")
    add("--prompt", type=int, default=32, metavar="N", help="tokens of each prompt")
    add("--prompts", type=int, default=8, metavar="P", help="how many")
    add("--text", metavar="FILE", help="where the prompts are from; default: the embedded text")
    add_memory(add)


def bench_disk(options):
    """`tinyflash bench disk`"""
    from tinyflash.bench import disk
    from tinyflash.bench.disk_profile import show_profile

    result = disk.bench_disk(
        options.path or ".",
        seconds=options.seconds,
        out=options.out,
        plot=options.plot,
        progress=terminal.progress,
    )
    tell(result, show_profile, options)


def bench_flash(options):
    """`tinyflash bench flash`"""
    from tinyflash.bench import flash
    from tinyflash.bench.flash_report import show

    settings = chosen(options, flash.Settings)
    result = flash.bench_flash(
        options.model, options.memory, progress=terminal.progress, **settings
    )
    tell(result, show, options)


def bench_speculative(options):
    """`tinyflash bench speculative`"""
    from tinyflash.bench import speculative
    from tinyflash.bench.speculative_report import show

    result = speculative.bench_speculative(
        options.model,
        memory=options.memory,
        mode=options.mode,
        window=options.window,
        progress=terminal.progress,
        **chosen(options, speculative.Settings),
    )
    tell(result, show, options)


def tell(result, show, options):
    """Show what was measured: as JSON if that is wanted, else by the function `show`."""
    if options.json:
        terminal.json_line(result)
    else:
        show(result)
