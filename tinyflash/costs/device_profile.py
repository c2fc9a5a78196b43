"""A device profile: how fast a machine reads flash, moves memory and multiplies, and who says so.

Throughput of flash has no closed form (LLM in a flash, §2.2 and Fig. 2b): it is a table by the
size of one read and the number of threads, measured by `tinyflash bench disk --out PROFILE.json`
or taken from a paper. Every figure carries its source.
"""

import math
from dataclasses import dataclass

import numpy as np

from tinyflash.files import read_json

PHASES = ("cold", "sustained")
LONG_READ = 1 << 20  # bytes: from here on a read counts as sequential


@dataclass(frozen=True)
class Figure:
    """A number, and where it is from: "measured …", "paper …", "cited …" or "assumed …"."""

    value: float
    source: str


@dataclass(frozen=True)
class DeviceProfile:
    """What a machine can do.

    throughput     : dict (bytes of one read, threads) -> Figure, GB/s of random reads
    sequential     : Figure, GB/s of long reads, one after the other
    memory         : Figure, GB/s of DRAM as the processor reads weights; None if unknown
    multiplications: Figure, G multiplications (each with its addition) a second; None if unknown
    management     : Figure, GB/s at which rows are put into the neuron cache, stale rows deleted
                     for them; None if unknown
    """

    name: str
    throughput: dict
    sequential: Figure
    memory: Figure | None = None
    multiplications: Figure | None = None
    management: Figure | None = None

    def figures(self):
        """Every figure with its name and unit: list of (name, unit, Figure)."""
        listed = [
            (f"reads of {chunk / 1024:g} KiB, {threads} threads", "GB/s", figure)
            for (chunk, threads), figure in sorted(self.throughput.items())
        ]
        listed.append(("long reads", "GB/s", self.sequential))
        for name, unit in (
            ("memory", "GB/s"),
            ("multiplications", "G/s"),
            ("management", "GB/s of rows loaded"),
        ):
            if getattr(self, name) is not None:
                listed.append((name, unit, getattr(self, name)))
        return listed


def throughput(profile, chunk, threads):
    """GB/s of random reads of one size with so many threads.

    Between known sizes, and between known numbers of threads, a straight line over the logarithm;
    beyond the ends the value of the end, so nothing is extrapolated. A table that ends below
    LONG_READ goes on to the sequential speed there.

    chunk : bytes of one read, above 0;  threads : at least 1
    returns: float, GB/s
    """
    counts = sorted({count for _, count in profile.throughput})
    speeds = []
    for count in counts:
        curve = {size: f.value for (size, n), f in profile.throughput.items() if n == count}
        if max(curve) < LONG_READ:
            curve[LONG_READ] = profile.sequential.value
        sizes = sorted(curve)
        places = [math.log(size) for size in sizes]
        speeds.append(float(np.interp(math.log(chunk), places, [curve[size] for size in sizes])))
    return float(np.interp(math.log(threads), [math.log(count) for count in counts], speeds))


def smallest_read(profile):
    """The smallest read whose speed a profile knows, in bytes."""
    return min(size for size, _ in profile.throughput)


def load_profile(path):
    """Read what `tinyflash bench disk --out` wrote: a dict.

    raises: ValueError, one sentence, if the file holds something else
    """
    try:
        measured = read_json(path)
        if not all(isinstance(measured[key], str) for key in ("name", "date")):
            raise ValueError("its name or date is no text")
        for phase in PHASES:
            if not measured[phase]:
                raise ValueError(f"nothing was measured {phase}")
            for cell in measured[phase]:
                if min(cell["chunk"], cell["threads"], cell["bytes_per_second"]) <= 0:
                    raise ValueError("a number is not positive")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is not a device profile ({type(error).__name__}: {error}); "
            "measure one with: tinyflash bench disk --out PROFILE.json"
        ) from error
    return measured


def speeds_of(measured, phase):
    """GB/s of a phase of what was measured: dict (chunk, threads) -> number."""
    return {(c["chunk"], c["threads"]): c["bytes_per_second"] / 1e9 for c in measured[phase]}


def disk_profile(measured, phase="sustained", **others):
    """The DeviceProfile of a measured disk; long reads go as fast as its fastest cell.

    measured: dict, see `load_profile`
    others  : Figures `memory`, `multiplications`, `management`, where they are known
    """
    source = f"measured on {measured['name']}, {measured['date']}, {phase}"
    table = {key: Figure(speed, source) for key, speed in speeds_of(measured, phase).items()}
    fastest = max(table.values(), key=lambda figure: figure.value)
    return DeviceProfile(measured["name"], table, fastest, **others)
