"""`tinyflash train predictor`: from a model and a text to predictors in its flash directory.

All sequences pass through one layer after the other (layer_by_layer.py). What a layer does with
them is recorded, its predictor is trained and measured, and what was recorded is dropped again:
DRAM holds one layer and the residual stream. After each layer the state is saved beside the flash
directory, so that the same command goes on where it was killed.
"""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.checkpoint.mapped import files_behind, refuse_changed
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import find_model
from tinyflash.directories import own_directory
from tinyflash.families import read_config
from tinyflash.flash.activity import exact_note
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.store.cached import open_or_convert
from tinyflash.flash.store.directory import is_store, open_store, resident_weights
from tinyflash.flash.store.predictor_file import write_predictors
from tinyflash.flash.store.thresholds import checked, thresholds_of
from tinyflash.flash.store.verified import verify_once
from tinyflash.flash.training.fatrelu import calibrate
from tinyflash.flash.training.layer_by_layer import (
    blas_threads,
    embedded_sequences,
    layer_weights,
    let_go_of,
    run_block,
)
from tinyflash.flash.training.learning import (
    Recipe,
    Recorded,
    choose_threshold,
    train_predictor_of,
)
from tinyflash.flash.training.report import measure
from tinyflash.flash.training.run_state import begin_or_resume, is_state, save_layer, state_files
from tinyflash.ops import activation
from tinyflash.progress import quiet
from tinyflash.tokenizer import tokenizer_of
from tinyflash.training.refusals import refuse_below, refuse_no_share
from tinyflash.training.run_files import forget
from tinyflash.training.texts import FEWEST, SHORTEST, read_texts, split_sequences
from tinyflash.workers import WORKERS, OneBlasThread


@dataclass(frozen=True)
class Settings:
    """How predictors are trained.

    ranks           : text, see `parse_ranks`; None for the paper's
    false_negatives : wanted share of firing neurons that are missed, on text not trained on
    epochs          : passes over the text
    tokens          : most tokens of the text to use, or None for all
    sparsity        : if given, with thresholds at which so large a share rests
    """

    ranks: str | None = None
    false_negatives: float = 0.05
    epochs: int = 2
    tokens: int | None = None
    sparsity: float | None = None

    def __post_init__(self):
        refuse_no_share(false_negatives=self.false_negatives, sparsity=self.sparsity)
        refuse_below(1, epochs=self.epochs)
        refuse_below(FEWEST * SHORTEST, tokens=self.tokens)


def train_predictor(model, text, *, heldout=None, progress=quiet, **settings):
    """Train activity predictors; the flash directory gets all of them at once, or none.

    model    : a flash directory, or a model that becomes one in the cache
    text     : list of text files that activity is recorded on
    heldout  : a text file for the report, or None for the end of `text`
    settings : of Settings, as epochs=1
    returns  : dict for the summary, "layers" among it
    raises   : ValueError or OSError, one sentence, for bad input; what can be known without
               reading the weights is said before they are read
    """
    wanted, path = Settings(**settings), find_model(model)
    config, tokenizer, thresholds = look_at(path)
    if wanted.sparsity is None and thresholds is None and exact_note(config):
        raise ValueError(
            f"There is nothing to predict: {exact_note(config)} Give --sparsity 0.9 to choose one."
        )
    ranks = parse_ranks(wanted.ranks, config)
    ids = read_texts(tokenizer, text)
    apart = read_texts(tokenizer, [heldout]) if heldout else None
    parts = split_sequences(ids, apart, tokenizer, config, wanted.tokens)

    store = open_or_convert(path, model, progress)
    with progress("Checking what was written", "bytes") as report:
        verify_once(store, report)
    if wanted.sparsity is not None:
        with progress("Thresholds", "layers") as report:
            thresholds = calibrate(store, parts["train"], wanted.sparsity, report)
    began = time.perf_counter()
    recipes = [Recipe(rank, wanted.epochs) for rank in ranks]
    with progress("Predictors", "layers") as report:
        store, layers = train_predictors(
            store, parts, recipes, wanted.false_negatives, report, thresholds
        )
    tokens = {part: sum(map(len, sequences)) for part, sequences in parts.items()}
    errors = ("false_negatives", "false_positives", "predicted", "active")
    return {
        "store": str(store.path),
        "tokens": tokens,
        "seconds": round(time.perf_counter() - began, 1),
        **{name: float(np.mean([layer[name] for layer in layers])) for name in errors},
        "layers": layers,
    }


