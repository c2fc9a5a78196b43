"""Predictors in a flash directory: predictor.safetensors, and what flash.json says of them.

The file holds the factors of every layer. flash.json says under "predictor" what was measured: for
each layer its rank, threshold, shares of false negatives and positives.
"""

from contextlib import suppress

import numpy as np

from tinyflash.checkpoint.safetensors_file import safetensors_entries
from tinyflash.files import write_files
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.store.bundles import SAFETENSORS_NAMES, layout
from tinyflash.flash.store.directory import check_digest, open_store
from tinyflash.flash.store.manifest import (
    MANIFEST,
    manifest_text,
    refuse_changed_meanwhile,
    without_predictors,
    write_manifest,
)
from tinyflash.flash.store.verified import fingerprint, note_verified, noted
from tinyflash.flash.store.writing import digested
from tinyflash.matrices.half import HalfMatrix, refuse_infinite
from tinyflash.ops import dense

FILE = "predictor.safetensors"
AGAIN = "train the predictors again"
PARTS = {"down": "float16", "up": "float16", "bias": "float32"}


def read_predictors(store, dtype=np.float32):
    """The predictors of a flash directory, one a layer, mapped; None if none were trained.

    dtype  : what factors decode to: float32, or float64 for proofs
    raises : ValueError if the file is missing from flash.json, changed, or of another model
    """
    about = store.manifest.get("predictor")
    if about is None:
        return None
    path = store.path / FILE
    if FILE not in store.manifest["files"]:
        raise ValueError(f"{store.path / MANIFEST} tells of predictors but not of {FILE}; {AGAIN}.")
    check_digest(path, store.manifest["files"][FILE]["sha256"])
    described = checked_layers(about, store)
    entries = safetensors_entries(path)
    expected = {
        name: shape
        for i, layer in enumerate(described)
        for name, shape in predictor_shapes(store.config, i, layer["rank"]).items()
    }
    stored = {name: entry.shape for name, entry in entries.items()}
    if stored != expected or any(e.dtype != PARTS[part_of(n)] for n, e in entries.items()):
        raise ValueError(
            f"{path} does not hold the predictors of this model and of {MANIFEST}; {AGAIN}."
        )
    predictors = []
    for i, layer in enumerate(described):
        down, up, bias = (entries[tensor_name(i, part)].load() for part in PARTS)
        if not np.isfinite(bias).all():
            raise ValueError(f"{path}: {tensor_name(i, 'bias')} holds Inf or NaN; {AGAIN}.")
        factors = (
            HalfMatrix(factor, tensor_name(i, part), dtype)
            for part, factor in (("down", down), ("up", up))
        )
        predictors.append(Predictor(*factors, bias.astype(dtype), float(layer["threshold"])))
    return predictors


def checked_layers(about, store):
    """What flash.json says of each predictor; ValueError unless it is one a layer and sane."""
    layers = about.get("layers") if isinstance(about, dict) else None
    sane = (
        isinstance(layers, list)
        and len(layers) == store.config.layers
        and all(
            isinstance(layer, dict)
            and type(layer.get("rank")) is int
            and layer["rank"] >= 1
            and isinstance(layer.get("threshold"), float)
            and 0 < layer["threshold"] < 1
            for layer in layers
        )
    )
    if not sane:
        raise ValueError(
            f"{store.path / MANIFEST} does not describe one predictor for each of "
            f"{store.config.layers} layers; {AGAIN}."
        )
    return layers


def write_predictors(store, predictors, report, thresholds=None):
    """Put predictors, one a layer, into a flash directory; returns the Store opened again.

    An error leaves the directory as it was, and so does a kill. Only while predictors replace
    others, or before flash.json tells of new ones, a kill leaves it without any, and whole.

    predictors : Predictors;  factors are written as float16, biases as float32
    report     : dict for flash.json under "predictor"; "layers" has one dict a layer, to which
                 `rank` and `threshold` are added here
    thresholds : one a layer, that the predictors were trained for; None for those it has
    raises     : ValueError if they do not fit the model, or hold numbers that float16 has not;
                 OSError if the disk is full
    """
    config = store.config
    shapes, arrays = {}, {}
    if len(predictors) != config.layers or len(report["layers"]) != config.layers:
        raise ValueError(f"{store.path} takes one predictor for each of {config.layers} layers.")
    for i, predictor in enumerate(predictors):
        expected = predictor_shapes(config, i, predictor.rank)
        for part, dtype in PARTS.items():
            name = tensor_name(i, part)
            arrays[name] = stored_array(getattr(predictor, part), name, dtype)
            if arrays[name].shape != expected[name]:
                raise ValueError(
                    f"{name} has shape {arrays[name].shape}, and this model takes {expected[name]}."
                )
            shapes[name] = (SAFETENSORS_NAMES[dtype], expected[name])
    layers = [
        {"rank": predictor.rank, "threshold": float(predictor.threshold), **measured}
        for predictor, measured in zip(predictors, report["layers"], strict=True)
    ]
    # Widest first, so that every tensor lies on a multiple of its own number's size.
    shapes = dict(sorted(shapes.items(), key=lambda item: item[1][0] != "F32"))
    file, files = layout(shapes, alignment=8), {}
    manifest = without_predictors(store.manifest, FILE)
    about = {"predictor": {**report, "layers": layers}}
    if thresholds is not None:
        about["thresholds"] = thresholds

    def write_factors(out):
        files[FILE] = digested(out, (file.header, *(arrays[name] for name in shapes)))

    def write_description(out):
        described = manifest | about | {"files": manifest["files"] | files}
        out.write(manifest_text(described).encode())

    was_verified = noted(store) == fingerprint(store)
    refuse_changed_meanwhile(store)
    replaces = FILE in store.manifest["files"]
    try:
        if replaces:
            write_manifest(store.path, manifest)
        write_files({store.path / FILE: write_factors, store.path / MANIFEST: write_description})
    except BaseException:
        if replaces:
            with suppress(OSError):
                write_manifest(store.path, store.manifest)
        raise
    written = open_store(store.path)
    if was_verified:  # all but what we have just written; that was digested on its way
        note_verified(written)
    return written


def stored_array(factor, name, dtype):
    """A factor or bias as it goes into the file.

    raises: ValueError if a number does not fit the dtype
    """
    array = dense(factor)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array.astype(dtype))
    if dtype == "float16":
        refuse_infinite(array.view(np.uint16), dtype, name)
    elif not np.isfinite(array).all():
        raise ValueError(f"{name} holds Inf or NaN; {AGAIN}.")
    return array


def predictor_shapes(config, layer, rank):
    """Name and shape of the tensors of one layer's predictor, in the order of the file."""
    D, F = config.width, config.ffn_width
    shapes = {"down": (rank, D), "up": (F, rank), "bias": (F,)}
    return {tensor_name(layer, part): shape for part, shape in shapes.items()}


def tensor_name(layer, part):
    """What a part of a layer's predictor is called in the file."""
    return f"layers.{layer}.predictor.{part}"


def part_of(name):
    """The part that a tensor of the file is: `layers.3.predictor.up` -> `up`."""
    return name.rpartition(".")[2]
