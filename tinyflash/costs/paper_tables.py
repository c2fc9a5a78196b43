"""What *LLM in a flash* reports (arXiv 2312.11514 v3), and its machines as device profiles.

Milliseconds and GB are per token, batch 1, half of the model in DRAM. Figures of the paper that
contradict one another are kept as they are and listed in DISAGREEMENTS.
"""

from tinyflash.costs.cost_model import TokenWork, reads_of
from tinyflash.costs.device_profile import DeviceProfile, Figure

KIB, GB = 1024, 1e9
MODEL = "OPT-6.7B"
MODEL_BYTES = 13.4 * GB  # 16 bits a weight: T2, naive
WEIGHTS = MODEL_BYTES / 2
ROW_BYTES, BUNDLE_BYTES = 8 * KIB, 16 * KIB  # 4096 numbers of 16 bits, one row and two (§3.2)

# T2, OPT-6.7B in 16 bits on an M1 Max, by our modes: GB in DRAM, GB read a token, GB/s, I/O ms.
T2_COLUMNS = ("dram_gb", "flash_gb", "gb_per_s", "io_ms")
T2 = {
    "naive": (0.0, 13.4, 6.10, 2196.0),
    "hybrid": (6.7, 6.7, 6.10, 1090.0),
    "predictor": (4.8, 0.9, 1.25, 738.0),
    "window": (6.5, 0.2, 1.25, 164.0),
    "all": (6.5, 0.2, 2.25, 87.0),
}

# T3: (I/O, memory management, compute, total) in ms, by our modes; what it leaves out is None.
T3_COLUMNS = ("io_ms", "memory_ms", "compute_ms", "total_ms")
T3 = {
    "OPT-6.7B, M1 Max, CPU": {
        "naive": (2196, 0, 986, 3182),
        "hybrid": None,
        "all": (105, 58, 506, 669),
    },
    "OPT-6.7B, M1 Max, Metal": {
        "naive": (2196, 0, 193, 2389),
        "hybrid": None,
        "all": (92, 35, 438, 565),
    },
    "OPT-6.7B, M2, Metal": {
        "naive": (2145, 0, 125, 2270),
        "hybrid": None,
        "all": (26, 8, 271, 305),
    },
    "OPT-6.7B, RTX 4090": {
        "naive": (2196, 0, 22, 2218),
        "hybrid": None,
        "all": (30, 34, 20, 84),
    },
    "Falcon 7B, CPU": {
        "naive": (2295, 0, 800, 3095),
        "hybrid": (1147, 0, 800, 1947),
        "all": (161, 92, 453, 706),
    },
    "Persimmon 8B, CPU": {
        "naive": (2622, 0, 1184, 3806),
        "hybrid": (1311, 0, 1184, 2495),
        "all": (283, 98, 660, 1041),
    },
    "Phi-2, CPU": {
        "naive": (885, 0, 402, 1287),
        "hybrid": (309, 0, 402, 711),
        "all": (211, 76, 259, 546),
    },
    "Llama 2 7B, CPU": {
        "naive": (2166, 0, 929, 3095),
        "hybrid": (974, 0, 929, 1903),
        "all": (279, 152, 563, 994),
    },
}

# Percent of the model in DRAM, OPT-6.7B; and of the neurons: active (T6, mean of the layers in
# 16 bits), predicted (0.9 GB of T2 over the feed-forward's 64.62 % of 13.4 GB), held by the window
# and new for a token (§3.1).
DRAM_SHARES = {
    "predictors": 1.25,
    "embeddings": 3.0,
    "attention": 32.3,
    "feed-forward rows": 15.5,
}
FFN_SHARE = 0.6462
NEURON_SHARES = {"fired": 3.30, "wanted": 10.4, "held": 24.0, "loaded": 2.4}

DISAGREEMENTS = (
    "The predictor's 1.25 % of the model fits rank 128 in every layer; the average rank that the "
    "paper names, 240, takes 2.36 %.",
    "52.1 % of 13.4 GB is 6.98 GB; Table 2 says 6.5.",
    "The window is k = 4 in one place and k = 5 in another.",
    "Table 2's 0.2 GB is rounded: 0.024 · 0.6462 · 13.4 is 0.208 GB. At 2.25 GB/s that takes "
    "92 ms, which Table 3 has (Metal, M1) where Table 2 has 87.",
    "The CPU rows of Table 3 compute in float32, and their naive I/O is that of 16 bits.",
    "Naive rows read at the highest speed a disk can have (6.10 GB/s; M2: 13.4 GB in 2145 ms, "
    "6.25). On the M2 and beside the RTX 4090 the bundles come faster than that: 0.208 GB in 26 "
    "and 30 ms are 8.0 and 6.9 GB/s.",
    "With all techniques Table 3's compute on Metal takes 438 ms and 271 ms, with all weights 193 "
    "and 125 ms, though fewer than half of the weights are multiplied; the projection cannot know "
    "this.",
)

