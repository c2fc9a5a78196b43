"""A memory budget: how many rows each layer may keep in DRAM, and where activity is found out.

    memory = resident weights + L · (rows · bytes of a row [+ the projection that tells])

The KV cache comes on top.
"""

import re
from dataclasses import dataclass

from tinyflash.flash.activity import exact_note

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


@dataclass(frozen=True)
class Budget:
    """What a memory budget comes to.

    memory   : bytes of weights that DRAM may hold
    resident : bytes of all that is not a feed-forward matrix
    rows     : neurons that each layer may keep, 1 … F
    activity : mode window: "resident" or "read", see activity.py
    """

    memory: int
    resident: int
    rows: int
    activity: str


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


def budget_for(store, memory, resident, mode):
    """How many rows each layer may keep, and whether the telling projection stays in DRAM.

    store    : Store;  memory : int, bytes;  mode : "naive", "hybrid" or "window"
    resident : bytes of the resident weights
    raises   : ValueError that says how much is needed, if not one neuron a layer fits
    """
    L, F = store.config.layers, store.config.ffn_width
    share = (memory - resident) // L  # bytes of one layer
    if mode == "window" and not exact_note(store.config):
        part = store.row_bytes // len(store.parts)  # bytes of one neuron in one matrix
        telling, rest = F * part, store.row_bytes - part
        if share >= telling + rest:
            rows = (share - telling) // rest
            return Budget(memory, resident, int(min(rows, F)), "resident")
    # Mode window: the buffer through which the projection is read takes its part of each row.
    rows = share // store.row_bytes
    if rows < 1:
        least = resident + L * store.row_bytes
        raise ValueError(
            f"{store.path.name} needs at least {least:,} bytes ({resident:,} of them for attention "
            f"and embeddings), and the memory allowed is {memory:,}; allow more."
        )
    return Budget(memory, resident, int(min(rows, F)), "read")
