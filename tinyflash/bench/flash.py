"""What a token costs on flash, mode by mode: Tables 2 and 3 of *LLM in a flash* on this machine.

    tinyflash bench flash MODEL --memory 50%

Each mode opens the model anew, reads a prompt, and is then fed the next tokens of a recorded text
one at a time: never its own, so that all modes do the same work. Every figure of a mode is counted
or timed in its run; what is computed from them is in flash_derived.py, the tables in
flash_report.py.
"""

import gc
import platform
import statistics
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

import tinyflash
from tinyflash.bench.flash_derived import with_derived
from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.checkpoint.sources import embedded, find_model
from tinyflash.costs.cost_model import elements_of
from tinyflash.costs.device_profile import load_profile
from tinyflash.describe import describe_flash
from tinyflash.files import read_text
from tinyflash.flash.budget import parse_memory
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.feed_forward import MODES
from tinyflash.flash.store.cached import open_or_convert
from tinyflash.flash.store.directory import FFN, RESIDENT
from tinyflash.flash.store.verified import verify_once
from tinyflash.matrices.half import HalfMatrix
from tinyflash.ops import linear
from tinyflash.progress import quiet
from tinyflash.tokenizer import tokenizer_of

SAME_COST = ("naive", "hybrid")  # modes in which every token costs the same, and much:
FEW = 4  # so this many are enough
KEPT = ("window", "all")  # modes that keep rows for the next token
SPEED_SECONDS = 0.3  # of multiplying, to know the machine's speed
MATRIX_BYTES = 64 << 20  # of float32, larger than caches


@dataclass(frozen=True)
class Settings:
    """What is measured.

    tokens  : after the prompt;  prompt : tokens of text read first
    text    : file of the tokens fed, or None for the embedded held-out text
    modes   : names with commas, or None for all
    window  : tokens it is long, or None for as many as fit
    profile : file with the profile of this machine's disk, or None
    """

    tokens: int = 32
    prompt: int = 128
    text: str | None = None
    modes: str | None = None
    window: int | None = None
    profile: str | None = None


def bench_flash(model, memory="50%", *, progress=quiet, **settings):
    """Measure what a token costs on flash, mode by mode.

    model    : path, hub id or word;  memory : DRAM for weights and KV cache
    settings : of Settings, as tokens=8
    returns  : dict, see `with_derived`
    raises   : ValueError or OSError, one sentence, for bad input, or if no mode could run
    """
    wanted = Settings(**settings)
    modes = modes_of(wanted.modes)
    profile = load_profile(wanted.profile) if wanted.profile else None
    store = open_or_convert(find_model(model), model, progress)
    model_bytes = sum(store.manifest["files"][name]["bytes"] for name in (RESIDENT, FFN))
    parse_memory(memory, model_bytes)
    ids, text_name = stream(store, wanted.text, wanted.prompt, wanted.tokens)
    with progress("Checking what was written", "bytes") as report:
        verify_once(store, report)
    with progress("Flash", "tokens") as report:
        runs = runs_of(modes, store, memory, ids, wanted, report)
    if all("error" in run for run in runs):
        raise ValueError(runs[0]["error"])
    synthetic = bool(store.hf_config.get("_synthetic"))
    neurons = store.config.layers * store.config.ffn_width
    result = {
        "title": f"LLM in a flash: {model} in {memory} of its memory"
        + (" (synthetic weights)" if synthetic else ""),
        "synthetic": synthetic,
        "model": str(model),
        "memory": str(memory),
        "model_bytes": model_bytes,
        "prompt_tokens": wanted.prompt,
        "text": text_name,
        "machine": f"{platform.node()}, {platform.system()} {platform.machine()}",
        "date": date.today().isoformat(),
        "neurons": neurons,
        "predictor": heldout(store.manifest.get("predictor"), neurons),
        "runs": runs,
    }
    return with_derived(result, profile)


def runs_of(modes, store, memory, ids, wanted, report):
    """What each mode did, a dict each: see `measure`, or why it could not run.

    ids : the tokens fed;  report : function (tokens done, tokens)
    """
    runs, done = [], 0
    total = sum(tokens_of(mode, wanted.tokens) for mode in modes)
    settings = {"memory": memory}
    settings |= {} if wanted.window is None else {"k": wanted.window}
    for mode in modes:
        tokens = tokens_of(mode, wanted.tokens)
        report(done, total)
        fed = ids[: wanted.prompt + tokens]
        try:
            model = tinyflash.load(store.path, mode=mode, **settings)
            cache = model.new_cache(len(fed))
        except ValueError as error:
            runs.append({"mode": mode, "error": str(error)})
        else:
            runs.append(measure(model, cache, fed, wanted.prompt, report, done, total))
        model = cache = None
        gc.collect()  # its rows, before the next mode takes its own
        done += tokens
    return runs


def modes_of(text):
    """The modes named in a text with commas, in the order of MODES; all of them for None.

    raises: ValueError for a word that is none
    """
    if text is None:
        return MODES
    asked = [word.strip() for word in text.split(",")]
    for word in asked:
        if word not in MODES:
            raise ValueError(f"--modes takes {', '.join(MODES)} with commas, not {word!r}.")
    return tuple(mode for mode in MODES if mode in asked)


def tokens_of(mode, tokens):
    """How many tokens a mode is measured for."""
    return min(tokens, FEW) if mode in SAME_COST else tokens


