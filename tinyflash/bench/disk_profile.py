"""A device profile: what `tinyflash bench disk` measured, kept as JSON, shown and drawn."""

from pathlib import Path

from tinyflash import terminal
from tinyflash.costs.device_profile import PHASES, load_profile, speeds_of
from tinyflash.files import refuse_foreign, to_install, write_json, write_whole

KIB = 1024
DRAWN_BY = {"Software": "tinyflash"}  # in a PNG


def save_profile(profile, path):
    """Write a device profile as JSON; the file appears whole or not at all."""
    refuse_to_replace(path, load_profile, "a device profile")
    write_json(path, profile, indent=1)


def axes_of(profile):
    """The chunks and the thread counts of a profile, each ascending."""
    return [sorted(set(values)) for values in zip(*speeds_of(profile, "sustained"), strict=True)]


def threads_word(count):
    """1 thread, 2 threads."""
    return "1 thread" if count == 1 else f"{count} threads"


def show_profile(profile):
    """The table: GB/s after the load, and in brackets before it."""
    cold, sustained = (speeds_of(profile, phase) for phase in PHASES)
    chunks, counts = axes_of(profile)
    rows = [
        [f"{chunk // KIB} KiB"]
        + [f"{sustained[chunk, n]:.2f} ({cold[chunk, n]:.2f})" for n in counts]
        for chunk in chunks
    ]
    title = f"{profile['name']}: random reads, GB/s, sustained (and cold)"
    terminal.table(title, ["one read", *map(threads_word, counts)], rows)


def draw_profile(profile):
    """The curves of a profile: a matplotlib Figure.

    raises: ValueError if matplotlib is missing
    """
    figure = figure_class()(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    colors = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
    cold, sustained = (speeds_of(profile, phase) for phase in PHASES)
    chunks, counts = axes_of(profile)
    sizes = [chunk / KIB for chunk in chunks]
    for i, count in enumerate(counts):
        look = {"color": colors[i % len(colors)], "marker": "osD^v*"[i % 6]}
        line = [sustained[chunk, count] for chunk in chunks]
        axis.plot(sizes, line, label=threads_word(count), **look)
        axis.plot(sizes, [cold[chunk, count] for chunk in chunks], ":", markersize=3, **look)
    axis.set(xscale="log", xlabel="size of one read, KiB", ylabel="random reads, GB/s")
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(0, None)
    axis.grid(alpha=0.4)
    axis.set_title("sustained (dotted: cold)", fontsize=10)
    axis.legend()
    return figure


def figure_class():
    """Matplotlib's Figure; ValueError, one sentence, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "Drawing needs matplotlib; install it with: "
            + to_install("matplotlib>=3.9", "notebooks")
        ) from error
    return Figure


def save_figure(figure, path, **settings):
    """Write a figure as PNG; raises ValueError if something else would be replaced."""
    refuse_to_replace(path, is_plot, "a plot")
    write_whole(
        path, lambda file: figure.savefig(file, format="png", metadata=DRAWN_BY, **settings)
    )


def is_plot(path):
    """Whether a file is a PNG that says that tinyflash drew it."""
    with open(path, "rb") as file:
        start = file.read(1 << 12)
    return start.startswith(b"\x89PNG") and DRAWN_BY["Software"].encode() in start


def refuse_to_replace(path, ours, what):
    """Say so early, in one sentence, if a file cannot be written where it should be.

    ours, what : of what may be replaced there, see `files.refuse_foreign`
    """
    refuse_missing_directory(path)
    refuse_foreign(path, ours, what)


def refuse_missing_directory(path):
    """Raise a FileNotFoundError if there is no directory for a file."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"There is no directory {Path(path).parent} to write into.")
