"""Neurons that fire together: stored twice, or side by side; simulated on a model's own activity.

    python -m tinyflash.bench.friends [MODEL] [--text FILE] [--json]

The model reads a text, and we record which neurons each token uses. Friends and orders are learnt
from the first half of the tokens; all that is printed about reading is of the second half. Bytes
and reads are counts. Milliseconds are projected with `coactivation.VIRTUAL_NVME`, for bundles of
the model's own size and for bundles of 16 KiB, OPT-6.7B's.
"""

import argparse
import operator
import sys
from collections import Counter
from functools import reduce
from pathlib import Path

import numpy as np

import tinyflash
from tinyflash import terminal
from tinyflash.checkpoint.sources import embedded
from tinyflash.files import read_text
from tinyflash.flash.coactivation import (
    closest_friends,
    coactivation_counts,
    fate_of_friends,
    fires_with_friend,
    friends_order,
    gap_worth_reading,
    io_ms,
    share_befriending_the_busiest,
    simulate,
)
from tinyflash.flash.store.bundles import parts_of
from tinyflash.ops import ACTIVATIONS

KIB = 1024
TOKENS = 2048  # of the text, at most
PASS = 512  # tokens of one forward pass, which begins without a past
DENSITY = 0.10  # of a layer's neurons kept by a threshold, where the activation never rests
WINDOWS = (0, 5)
OPT_BUNDLE = 16 * KIB