def look_at(path):
    """What is known of a model or a flash directory before its weights are read.

    returns: ModelConfig, Tokenizer, thresholds (or None)
    raises : ValueError or OSError, one sentence, if it is no model or has no tokenizer
    """
    if is_store(path):
        store = open_store(path)
        config, thresholds = store.config, thresholds_of(store)
        checkpoint = Checkpoint(store.path, store.hf_config, {})
    else:
        checkpoint = open_checkpoint(path)
        config, thresholds = read_config(checkpoint.config), None
    tokenizer = tokenizer_of(checkpoint)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer, so it cannot read --text.")
    return config, tokenizer, thresholds


def train_predictors(store, parts, recipes, false_negatives=0.05, report=None, thresholds=None):
    """Train a predictor for each layer, and write them into the flash directory.

    parts   : dict "train", "calibration", "heldout" -> list of sequences, int (T,) each
    recipes : one Recipe a layer;  false_negatives : wanted share, on the calibration text
    report  : function (layers done, layers, **numbers), or None
    thresholds : one a layer, which the directory gets with the predictors; None for its own
    returns : the Store opened again; what flash.json says of each layer, list of dicts
    raises  : ValueError if a run in progress has other settings; OSError if flash cannot be read
    """
    sequences = [ids for part in parts.values() for ids in part]
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    thresholds = (
        thresholds_of(store) if thresholds is None else checked(thresholds, store.config.layers)
    )
    description = {
        "model": {name: about["sha256"] for name, about in sorted(store.manifest["files"].items())
                  if name in ("resident.safetensors", "ffn.safetensors")},
        "recipes": [asdict(recipe) for recipe in recipes],
        "false negatives": false_negatives,
        "text": digest.hexdigest(),
        "parts": {part: len(of) for part, of in parts.items()},
        "thresholds": thresholds,
    }  # fmt: skip
    state = Path(f"{store.path}.training")
    with own_directory(state, is_state, "training predictors"):
        predictors, measured = train_layers(
            store, state, description, sequences, parts, recipes, report
        )
        tokens = sum(len(ids) for ids in parts["train"])
        about = {"layers": measured, "text": description["text"], "tokens": tokens}
        store = write_predictors(store, predictors, about, thresholds)
        forget(state, state_files(store.config.layers))
    return store, store.manifest["predictor"]["layers"]


def train_layers(store, state, description, sequences, parts, recipes, report):
    """Train the predictor of one layer after the other, or go on where an earlier run stopped.

    returns: the Predictors, and what was measured of each: list of dicts
    """
    config, thresholds = store.config, description["thresholds"]
    weights = resident_weights(store)
    predictors, measured, stream = begin_or_resume(state, description, sequences)
    if stream is None:
        stream = embedded_sequences(weights, config, sequences)
    with FlashReader(store.ffn_path) as reader, blas_threads(config):
        for i in range(len(predictors), config.layers):
            refuse_changed(files_behind(weights.values()))
            threshold = thresholds[i] if thresholds else None
            layer = layer_weights(store, reader, weights, i, threshold)
            recorded = record_layer(layer, config, i, stream)
            of = divided(recorded, parts)
            prefix = f"layers.{config.weight_layer(i)}.ffn."
            name = prefix + ("gate" if config.gated else "up")
            projection, bias = layer[f"{name}.weight"], layer.get(f"{name}.bias")
            predictor = train_predictor_of(of["train"], projection, bias, recipes[i])
            wanted = description["false negatives"]
            cutoff = choose_threshold(predictor, of["calibration"], wanted)
            predictor = Predictor(predictor.down, predictor.up, predictor.bias, cutoff)
            predictors.append(predictor)
            measured.append(measure(predictor, of["heldout"], [len(x) for x in parts["heldout"]]))
            let_go_of(layer)
            save_layer(state, predictors, measured, stream)
            if report:
                errors = measured[-1]["false_negatives"], measured[-1]["false_positives"]
                report(i + 1, config.layers, missed=errors[0], needless=errors[1])
    return predictors, measured


