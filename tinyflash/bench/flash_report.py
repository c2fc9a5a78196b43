"""The tables of a flash benchmark, beside those of the paper. Nothing is computed here."""

from tinyflash import terminal
from tinyflash.costs.paper_tables import MODEL

PAPER = f"paper, {MODEL}"
PAPERS_K = 5  # or 4: the paper has both
PAPER_T3 = {"paper, CPU": "OPT-6.7B, M1 Max, CPU", "paper, Metal": "OPT-6.7B, M1 Max, Metal"}
PROJECTED = {"M1 Max, Metal": "OPT-6.7B, M1 Max, Metal", "M1 Max, CPU": "OPT-6.7B, M1 Max, CPU",
             "M2, Metal": "OPT-6.7B, M2, Metal", "RTX 4090": "OPT-6.7B, RTX 4090"}  # fmt: skip


def show(result):
    """Print every table of a result."""
    title = result["title"]
    header = ("mode", "whose", "tokens", "DRAM GB", "GB/token", "GB/s", "I/O ms")
    terminal.table(f"{title}\nTable 2: flash to DRAM", header, table2_rows(result))
    header = ("mode", "whose", "I/O ms", "memory ms", "compute ms", "total ms")
    header += ("naive takes", "hybrid takes")
    terminal.table("Table 3: one token", header, table3_rows(result))
    header = ("mode", "tokens", "k", "active", "predicted", "held, s_agg(k)", "new a token")
    terminal.table("Neurons, percent of all", header, neuron_rows(result))
    modes = [run["mode"] for run in ran(result)]
    header = ("in DRAM", *modes, "paper")
    terminal.table("DRAM, percent of the model", header, dram_rows(result))
    header = ("mode", "total ms", "disk allows", "multiplying allows", "the rest", "J", "flash J")
    header += ("DRAM J", "multiplying J")
    terminal.table("Time against the bounds, ms; energy a token", header, bound_rows(result))
    header = (
        "mode",
        "device",
        "I/O ms",
        f"paper's, {MODEL}",
        "memory ms",
        "compute ms",
        "total ms",
    )
    terminal.table("Projected onto other machines (bounds)", header, projection_rows(result))
    for line in notes(result):
        terminal.say(line)


def ran(result):
    """The runs of the modes that could run."""
    return [run for run in result["runs"] if "error" not in run]


def number(value, unit=""):
    """Three digits, or a dash for what is not known."""
    if value is None:
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def percent(share):
    """A share as percent."""
    return "–" if share is None else f"{100 * share:.3g}"


def table2_rows(result):
    """Ours and the paper's row of each mode; why, for a mode that could not run."""
    columns = ("dram_gb", "flash_gb", "gb_per_s", "io_ms")
    for run in result["runs"]:
        mode = run["mode"]
        if "error" in run:
            yield mode, f"not run: {run['error']}", *["–"] * 5
        else:
            ours = (number(run["table2"][name]) for name in columns)
            yield mode, "this run", run["tokens"], *ours
        if mode in result["paper"]["table2"]:
            paper = result["paper"]["table2"][mode]
            yield mode, PAPER, "–", *(number(paper[name]) for name in columns)


def table3_rows(result):
    """Ours and the paper's: milliseconds, and how many times longer naive and hybrid take."""
    columns = ("io_ms", "memory_ms", "compute_ms", "total_ms")
    for run in ran(result):
        ours = (number(run["table3"][name]) for name in columns)
        times = (number(run["ratios"][base], "x") for base in ("naive", "hybrid"))
        yield run["mode"], "this run", *ours, *times
        for whose, name in PAPER_T3.items():
            row = result["paper"]["table3"][name].get(run["mode"])
            if row is not None:
                naive = result["paper"]["table3"][name]["naive"]["total_ms"] / row["total_ms"]
                paper = (number(row[column]) for column in columns)
                yield run["mode"], whose, *paper, number(naive, "x"), "–"


def neuron_rows(result):
    """Shares counted in the runs, those on held-out text by flash.json, and the paper's."""
    names = ("fired", "wanted", "held", "loaded")
    for run in ran(result):
        ours = (percent(run["shares"][name]) for name in names)
        window = number(run["shares"]["window"]) if run["keeps_rows"] else "–"
        yield run["mode"], run["tokens"], window, *ours
    told = result["predictor"]
    if told:
        missed, extra = percent(told["false_negatives"]), percent(told["false_positives"])
        held, longer = told["s_agg"][PAPERS_K - 1 : PAPERS_K + 1]
        shares = (told["active"], told["predicted"], held, longer - held)
        yield (
            f"predictors, held-out text: {missed} % missed, {extra} % for nothing",
            *("–", PAPERS_K, *map(percent, shares)),
        )
    paper = result["paper"]["neuron_shares"]
    yield "paper: 5 % missed, 7 % for nothing", "–", "4 or 5", *(percent(paper[n]) for n in names)


def dram_rows(result):
    """Every component of every mode, as percent of the model."""
    whole, paper = result["model_bytes"], result["paper"]["dram_shares"]
    names = list(dict.fromkeys(name for run in ran(result) for name in run["components"]))
    for name in names:
        ours = (percent(run["components"].get(name, 0) / whole) for run in ran(result))
        yield name, *ours, percent(paper.get(name))
    ours = (percent(run["dram_bytes"] / whole) for run in ran(result))
    yield "weights together", *ours, percent(sum(paper.values()))


def bound_rows(result):
    """Total, bounds and rest, and joules."""
    for run in ran(result):
        bounds, joules = run["bounds"], run["energy"]
        yield (
            run["mode"],
            number(run["table3"]["total_ms"]),
            number(bounds["io_ms"]) + (" (as waited)" if bounds["io_from"] == "run" else ""),
            number(bounds["compute_ms"]),
            number(bounds["rest_ms"]),
            *(number(joules[what]) for what in ("total", "flash", "DRAM", "multiplications")),
        )


def projection_rows(result):
    """What each mode's bytes and multiplications would take elsewhere."""
    paper = result["paper"]
    for run in ran(result):
        mode = run["mode"]
        for each in run["projections"]:
            known = paper["table3"].get(PROJECTED.get(each["device"]), {}).get(mode)
            if each["device"] == "M1 Max, Metal" and mode in paper["table2"]:
                known = paper["table2"][mode]
            yield (
                mode,
                each["device"] + (" *" if each["flattered"] else ""),
                number(each["io_ms"]),
                number(known and known["io_ms"]),
                *(number(each[name]) for name in ("memory_ms", "compute_ms", "total_ms")),
            )


def notes(result):
    """What one has to know to read the tables: lines of text."""
    yield (
        "naive and hybrid cost the same for every token, so they are measured for fewer. The "
        f"text is {result['text']}, {result['prompt_tokens']} tokens of it the prompt."
    )
    yield (
        "I/O is the time waited for flash; GB/s are those while it was read. Compute is the rest "
        "of the wall time, attention included. Our naive and hybrid modes keep attention and "
        "embeddings in DRAM; the paper's naive reads all of the model. * some reads are smaller "
        "than any that the paper timed there, and are taken at the speed of its smallest."
    )
    for name, constant in result["energy_constants"].items():
        yield f"energy, {constant['value']:.3g} J a {name}: {constant['source']}."
    yield "Where the paper disagrees with itself:"
    for line in result["paper"]["disagreements"]:
        yield f"  {line}"
