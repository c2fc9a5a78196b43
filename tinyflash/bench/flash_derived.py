"""What follows from the counted and timed figures of a flash benchmark: arithmetic, no measuring.

Shares, ratios, bounds, energy, and the projections onto other machines, for each mode.
"""

from dataclasses import asdict

from tinyflash.costs.cost_model import ENERGY, TokenWork, energy, project
from tinyflash.costs.device_profile import Figure, disk_profile
from tinyflash.costs.paper_tables import (
    DEVICES,
    DISAGREEMENTS,
    DRAM_SHARES,
    NEURON_SHARES,
    T2,
    T2_COLUMNS,
    T3,
    T3_COLUMNS,
)

IN_RUN = "measured in this run"


def with_derived(result, measured_disk=None):
    """The result of a benchmark with all that follows from it.

    result       : dict of bench_flash; each run without an "error" gets "table2", "table3",
                   "shares", "ratios", "bounds", "energy" and "projections"
    measured_disk: what `bench disk` wrote for this machine, or None
    returns      : the same dict; "paper", "devices", "energy_constants" and "notes" join it
    """
    runs = {run["mode"]: run for run in result["runs"] if "error" not in run}
    for run in runs.values():
        run["table2"] = table2(run)
        run["table3"] = table3(run)
        run["shares"] = shares(run, result["neurons"])
    for run in runs.values():
        run["ratios"] = ratios(run, runs)
        work = work_of(run)
        here = this_machine(run, measured_disk)
        devices = list(DEVICES.values()) + ([here] if here else [])
        run["projections"] = [
            asdict(each) | {"total_ms": each.total_ms}
            for each in (project(work, device) for device in devices)
        ]
        run["bounds"] = bounds(run, here and project(work, here).io_ms)
        run["energy"] = energy(work)
    result["paper"] = {
        "table2": {mode: dict(zip(T2_COLUMNS, row, strict=True)) for mode, row in T2.items()},
        "table3": {
            name: {
                mode: row and dict(zip(T3_COLUMNS, row, strict=True)) for mode, row in rows.items()
            }
            for name, rows in T3.items()
        },
        "dram_shares": {part: share / 100 for part, share in DRAM_SHARES.items()},
        "neuron_shares": {name: share / 100 for name, share in NEURON_SHARES.items()},
        "disagreements": list(DISAGREEMENTS),
    }
    result["devices"] = {
        device.name: [{"figure": n, "unit": u, **asdict(f)} for n, u, f in device.figures()]
        for device in DEVICES.values()
    }
    result["energy_constants"] = {what: asdict(figure) for what, figure in ENERGY.items()}
    return result


def table2(run):
    """Table 2's columns from a run: GB in DRAM, GB read a token, GB/s while reading, I/O ms.

    I/O is the time waited; where reads go on while others multiply, reading takes longer.
    """
    counters, tokens = run["counters"], run["tokens"]
    reading_ms, nbytes = counters["reading_ms"] / tokens, counters["bytes_read"] / tokens
    return {
        "dram_gb": run["dram_bytes"] / 1e9,
        "flash_gb": nbytes / 1e9,
        "gb_per_s": nbytes / 1e6 / reading_ms if nbytes else None,
        "io_ms": counters["io_ms"] / tokens,
    }


def table3(run):
    """Table 3's columns: ms a token. Compute is what is left of the wall time, attention included.

    `feed_forward_ms` is the part of compute that the feed-forwards took.
    """
    counters, tokens = run["counters"], run["tokens"]
    total = 1000 * sum(run["seconds"]) / tokens
    io, memory = counters["io_ms"] / tokens, counters["memory_ms"] / tokens
    return {
        "io_ms": io,
        "memory_ms": memory,
        "compute_ms": total - io - memory,
        "total_ms": total,
        "feed_forward_ms": counters["compute_ms"] / tokens,
    }


def shares(run, neurons):
    """Of all neurons: fired, predicted ("wanted"), held afterwards (s_agg(k)), new ("loaded").

    `window` is k, in tokens, as long as it was on average over layers and tokens.
    """
    counters, tokens = run["counters"], run["tokens"]
    names = ("fired", "wanted", "held", "loaded")
    counted = {name: counters[name] / tokens / neurons for name in names}
    return counted | {"window": counters["window"] / counters["calls"]}


def ratios(run, runs):
    """How many times longer the naive and the hybrid mode take; None where they did not run."""
    total = run["table3"]["total_ms"]
    return {
        base: runs[base]["table3"]["total_ms"] / total if base in runs else None
        for base in ("naive", "hybrid")
    }


def work_of(run):
    """The TokenWork of a run."""
    counters, tokens = run["counters"], run["tokens"]
    return TokenWork(
        reads={size: count / tokens for size, count in counters["chunk_sizes"].items()},
        loaded_bytes=run["keeps_rows"] * counters["loaded"] / tokens * run["row_bytes"],
        dram_bytes=run["work"]["dram_bytes"],
        multiplications=run["work"]["multiplications"],
        threads=run["threads"],
    )


def this_machine(run, measured_disk):
    """This machine as a DeviceProfile: its disk from a file, the rest from the run; or None."""
    if measured_disk is None:
        return None
    others = {
        "memory": Figure(run["memory_speed"] / 1e9, f"{IN_RUN}: a float32 matrix times a vector"),
        "multiplications": Figure(
            run["multiply_speed"] / 1e9, f"{IN_RUN}: the largest resident matrix times a vector"
        ),
    }
    loaded, spent_ms = work_of(run).loaded_bytes, run["table3"]["memory_ms"]
    if loaded and spent_ms:
        others["management"] = Figure(loaded / 1e6 / spent_ms, f"{IN_RUN}: this mode's own")
    return disk_profile(measured_disk, **others)


def bounds(run, io_bound):
    """Time against what the disk and the multiplications allow, ms a token.

    io_ms      : bytes over the profile's throughput; without a profile, the time waited
    compute_ms : multiplications over the speed of the largest resident matrix
    rest_ms    : what neither explains; below zero where the run beat the profile

    io_bound : ms from a profile of this machine's disk, or None
    """
    io = run["table3"]["io_ms"] if io_bound is None else io_bound
    compute = 1000 * run["work"]["multiplications"] / run["multiply_speed"]
    return {
        "io_ms": io,
        "io_from": "run" if io_bound is None else "profile",
        "compute_ms": compute,
        "rest_ms": run["table3"]["total_ms"] - io - compute,
    }