def stream(store, text, prompt, tokens):
    """The recorded tokens that every mode is fed, and what they are called.

    text   : file in UTF-8, or None for the embedded held-out text
    returns: int64 (prompt + tokens,), name
    raises : ValueError, one sentence, if there are too few, or too many for the model's context
    """
    if prompt < 1 or tokens < 1:
        raise ValueError("A prompt and a measurement take at least one token each.")
    if prompt + tokens > store.config.context:
        raise ValueError(
            f"{prompt} tokens of prompt and {tokens} more do not fit the model's context of "
            f"{store.config.context}; give a smaller --prompt or --tokens."
        )
    path = Path(text) if text else embedded("tiny-opt").parent / "heldout.txt"
    tokenizer = tokenizer_of(Checkpoint(store.path, store.hf_config, {}))
    if tokenizer is None:
        raise ValueError(
            f"{store.path} has no tokenizer to read {path.name} with; put tokenizer.json there."
        )
    ids = tokenizer.encode(read_text(path))
    if len(ids) < prompt + tokens:
        raise ValueError(
            f"{path} has {len(ids)} tokens, and {prompt + tokens} are needed; give a longer text."
        )
    return np.array(ids[: prompt + tokens], dtype=np.int64), path.name


def measure(model, cache, ids, prompt, report, done, total):
    """Feed the tokens after the prompt to a model, one at a time, and keep what each cost.

    cache  : of the model, empty
    ids    : int (prompt + N,);  report, done, total: progress
    returns: dict; sums over the N tokens unless a name says otherwise
    """
    engine = model.flash
    began = time.perf_counter()
    model.logits(ids[:prompt], cache)
    prompt_seconds = time.perf_counter() - began
    seconds, spent = [], TokenCounters()
    for token in ids[prompt:]:
        began = time.perf_counter()
        model.logits([token], cache)
        seconds.append(time.perf_counter() - began)
        spent = spent + engine.last_cost
        report(done + len(seconds), total, seconds=seconds[-1])
    return {
        "mode": engine.mode,
        "keeps_rows": engine.mode in KEPT,
        "described": describe_flash(engine),
        "tokens": len(seconds),
        "seconds": seconds,
        "prompt_seconds": prompt_seconds,
        "counters": counters_of(spent),
        "dram_bytes": engine.nbytes,
        "components": engine.components(),
        "threads": engine.reader.threads,
        "row_bytes": row_bytes(engine),
        "work": per_token_work(model, spent, cache, len(seconds)),
        "multiply_speed": multiply_speed(model),
        "memory_speed": memory_speed(),
    }


def counters_of(spent):
    """TokenCounters as a dict that JSON knows."""
    return vars(spent) | {"chunk_sizes": {int(n): c for n, c in sorted(spent.chunk_sizes.items())}}


def row_bytes(engine):
    """Bytes that one neuron brings from flash: what its source of activity knows is left out."""
    store, known = engine.store, len(engine.feed_forwards[0].activity.knows)
    return store.row_bytes * (len(store.parts) - known) // len(store.parts)


def per_token_work(model, spent, cache, tokens):
    """What a token multiplies, and the bytes of DRAM that it reads for that.

    All matrices outside the feed-forward, the keys and values, what tells who is active, and the
    rows of the neurons used.
    """
    engine, config = model.flash, model.config
    resident, resident_bytes = elements_of(engine.weights, config.tied)
    keys_and_values = 2 * config.layers * config.heads * config.head_width * cache.length
    cached = 2 * config.layers * config.kv_heads * config.head_width * cache.length
    key_bytes = cache.keys[0].dtype.itemsize
    number_bytes = np.dtype(engine.store.numpy_dtype).itemsize
    feed_forward = sum(layer.activity.elements for layer in engine.feed_forwards)
    feed_forward += spent.wanted / tokens * row_bytes(engine) / number_bytes
    return {
        "multiplications": resident + keys_and_values + feed_forward,
        "dram_bytes": resident_bytes + cached * key_bytes + feed_forward * number_bytes,
    }


def multiply_speed(model):
    """Multiplications a second with the model's largest matrix in DRAM, one row of x."""
    matrices = [w for w in model.weights.values() if len(w.shape) == 2]
    halves = [matrix for matrix in matrices if isinstance(matrix, HalfMatrix)]
    matrix = max(halves or matrices, key=lambda m: m.shape[0] * m.shape[1])
    x = np.ones((1, matrix.shape[1]), dtype=model.dtype)
    return matrix.shape[0] * matrix.shape[1] / seconds_of(lambda: linear(x, matrix))


def memory_speed():
    """Bytes a second of a float32 matrix that is multiplied by a vector and fits no cache."""
    matrix = np.ones((MATRIX_BYTES // 4 // 4096, 4096), dtype=np.float32)
    x = np.ones(4096, dtype=np.float32)
    return matrix.nbytes / seconds_of(lambda: matrix @ x)


def seconds_of(work):
    """Median seconds of a call, over a third of a second and three calls at least."""
    work()
    seconds, began = [], time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - began < SPEED_SECONDS:
        before = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - before)
    return statistics.median(seconds)


def heldout(predictor, neurons):
    """What flash.json says of the predictors on text they never saw, over all layers.

    predictor : its section, or None;  neurons : L·F
    returns   : None, or dict of means, and under "s_agg" the share of all neurons predicted for
                the last 1, 2, … tokens
    """
    if not predictor:
        return None
    layers = predictor["layers"]
    names = ("active", "predicted", "false_negatives", "false_positives", "rank")
    means = {name: statistics.fmean(layer[name] for layer in layers) for name in names}
    held = zip(*(layer["window"]["mean"] for layer in layers), strict=True)
    return means | {"s_agg": [sum(lengths) / neurons for lengths in held]}