WINDOW_BYTES = 0.024 * FFN_SHARE * MODEL_BYTES  # what a token loads, not rounded: 0.208 GB


def work_of(mode):
    """The paper's own inputs for a mode: T2's bytes in the reads that §3.2 describes.

    Naive and hybrid read long; rows of a predictor and a window come in pieces of 8 KiB, bundles
    of 16 KiB. Weights multiplied: all, or the resident third, the predictor and the predicted.

    returns: TokenWork
    """
    _, flash_gb, _, _ = T2[mode]
    if mode in ("naive", "hybrid"):
        return TokenWork(reads_of(flash_gb * GB), 0.0, MODEL_BYTES, WEIGHTS, threads=32)
    chunk = BUNDLE_BYTES if mode == "all" else ROW_BYTES
    resident = sum(DRAM_SHARES[part] for part in ("predictors", "embeddings", "attention")) / 100
    share = resident + FFN_SHARE * NEURON_SHARES["wanted"] / 100
    return TokenWork(
        reads_of(flash_gb * GB, chunk),
        flash_gb * GB if mode != "predictor" else 0.0,
        share * MODEL_BYTES,
        share * WEIGHTS,
        threads=32,
    )


def _device(name, row, reads, sequential, weight_bytes=MODEL_BYTES):
    """A machine of the paper: flash from `reads` and `sequential`, the rest from a row of T3."""
    _, _, dense_ms, _ = T3[row]["naive"]
    _, memory_ms, _, _ = T3[row]["all"]
    dense = f"T3, {row}, naive: compute {dense_ms} ms"
    return DeviceProfile(
        name,
        {(chunk, 32): figure for chunk, figure in reads.items()},
        sequential,
        memory=Figure(
            weight_bytes / GB / dense_ms * 1000,
            f"paper's table: {dense} for {weight_bytes / GB:g} GB of weights; not a data sheet's",
        ),
        multiplications=Figure(
            WEIGHTS / GB / dense_ms * 1000,
            f"paper's table: {dense} for {WEIGHTS / GB:g} G weights, one multiplication each",
        ),
        management=Figure(
            WINDOW_BYTES / GB / memory_ms * 1000,
            f"paper's table: T3, {row}, all: memory {memory_ms} ms for {WINDOW_BYTES / GB:.3f} GB",
        ),
    )


_M1_READS = {
    ROW_BYTES: Figure(1.25, "paper's table: T2, + window: 1.25 GB/s, pieces of 8 KiB (§3.2)"),
    BUNDLE_BYTES: Figure(2.25, "paper's table: T2, + bundling: 2.25 GB/s, bundles of 16 KiB"),
}
_M1_LONG = Figure(
    6.10, "paper's table: T2, naive: 6.10 GB/s; assumed: reached by reads of 1 MiB and more"
)


def _bundles(row):
    """The speed of bundles that T3 implies: what a token loads, over its I/O."""
    io_ms = T3[row]["all"][0]
    speed = WINDOW_BYTES / GB / io_ms * 1000
    source = f"paper's table: T3, {row}, all: {WINDOW_BYTES / GB:.3f} GB in {io_ms} ms"
    return {BUNDLE_BYTES: Figure(speed, source)}


def _whole(row):
    """The speed of long reads that T3 implies: the model, over the naive I/O."""
    io_ms = T3[row]["naive"][0]
    source = f"paper's table: T3, {row}, naive: {MODEL_BYTES / GB:g} GB in {io_ms} ms"
    return Figure(MODEL_BYTES / GB / io_ms * 1000, source)


DEVICES = {
    "M1 Max, CPU": _device(
        "M1 Max, CPU", "OPT-6.7B, M1 Max, CPU", _M1_READS, _M1_LONG, 2 * MODEL_BYTES
    ),
    "M1 Max": _device("M1 Max, Metal", "OPT-6.7B, M1 Max, Metal", _M1_READS, _M1_LONG),
    "M2": _device(
        "M2, Metal",
        "OPT-6.7B, M2, Metal",
        _bundles("OPT-6.7B, M2, Metal"),
        _whole("OPT-6.7B, M2, Metal"),
    ),
    "RTX 4090": _device(
        "RTX 4090",
        "OPT-6.7B, RTX 4090",
        _bundles("OPT-6.7B, RTX 4090"),
        _whole("OPT-6.7B, RTX 4090"),
    ),
}
