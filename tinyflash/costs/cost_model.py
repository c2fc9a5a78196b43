"""The cost model: what a token costs on a machine that we may not have.

latency = flash I/O + memory management + compute              (LLM in a flash, §3)

A run counts what one token needs: bytes from flash by size of read, rows put into the cache,
bytes of weights that the processor reads, multiplications. A device profile says how fast a
machine does each. Their quotients are bounds: a real machine also waits and starts things.
"""

from dataclasses import dataclass, field

from tinyflash.costs.device_profile import LONG_READ, Figure, smallest_read, throughput

# Joules, each with its source. Chips differ, and newer ones take less than those of the table cited
# for 45 nm: good for comparing ways to run one model, not for reading as from a meter.
ENERGY = {
    "flash byte": Figure(
        6.2 / 7.0e9,
        "cited: Samsung 980 PRO 1 TB takes 6.2 W on average and reads 7,000 MB/s, "
        "https://hardwareluxx.de/index.php/news/hardware/festplatten/"
        "53978-samsung-schaltet-produktseite-zur-980-pro-ssd-online.html; "
        "assumed: both at once, and as much for small reads",
    ),
    "DRAM byte": Figure(
        1.3e-9 / 8,
        "cited: 1.3 to 2.6 nJ for 64 bits at 45 nm, Horowitz, ISSCC 2014, as quoted in "
        "https://gist.github.com/V0XNIHILI/2b6fa61edd4c06d9ffce5551065124c1; "
        "assumed: the lower end",
    ),
    "multiplication": Figure(
        4.6e-12,
        "cited: float32 at 45 nm, 3.7 pJ to multiply and 0.9 pJ to add, Horowitz, as quoted in "
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC8934428/table/T3/; "
        "assumed: decoding 16 bits is free",
    ),
}


@dataclass(frozen=True)
class TokenWork:
    """What one token needs, as means over a run.

    reads          : dict bytes of one read -> how many a token has
    loaded_bytes   : of rows put into a neuron cache, where older ones are deleted for them
    dram_bytes     : of weights that the processor reads from DRAM to multiply
    multiplications: each with its addition; one for each weight that takes part
    threads        : reads in flight at once
    """

    reads: dict = field(default_factory=dict)
    loaded_bytes: float = 0.0
    dram_bytes: float = 0.0
    multiplications: float = 0.0
    threads: int = 16

    @property
    def flash_bytes(self):
        """Bytes read from flash."""
        return sum(size * count for size, count in self.reads.items())


@dataclass(frozen=True)
class Projection:
    """Milliseconds of one token on a device; a term is None where the device is not known for it.

    total_ms  : sum of the known terms
    flattered : share of the flash bytes in reads smaller than any whose speed the profile knows;
                they are taken at the speed of its smallest
    """

    device: str
    io_ms: float
    memory_ms: float | None
    compute_ms: float | None
    flattered: float

    @property
    def total_ms(self):
        """I/O, memory management and compute, one after the other."""
        return self.io_ms + (self.memory_ms or 0.0) + (self.compute_ms or 0.0)


def project(work, profile):
    """What a token would take on a device.

    I/O     = Σ over sizes of  count · size / throughput(size, threads)
    memory  = bytes loaded into the cache / management
    compute = max(bytes of weights / memory bandwidth, multiplications / their rate)

    work : TokenWork;  profile : DeviceProfile
    returns: Projection, milliseconds
    """
    io, flattered = 0.0, 0.0
    for size, count in work.reads.items():
        io += count * size / (1e9 * throughput(profile, size, work.threads))
        flattered += count * size * (size < smallest_read(profile))
    compute = [
        amount / (1e9 * figure.value)
        for amount, figure in (
            (work.dram_bytes, profile.memory),
            (work.multiplications, profile.multiplications),
        )
        if figure is not None
    ]
    memory = profile.management and work.loaded_bytes / (1e9 * profile.management.value)
    return Projection(
        device=profile.name,
        io_ms=1000 * io,
        memory_ms=None if memory is None else 1000 * memory,
        compute_ms=1000 * max(compute) if compute else None,
        flattered=flattered / work.flash_bytes if work.flash_bytes else 0.0,
    )


def reads_of(nbytes, chunk=LONG_READ):
    """`nbytes` as reads of one size, for TokenWork.reads; long ones unless said otherwise."""
    return {chunk: nbytes / chunk}


def energy(work):
    """Joules of one token by what takes them, from ENERGY's constants.

    Bytes from flash are written to DRAM, and weights are read from it.

    returns: dict "flash", "DRAM", "multiplications", "total" -> joules
    """
    spent = {
        "flash": work.flash_bytes * ENERGY["flash byte"].value,
        "DRAM": (work.flash_bytes + work.dram_bytes) * ENERGY["DRAM byte"].value,
        "multiplications": work.multiplications * ENERGY["multiplication"].value,
    }
    return spent | {"total": sum(spent.values())}


def elements_of(weights, tied):
    """How many of some weights a token multiplies, and their bytes: all matrices among them.

    Embeddings and positions are looked up, not multiplied; a tied embedding is the head, too.

    weights : dict of `config.weight_shapes` names -> arrays or matrices;  tied : bool
    returns : (elements, bytes)
    """
    looked_up = {"positions.weight"} if tied else {"positions.weight", "embed.weight"}
    multiplied = [
        weight
        for name, weight in weights.items()
        if len(weight.shape) == 2 and name not in looked_up
    ]
    return (
        sum(weight.shape[0] * weight.shape[1] for weight in multiplied),
        sum(weight.nbytes for weight in multiplied),
    )
