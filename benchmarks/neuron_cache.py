"""Memory management of the neuron cache: swap-delete in one matrix, against a new matrix each time.

    python -m benchmarks.neuron_cache [--json]

One layer of OPT-6.7B as in the paper: DRAM holds 24 % of its neurons, and a token replaces 2.4 % of
all (LLM in a flash, §3.1 and Table 2). Both caches get the same changes in turn, so that a busy
moment of the machine strikes both.
"""

import argparse
import json
import statistics
import time

import numpy as np

from tinyflash import terminal
from tinyflash.flash.neuron_cache import NaiveNeuronCache, NeuronCache

F, D, LAYERS = 16384, 4096, 32
HELD, REPLACED = 0.24, 0.024  # of F


def measure(tokens=15, F=F, D=D):
    """Milliseconds of one layer's memory management for one token, and whether both agree.

    returns: dict "preallocated", "reallocated" -> median milliseconds over `tokens` tokens
    raises : AssertionError if the caches do not hold the same in the end
    """
    rng = np.random.default_rng(0)
    held, replaced = round(HELD * F), round(REPLACED * F)
    caches = {
        "preallocated": NeuronCache(held, 2 * D, F, np.float16),
        "reallocated": NaiveNeuronCache(held, 2 * D, F, np.float16),
    }
    order = rng.permutation(F)
    for cache in caches.values():
        cache.append(order[:held], numbered_rows(order[:held], D))
    ms = {name: [] for name in caches}
    for _ in range(tokens):
        here = caches["preallocated"].neurons
        stale = rng.choice(here, replaced, replace=False)
        new = rng.choice(np.setdiff1d(order, here), replaced, replace=False)
        rows = numbered_rows(new, D)
        for name, cache in caches.items():
            began = time.perf_counter()
            cache.drop(stale)
            cache.append(new, rows)
            ms[name].append(1000 * (time.perf_counter() - began))
    for cache in caches.values():
        expected = numbered_rows(cache.neurons, D)
        assert np.array_equal(cache.matrix[: cache.num_used], expected)
    assert set(caches["preallocated"].neurons) == set(caches["reallocated"].neurons)
    return {name: statistics.median(values) for name, values in ms.items()}


def numbered_rows(neurons, D):
    """Rows that show whose they are: neuron j's is full of j modulo 2048, which float16 has."""
    return np.repeat((neurons % 2048).astype(np.float16)[:, None], 2 * D, axis=1)


def main():
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    ms = measure()
    ratio = ms["reallocated"] / ms["preallocated"]
    if as_json:
        print(json.dumps({"ms_per_token_and_layer": ms, "layers": LAYERS, "ratio": ratio}))
        return
    rows = [(name, f"{value:.2f}", f"{LAYERS * value:.0f}") for name, value in ms.items()]
    terminal.table(
        f"Neuron cache of OPT-6.7B: {HELD:.0%} of {F} neurons held, {REPLACED:.1%} replaced; "
        f"{ratio:.1f} times as fast if allocated once",
        ("matrix", "ms a token and layer", f"ms a token, {LAYERS} layers"),
        rows,
    )


if __name__ == "__main__":
    main()