def recorded_activity(model, ids, progress=None):
    """Which neurons each token of a text uses, layer by layer.

    ReLU: those whose activation is not zero. Other activations: those that reach a threshold T of
    their layer, act(gate) ≥ T, where T lets DENSITY of the first half's through, as FATReLU does
    for Llama 2 (LLM in a flash). The model itself runs without thresholds.

    returns: list of bool (T, F)
    raises : ValueError if the model is a flash directory, which shows no activations
    """
    if model.flash:
        raise ValueError("Activity is recorded from a model that is all in DRAM; name its source.")
    config = model.config
    name = "ffn.gate" if config.gated else "ffn.pre"
    activate, seen = ACTIVATIONS[config.activation], [[] for _ in range(config.layers)]

    def tap(tapped, tensor):
        if tapped.endswith(name):
            seen[int(tapped.split(".")[1])].append(activate(tensor).astype(np.float32))

    length = min(PASS, config.context)
    for first in range(0, len(ids), length):
        model.logits(ids[first : first + length], tap=tap)
        if progress:
            progress(min(first + length, len(ids)), len(ids))
    traces = []
    for layer in seen:
        act = np.concatenate(layer)
        if config.activation == "relu":
            traces.append(act > 0)
        else:
            traces.append(act >= np.quantile(act[: len(act) // 2], 1 - DENSITY))
        layer.clear()
    return traces


def friends_seen(learnt, tested):
    """Who is whose friend, and what the friends are worth on tokens that chose them and on others.

    learnt, tested: lists of bool (T, F), layer by layer
    returns: (list of friends (F,), dict of shares)
    """
    learnt_counts = [coactivation_counts(active) for active in learnt]
    friends = [closest_friends(counts) for counts in learnt_counts]
    busiest = [
        share_befriending_the_busiest(c, f) for c, f in zip(learnt_counts, friends, strict=True)
    ]
    seen = {"befriending_the_busiest_1_percent": float(np.mean(busiest))}
    tested_counts = [coactivation_counts(active) for active in tested]
    for half, all_counts in (("learnt", learnt_counts), ("tested", tested_counts)):
        together = np.concatenate(
            [fires_with_friend(c, f) for c, f in zip(all_counts, friends, strict=True)]
        )
        together = together[~np.isnan(together)]
        seen[f"fires_with_friend_median_{half}"] = float(np.median(together))
        seen[f"friend_fires_at_least_95_percent_{half}"] = float(np.mean(together >= 0.95))
    return friends, seen


def orders_of(learnt, rng):
    """The orders on flash that are compared: dict name -> list, layer by layer."""
    counts = [coactivation_counts(active) for active in learnt]
    return {
        "model's order": [None] * len(counts),
        "random order": [rng.permutation(len(c)) for c in counts],
        "busiest first": [np.argsort(-c.diagonal(), kind="stable") for c in counts],
        "friends side by side": [friends_order(c) for c in counts],
    }


def measure(traces, bundle_bytes, progress=None):
    """Learn from the first half of the traces, simulate reading the second half.

    traces : list of bool (T, F);  bundle_bytes: of one neuron, in this model
    returns: dict "friends" -> shares, "reading" -> list of dicts, one for each combination of
             bundle size, window, layout and gap; per token
    """
    half = len(traces[0]) // 2
    learnt, tested = [t[:half] for t in traces], [t[half:] for t in traces]
    friends, seen = friends_seen(learnt, tested)
    orders = orders_of(learnt, np.random.default_rng(0))
    F, reading = sum(trace.shape[1] for trace in traces), []

    nothing = [None] * len(tested)

    def simulated(layout, size, k, gap=0, orders=nothing, friends=nothing):
        layers = [
            simulate(active, size, k=k, order=order, friends=friend, gap=gap)
            for active, order, friend in zip(tested, orders, friends, strict=True)
        ]
        total = reduce(operator.add, layers)
        reading.append(
            {"layout": layout, "bundle_bytes": size, "k": k, "gap": gap}
            | {"wanted": total.wanted / total.tokens, "held": total.held / total.tokens / F}
            | {"reads": total.reads / total.tokens, "ms": io_ms(total.sizes) / total.tokens}
            | {"bytes_wanted": total.bytes_wanted / total.tokens}
            | {"bytes_read": total.bytes_read / total.tokens, "stored_bytes": total.stored_bytes}
        )

    sizes = (bundle_bytes, OPT_BUNDLE)
    for done, (size, k) in enumerate([(size, k) for size in sizes for k in WINDOWS], start=1):
        simulated("each with its friend", size, k, friends=friends)
        for gap in (0, gap_worth_reading(size)):
            for layout, order in orders.items():
                simulated(layout, size, k, gap, orders=order)
        if progress:
            progress(done, len(sizes) * len(WINDOWS))
    fates = dict.fromkeys(WINDOWS, Counter())
    for k in WINDOWS:
        for active, friend in zip(tested, friends, strict=True):
            fates[k] = fates[k] + Counter(fate_of_friends(active, friend, k))
    seen["fate"] = {
        k: {fate: n / fates[k].total() for fate, n in fates[k].items()} for k in WINDOWS
    }
    return {"friends": seen, "reading": reading}


def show(result, name):
    """The tables for a person."""
    seen = result["friends"]
    rows = [
        ("neurons whose friend is of the busiest 1 %", seen["befriending_the_busiest_1_percent"]),
        ("a friend fires too: median", seen["fires_with_friend_median_tested"]),
        ("… on the tokens that chose it", seen["fires_with_friend_median_learnt"]),
        (
            "friends that fire too ≥ 95 % of the time",
            seen["friend_fires_at_least_95_percent_tested"],
        ),
    ]
    for k, fates in seen["fate"].items():
        rows.append((f"a friend came for use, k = {k}", fates.get("useful", 0)))
        rows.append((f"… but was there already, k = {k}", fates.get("again", 0)))
        rows.append((f"… but was not needed, k = {k}", fates.get("unused", 0)))
    shares = [(what, f"{100 * value:.1f} %") for what, value in rows]
    terminal.table(f"{name}: closest friends", ("what", "share"), shares)
    for size in dict.fromkeys(row["bundle_bytes"] for row in result["reading"]):
        rows = [
            (row["k"], row["layout"], row["gap"] // KIB, f"{row['reads']:.1f}")
            + (f"{row['wanted'] / row['reads']:.2f}", f"{row['bytes_wanted'] / KIB:,.0f}")
            + (f"{row['bytes_read'] / KIB:,.0f}", f"{row['ms']:.2f}")
            + (f"{100 * row['held']:.0f} %", f"{row['stored_bytes'] / 1e6:.1f}")
            for row in result["reading"]
            if row["bundle_bytes"] == size
        ]
        header = ("k", "layout", "gap, KiB", "reads", "neurons a read", "KiB wanted", "KiB read")
        header += ("ms projected", "held", "MB on flash")
        terminal.table(f"{name}: a token, bundles of {size / KIB:g} KiB", header, rows)


def main():
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tinyflash.bench.friends", description=__doc__.splitlines()[0]
    )
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--text", help="a file to read; the embedded held-out text by default")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        path = Path(given.text) if given.text else embedded("tiny-opt").parent / "heldout.txt"
        model = tinyflash.load(given.model)
        ids = model.encode(read_text(path)[: 16 * TOKENS])[:TOKENS]
        if len(ids) < 20:
            raise ValueError(f"{path} has {len(ids)} tokens; give a text of at least 20.")
        with terminal.progress("recording", "tokens") as report:
            traces = recorded_activity(model, ids, report)
    except (ValueError, OSError) as error:
        terminal.note(f"error: {error}")
        sys.exit(2)
    config = model.config
    bundle_bytes = len(parts_of(config)) * config.width * 2  # in 16 bits
    with terminal.progress("simulating", "cases") as report:
        result = measure(traces, bundle_bytes, report)
    result |= {"model": given.model, "tokens": len(ids)}
    result["active"] = float(np.mean([trace.mean() for trace in traces]))
    if given.json:
        terminal.json_line(result)
    else:
        show(result, given.model)


if __name__ == "__main__":
    main()