def record_layer(layer, config, i, stream):
    """Take all sequences through layer i, and record what its feed-forward saw and did.

    Two workers take a sequence each, and BLAS one thread: small products wait for nobody.

    layer  : what `layer_weights` gave
    stream : list of (T, D), moved on in place to what enters the next layer
    returns: Recorded, the sequences in order
    """
    F, D = config.ffn_width, config.width
    starts = np.cumsum([0] + [len(x) for x in stream])
    inputs = np.empty((starts[-1], D), dtype=np.float16)
    bits = np.empty((starts[-1], -(-F // 8)), dtype=np.uint8)
    threshold = layer.get(f"layers.{config.weight_layer(i)}.ffn.threshold")
    activate = activation(config.activation, threshold)
    telling = "ffn.gate" if config.gated else "ffn.pre"

    def run(n):
        tokens = slice(starts[n], starts[n + 1])

        def see(name, tensor):
            if name == "ffn.in":
                inputs[tokens] = np.clip(tensor, -65504, 65504)  # what float16 has
            elif name == telling:
                bits[tokens] = np.packbits(activate(tensor) != 0, axis=1)

        stream[n] = run_block(layer, config, i, stream[n], see)

    with ThreadPoolExecutor(WORKERS) as executor, OneBlasThread():
        list(executor.map(run, range(len(stream))))
    return Recorded(inputs, bits, F)


def divided(recorded, parts):
    """What was recorded of each part of the text: dict part -> Recorded."""
    of, first = {}, 0
    for part, sequences in parts.items():
        last = first + sum(len(ids) for ids in sequences)
        of[part] = Recorded(recorded.inputs[first:last], recorded.bits[first:last], recorded.F)
        first = last
    return of


def parse_ranks(text, config):
    """The rank of each layer's predictor: `128` for all, or `28x128,4x1024` for 28, then 4 layers.

    text   : str, or None for `default_ranks`
    raises : ValueError, one sentence, if it is neither, or of another number of layers
    """
    if text is None:
        return default_ranks(config)
    L, most = config.layers, min(config.width, config.ffn_width)
    try:
        groups = [[int(number) for number in group.split("x")] for group in text.split(",")]
        groups = [[L, *group] if text.isdecimal() else group for group in groups]
        ranks = [rank for count, rank in groups for _ in range(count)]
    except ValueError:
        raise ValueError(f"--ranks is a number or groups as 28x128,4x1024, not {text!r}.") from None
    if len(ranks) != L or any(count < 1 for count, _ in groups):
        raise ValueError(f"--ranks {text} is for {len(ranks)} layers, and the model has {L}.")
    if not all(1 <= rank <= most for rank in ranks):
        raise ValueError(f"A predictor's rank lies between 1 and {most} here; --ranks says {text}.")
    return ranks


def default_ranks(config):
    """The ranks of LLM in a flash, by family, at most D/4: small models have less.

    Sensitive layers get the larger rank: an eighth of them, the last ones or (Llama) those in the
    middle. Where the paper lists three ranks (Phi-2) the layers are shared out in their order; it
    gives the last layers of Phi-2 no predictor, and we the largest.
    """
    L = config.layers
    few = max(1, round(L / 8))
    if config.family == "phi":
        ranks = [(160, 480, 800)[3 * i // L] for i in range(L)]
    elif config.family in ("falcon", "persimmon"):
        ranks = [256] * (L - few) + [1152] * few
    elif config.gated:
        first = (L - few) // 2
        ranks = [1024 if first <= i < first + few else 256 for i in range(L)]
    else:
        ranks = [128] * (L - few) + [1024] * few
    return [max(1, min(rank, config.width // 4)) for rank in ranks]
