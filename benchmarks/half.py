"""How fast a HalfMatrix multiplies: decoded by bit moves, and by NumPy's own conversion.

    python -m benchmarks.half [--json]

Both routes decode the same tiles with the same two workers; only how differs. They
are measured in turn, so that a busy moment of the machine strikes both.
"""

import argparse
import json
import statistics
import time

import numpy as np

from tinyflash import terminal
from tinyflash.matrices import half as matrices

ROWS, COLUMNS = 16384, 4096  # one feed-forward matrix of OPT-6.7B


def measure(format, T, rounds=7):
    """Seconds of one product by both routes: medians over `rounds`, taken in turn.

    format : "float16" or "bfloat16";  T : rows of x
    returns: seconds by bit moves, seconds by `decode_plainly`
    """
    rng = np.random.default_rng(0)
    W = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    stored = W.astype(np.float16)
    if format == "bfloat16":
        stored = (W.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    matrix = matrices.HalfMatrix(stored)
    x = rng.standard_normal((T, COLUMNS), dtype=np.float32)
    routes = {
        "fast": matrices.decoder_for,
        "plain": lambda x, format: (x, matrices.decode_plainly),
    }
    seconds = {name: [] for name in routes}
    matrix.multiply(x)  # looks for Inf once
    try:
        for _ in range(rounds):
            for name, route in routes.items():
                matrices.decoder_for = route
                began = time.perf_counter()
                matrix.multiply(x)
                seconds[name].append(time.perf_counter() - began)
    finally:
        matrices.decoder_for = routes["fast"]
    return statistics.median(seconds["fast"]), statistics.median(seconds["plain"])


def main():
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    results = []
    with terminal.progress("HalfMatrix", "cases") as report:
        cases = [(format, T) for format in ("float16", "bfloat16") for T in (1, 2, 4, 8)]
        for done, (format, T) in enumerate(cases, start=1):
            fast, plain = measure(format, T)
            speed, plain_speed = (ROWS * COLUMNS / s / 1e9 for s in (fast, plain))
            results.append(
                {"format": format, "rows": T, "fast": speed, "plain": plain_speed}
                | {"ratio": speed / plain_speed}
            )
            report(done, len(cases))
    if as_json:
        print(json.dumps(results))
        return
    rows = [
        (r["format"], r["rows"], f"{r['fast']:.2f}", f"{r['plain']:.2f}", f"{r['ratio']:.1f}")
        for r in results
    ]
    header = ("format", "rows of x", "bit moves, G elements/s", "astype, G elements/s", "ratio")
    terminal.table(f"HalfMatrix {ROWS} × {COLUMNS}, {matrices.WORKERS} workers", header, rows)


if __name__ == "__main__":
    main()
