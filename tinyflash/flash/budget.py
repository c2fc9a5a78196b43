"""A memory budget: what is resident, and how many rows each layer may keep in DRAM.

    memory = attention, embeddings and norms + what tells who is active + KV cache + rows

The KV cache is that of as many tokens as are to come, in float16. Only where a model is so small
that its KV cache leaves no neuron a place, it comes on top, and is said to.

Trained predictors say how many neurons each layer predicts (training/report.py): layers get rows
in that proportion, and the window is as long as fits.
"""

import re
from dataclasses import dataclass

from tinyflash.checks import is_number
from tinyflash.flash.activity import exact_note
from tinyflash.flash.store.predictor_file import PARTS, predictor_shapes

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
HALF_BYTES = 2  # of a number in the KV cache


@dataclass(frozen=True)
class Budget:
    """What a memory budget comes to; sizes in bytes.

    memory    : DRAM for weights and KV cache
    resident  : of it, all weights but the matrices of the feed-forwards
    telling   : of it, what tells who is active: predictors, or whole projections
    kv_cache  : of `tokens` tokens
    tokens    : as many may be cached
    kv_inside : whether the KV cache is a part of `memory`, or comes on top
    rows      : for each layer the neurons that it may keep, 1 … F; in mode predictor all share them
    activity  : sparse modes: "predicted", "resident" or "read", see activity.py
    k         : tokens of a window that fit on average; None where nobody knows
    """

    memory: int
    resident: int
    telling: int
    kv_cache: int
    tokens: int
    kv_inside: bool
    rows: tuple[int, ...]
    activity: str
    k: int | None


def parse_memory(memory, whole):
    """A budget in bytes, from a number of bytes or a text: "50%", "300MB", "6.65 GB".

    memory : int, or str; a percentage is one of `whole`, the model's weights as stored
    returns: int
    raises : ValueError, one sentence, for anything else or nothing
    """
    text = str(memory).strip().upper()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMG]I?B|B|)", text)
    if match is None:
        raise ValueError(f"Memory is a share such as 50% or a size such as 6.65GB, not {memory!r}.")
    number, unit = float(match[1]), match[2]
    nbytes = int(number / 100 * whole) if unit == "%" else int(number * UNITS[unit])
    if nbytes < 1:
        raise ValueError(f"A memory of {memory} is nothing; allow some.")
    return nbytes


def budget_for(store, memory, resident, mode, *, tokens=0, kv_number=HALF_BYTES, predicted=None):
    """What a budget comes to: rows of each layer, and where activity is found out.

    store     : Store;  memory : int, bytes;  mode : one of feed_forward.MODES
    resident  : bytes of the resident weights
    tokens    : for which the KV cache must have room;  kv_number : bytes of a number in it
    predicted : flash.json's entries of the layers' predictors; None for exact activity
    raises    : ValueError that says how much is needed, if not one neuron a layer fits
    """
    config = store.config
    L, F = config.layers, config.ffn_width
    kv_cache = 2 * L * config.kv_heads * config.head_width * tokens * kv_number
    sparse = mode not in ("naive", "hybrid")
    activity, telling, row = "read", 0, store.row_bytes
    if sparse and predicted:
        activity, telling = "predicted", predictor_bytes(config, predicted)
    elif sparse and not exact_note(config, store.manifest.get("thresholds")):
        # The projection that tells stays in DRAM if it fits, and is then no part of the rows.
        part = store.row_bytes // len(store.parts)  # bytes of one neuron in one matrix
        if memory - resident - kv_cache >= L * (F * part + row - part):
            activity, telling, row = "resident", L * F * part, row - part
    free = memory - resident - telling
    sharing = 1 if mode == "predictor" else L  # feed-forwards with rows of their own
    kv_inside = free - kv_cache >= sharing * row
    if kv_inside:
        free -= kv_cache
    if free < sharing * row:
        least = resident + telling + sharing * row
        raise ValueError(
            f"{store.path.name} needs at least {least:,} bytes ({resident:,} of them for attention "
            f"and embeddings), and the memory allowed is {memory:,}; allow more."
        )
    rows, k = [min(free // (sharing * row), F)] * L, None
    windows = windows_of(store, predicted) if activity == "predicted" else []
    if mode == "predictor":  # one cache for all layers, as large as one token needs
        most = max(window["most"][0] for window in windows)
        rows, k = [min(rows[0], max(1, most))] * L, 0
    elif activity == "predicted":
        rows, k = rows_by_layer(free // row, F, windows)
    return Budget(
        memory, resident, telling, kv_cache, tokens, kv_inside, tuple(map(int, rows)), activity, k
    )


def windows_of(store, predicted):
    """What flash.json says of the layers' windows: list of {"mean": [...], "most": [...]}.

    raises: ValueError if it is not one a layer, all of the same length and of numbers
    """
    windows = [layer.get("window") for layer in predicted]
    lists = [
        window.get(name) if isinstance(window, dict) else None
        for window in windows
        for name in ("mean", "most")
    ]
    length = len(lists[0]) if isinstance(lists[0], list) else 0
    sane = all(isinstance(of, list) and len(of) == length > 0 for of in lists)
    if not (sane and all(is_number(number) for of in lists for number in of)):
        raise ValueError(
            f"{store.path}/flash.json does not say what the windows of the predictors hold; train "
            "the predictors again."
        )
    return windows


def predictor_bytes(config, predicted):
    """DRAM of all layers' predictors, in bytes."""
    sizes = {part: int(dtype.removeprefix("float")) // 8 for part, dtype in PARTS.items()}
    return sum(
        sizes[name.rpartition(".")[2]] * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        for i, layer in enumerate(predicted)
        for name, shape in predictor_shapes(config, i, layer["rank"]).items()
    )


def rows_by_layer(rows, F, windows):
    """Share rows out to layers in proportion to what their windows were seen to hold.

    rows    : int, to share, at least one a layer
    windows : for each layer {"mean": …}, the neurons predicted for the last 1, 2, … tokens
    returns : ints, and the tokens of a window that fit on average (0: not even one)
    """
    means = [window["mean"] for window in windows]
    lengths = range(len(means[0]))
    k = sum(sum(mean[length] for mean in means) <= rows for length in lengths)
    wanted = [mean[max(k, 1) - 1] for mean in means]
    scale = rows / max(1, sum(wanted))
    shares = [max(1, min(F, int(scale * one))) for one in wanted]
    while sum(shares) > rows:  # layers that got their one row for nothing
        shares[shares.index(max(shares))] -= 1
    return shares, k
