"""The goldens of tests/golden, for every test that compares with them."""

from functools import cache
from pathlib import Path

import numpy as np

import tinyflash
from tinyflash.oracle.record import manifest_of, read_recording, record

GOLDEN = Path(__file__).parent / "golden"

WHOLE = (
    "opt",
    "opt-350m",
    "opt-bare",
    "gpt2",
    "llama",
    "llama3",
    "llama-biases",
    "llama-linear",
    "mistral",
    "mobilellm",
    "mobilellm-ls",
    "qwen2",
    "qwen2-window",
    "gemma",
    "falcon",
    "falcon-rw",
    "falcon-40b",
    "phi",
    "persimmon",
)
HALF = (
    *(
        f"{family}-{dtype}"
        for family in ("opt", "gpt2", "llama", "mistral")
        for dtype in ("float16", "bfloat16")
    ),
    "mobilellm-float16",
    "qwen2-bfloat16",
    "gemma-bfloat16",
    "falcon-bfloat16",
    "falcon-40b-float16",
    "phi-float16",
    "persimmon-bfloat16",
)
CHECKPOINTS = WHOLE + HALF  # the models that continue a text
ENCODERS = ("distilbert",)  # it fills in words: no cache, no greedy text
RECORDINGS = (
    *((name, "nine") for name in CHECKPOINTS + ENCODERS),
    *((name, "one") for name in WHOLE + ENCODERS),
    ("mistral", "window"),
    ("qwen2-window", "window"),
)


@cache
def model_of(name, dtype="float32"):
    """The model of one golden checkpoint."""
    return tinyflash.load(GOLDEN / name, dtype=dtype)


@cache
def golden(name, text="nine"):
    """(taps, manifest) as transformers computed them."""
    return read_recording(GOLDEN / name / f"{text}.safetensors")


def recorded(model, ids):
    """(taps, manifest) as `model` computes them."""
    taps = record(model, ids, squares=True)
    return taps, manifest_of(model, ids, taps, command="pytest")


def largest_relative(a, b):
    """Largest |b - a| as a share of the standard deviation of a."""
    return float(np.max(np.abs(b - a)) / np.std(a))


def changed(recording, edit):
    """A copy of (taps, manifest) whose taps `edit` has changed in place."""
    taps, manifest = recording
    taps = {name: tensor.copy() for name, tensor in taps.items()}
    edit(taps)
    return taps, {**manifest, "tap_order": list(taps)}


def rounded(tensor, dtype):
    """A float32 array of numbers that a 16-bit dtype has."""
    if dtype == "float16":
        return tensor.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(tensor, dtype=np.float32).view(np.uint32)
    return (bits + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)
