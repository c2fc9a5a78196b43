"""Draws docs/overview.png: what the window saves, and what each technique makes of a token.

    python docs/draw_overview.py        (needs the extra `notebooks` for matplotlib)

Left: the embedded model writes with half of its memory, and one of its layers is watched. Right:
the recorded run of a synthetic OPT-6.7B in half of its memory (data/measured/).
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import tinyflash

ROOT = Path(__file__).parents[1]
RUN = ROOT / "data" / "measured" / "opt-6.7b-synthetic-50.json"
LAYER, K, TOKENS, SHOWN = 5, 5, 40, 160
REST, KEPT, READ = 0, 1, 2  # what a neuron of the layer is at a token
COLORS = ("#ffffff", "#9ecae1", "#d94801")


def watch_a_layer():
    """What each neuron of a layer is at each new token: int (T, F), of REST, KEPT and READ."""
    model = tinyflash.load("default", memory="50%", mode="window", k=K)
    states, held = [], set()

    def tap(name, tensor):
        nonlocal held
        if name == f"layers.{LAYER}.ffn.evicted":
            held = held - set(tensor.tolist())
        elif name == f"layers.{LAYER}.ffn.loaded":
            row = np.full(model.config.ffn_width, REST, dtype=np.int64)
            row[list(held)] = KEPT
            row[tensor] = READ
            held |= set(tensor.tolist())
            states.append(row)

    text = model.generate("Once upon a time", temperature=0, max_new_tokens=TOKENS, tap=tap)
    for _ in text:
        pass
    return np.stack(states[1:])  # the first call is the prompt's


def draw_window(axis, states):
    """Neurons over tokens: kept from earlier tokens, or read now."""
    used = np.flatnonzero((states != REST).any(axis=0))[:SHOWN]
    axis.imshow(
        states[:, used].T,
        aspect="auto",
        interpolation="nearest",
        cmap=matplotlib.colors.ListedColormap(COLORS),
    )
    read = (states == READ).sum(axis=1).mean()
    kept = (states == KEPT).sum(axis=1).mean()
    axis.set(
        xlabel="new token",
        ylabel=f"{len(used)} of the {states.shape[1]} neurons of layer {LAYER}",
        title=f"The last {K} tokens' neurons stay in DRAM (blue, {kept:.0f} a token);\n"
        f"only what is new is read from flash (orange, {read:.0f} a token)",
    )


def seconds_of(measured):
    """Seconds a token of one mode: waiting for flash, moving rows, and the rest, computing."""
    tokens, counters = measured["tokens"], measured["counters"]
    waiting = counters["io_ms"] / 1e3 / tokens
    moving = counters["memory_ms"] / 1e3 / tokens
    return waiting, moving, sum(measured["seconds"]) / tokens - waiting - moving


def draw_modes(axis, run):
    """Seconds a token of each mode, as far as reading, moving rows and multiplying take it."""
    runs = run["runs"][::-1]
    names = [measured["mode"] for measured in runs]
    spent = np.array([seconds_of(measured) for measured in runs], dtype=np.float64)  # (modes, 3)
    left = np.zeros(len(names), dtype=np.float64)
    parts = ("waiting for flash", "moving rows", "computing")
    for label, color, seconds in zip(
        parts, ("#d94801", "#756bb1", "#9ecae1"), spent.T, strict=True
    ):
        axis.barh(names, seconds, left=left, color=color, label=label)
        left += seconds
    for place, total in enumerate(left):
        axis.text(total + 0.08, place, f"{total:.1f} s", va="center", fontsize=9)
    axis.set(xlabel="seconds a token", xlim=(0, 1.12 * left.max()))
    axis.set_title(
        "Half of the memory: OPT-6.7B's shape, synthetic\nweights, 2 cores of an AMD EPYC"
    )
    axis.legend(frameon=False, fontsize=9, loc="lower right")


if __name__ == "__main__":
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    draw_window(axes[0], watch_a_layer())
    draw_modes(axes[1], json.loads(RUN.read_text(encoding="utf-8")))
    figure.savefig(Path(__file__).with_name("overview.png"), dpi=110)
