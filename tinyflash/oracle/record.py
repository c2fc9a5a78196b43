"""Recordings: every intermediate tensor of one forward pass, and where it comes from.

    nine.safetensors   the taps under their names, float32 (float64 in float64 mode)
    nine.json          the manifest: versions, digests, command, ids, constants, order of the taps

It is the one golden format: tests and other engines read what `tinyflash record` writes. A
recording without its manifest, or with another's, does not open.
"""

import hashlib
import json
import math
import platform
from pathlib import Path

import numpy as np
from safetensors.numpy import save

import tinyflash
from tinyflash.checkpoint.mapped import files_behind, refuse_changed
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.safetensors_file import safetensors_entries
from tinyflash.checks import short
from tinyflash.files import digest, files_in, printable, read_json, refuse_foreign, write_files
from tinyflash.oracle.diff import top_two_margins
from tinyflash.oracle.tolerances import TOLERANCES
from tinyflash.taps import SQUARE_TAPS, short_name

FORMAT = 1
LARGEST_NUMBER = 2**62  # of a manifest: beyond it neither NumPy nor a message can take it
SQUARES_UP_TO = 64  # tokens: beyond, the (H, T, S) taps are recorded on request only

# What a manifest cannot lack, and what kind of thing it is.
REQUIRED = {
    "format": int,
    "engine": str,
    "versions": dict,
    "checkpoint": dict,
    "command": str,
    "ids": list,
    "rotary_layout": str | None,
    "norm_eps": float | int,
    "compute_dtype": str,
    "stored_dtypes": list,
    "tap_order": list,
    "taps_digest": str,
}
# The files that make a checkpoint; recordings may lie beside them.
CHECKPOINT_FILES = (
    "config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "flash.json",
    "resident.safetensors",
    "ffn.safetensors",
)


def record(model, ids, *, squares=None):
    """Every intermediate tensor of one forward pass over `ids`, in the order of computation.

    ids     : list of int, T of them
    squares : record attn.scores and attn.pattern, (H, T, S); None: if T is at most 64
    returns : dict tap name -> array of the model's dtype, shapes as in taps.py
    raises  : ValueError if an id is not in the vocabulary or the context overflows
    """
    squares = len(ids) <= SQUARES_UP_TO if squares is None else squares
    taps = {}

    def tap(name, tensor):
        if tensor.dtype.kind != "f":  # which neurons flash moved: no tensor of the model
            return
        if squares or short_name(name) not in SQUARE_TAPS:
            taps[name] = tensor.copy(order="C")

    model.logits(ids, tap=tap)
    return taps


def manifest_of(model, ids, taps, *, command, engine="tinyflash", versions=None):
    """What one must know of a recording to repeat it, or to judge a difference.

    model    : gives the config and the checkpoint's files, which are digested
    command  : the command line that made the recording
    engine   : what computed the taps; "tinyflash" unless it was another
    versions : dict of that engine's versions; None for ours
    returns  : dict, ready for JSON; `write_recording` adds the digest of the taps
    """
    config = model.config
    if versions is None:
        versions = {"tinyflash": tinyflash.__version__, "numpy": np.__version__}
    if model.flash:
        stored = {model.flash.store.dtype}
    else:
        checkpoint = open_checkpoint(model.path)
        stored = getattr(checkpoint, "tensor_types", None)  # GGUF's own names
        if stored is None:
            stored = {entry.dtype for entry in checkpoint.entries.values()}
    margins = top_two_margins(taps["logits"])
    return {
        "format": FORMAT,
        "engine": engine,
        "versions": {**versions, "python": platform.python_version()},
        "checkpoint": {"name": model.name, "digests": checkpoint_digests(model.path)},
        "command": command,
        "ids": [int(token) for token in ids],
        "bos_id": config.bos_id,
        "begins_with_bos": int(ids[0]) == config.bos_id,
        "rotary_layout": "half-split" if config.positions == "rotary" else None,
        "rotary_width": config.turned if config.positions == "rotary" else None,
        "norm_eps": float(config.norm_eps),
        "embedding_scale": config.embed_scale,
        "norm_plus_one": config.norm_plus_one,
        "window": config.window,
        "causal": config.causal,
        "compute_dtype": str(taps["logits"].dtype),
        "stored_dtypes": sorted(stored),
        "tolerances": TOLERANCES,
        "top_two_margins": [float(m) if math.isfinite(m) else None for m in margins],
        "tap_order": list(taps),
    }


def checkpoint_digests(path):
    """SHA-256 of every file of weights and config: dict file name -> hexadecimal digits."""
    path = Path(path)
    if path.is_file():
        return {path.name: digest(path)}
    return {file.name: digest(file) for file in files_in(path, *CHECKPOINT_FILES)}


def write_recording(path, taps, manifest):
    """Write taps to `path` and the manifest beside it, as .json; both whole or not at all.

    path    : ends with .safetensors
    raises  : ValueError if it does not, or if the manifest's order is not that of the taps
    """
    path = Path(path)
    manifest_path = manifest_beside(path)
    if manifest["tap_order"] != list(taps):
        raise ValueError(f"{path}: the manifest's tap_order is not the order of the taps.")
    data = save({name: np.ascontiguousarray(tensor) for name, tensor in taps.items()})
    manifest = {**manifest, "taps_digest": hashlib.sha256(data).hexdigest()}
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    refuse_foreign_recording(path)
    # After a kill between the two, the digest is not the manifest's and nothing opens.
    write_files({path: data, manifest_path: text})


def refuse_foreign_recording(path):
    """Raise a ValueError if a recording to `path` would replace what is no recording.

    Both count: the taps, and the manifest beside them, which may be somebody's config.json.
    """
    path = Path(path)
    refuse_foreign(manifest_beside(path), checked_manifest, "the manifest of a recording")
    refuse_foreign(path, is_recording, "a recording")


def is_recording(path):
    """Whether a file holds the taps that the manifest beside it lists."""
    return set(safetensors_entries(path)) == set(
        checked_manifest(manifest_beside(path))["tap_order"]
    )


def read_recording(path):
    """The taps (mapped, in their order) and the manifest of a recording.

    returns : dict tap name -> array, dict
    raises  : FileNotFoundError if the taps or the manifest are missing; ValueError if either is
              damaged, or they do not belong together
    """
    path = Path(path)
    manifest_path = manifest_beside(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such recording.")
    if not manifest_path.is_file():
        raise FileNotFoundError(
            f"{path}: its manifest {manifest_path.name} is missing, so nobody knows what it "
            "records; make the recording again."
        )
    manifest = checked_manifest(manifest_path)
    entries = safetensors_entries(path)
    if set(entries) != set(manifest["tap_order"]):
        odd = sorted(set(entries) ^ set(manifest["tap_order"]))[0]
        raise ValueError(
            f"{path}: only one of the file and its manifest's tap_order has {printable(odd)}; "
            "make the recording again."
        )
    for name, entry in entries.items():
        if entry.dtype not in ("float32", "float64"):
            raise ValueError(
                f"{path}: {printable(name)} is {entry.dtype}; a recording holds full float32 or "
                "float64."
            )
    if digest(path) != manifest["taps_digest"]:
        raise ValueError(
            f"{path}: its SHA-256 is not the one in {manifest_path.name}, so they do not belong "
            "together; make the recording again."
        )
    taps = {name: entries[name].load() for name in manifest["tap_order"]}
    refuse_changed(files_behind(taps.values()))  # the digest is that of what was mapped before
    return taps, manifest


def checked_manifest(path):
    """A manifest with everything in it that it cannot lack; raises ValueError if not."""
    manifest = read_json(path, unique_keys=True)
    for key, kind in REQUIRED.items():
        if key not in manifest or not isinstance(manifest[key], kind):
            raise ValueError(
                f"{path}: the manifest has no {key} that makes sense; make the recording again."
            )
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{path}: the manifest is of format {short(manifest['format'])}, and this tinyflash "
            f"reads format {FORMAT}; make the recording again."
        )
    for key, kind in (("ids", int), ("tap_order", str)):
        if not manifest[key] or not all(type(item) is kind for item in manifest[key]):
            raise ValueError(
                f"{path}: the manifest's {key} is not a list of "
                f"{'token ids' if kind is int else 'names'}; make the recording again."
            )
    if len(set(manifest["tap_order"])) < len(manifest["tap_order"]):
        raise ValueError(
            f"{path}: the manifest's tap_order has a name twice; make the recording again."
        )
    window, causal = manifest.get("window"), manifest.get("causal", True)
    tokens = type(window) is int and 0 < window <= LARGEST_NUMBER
    if not (window is None or tokens) or type(causal) is not bool:
        raise ValueError(
            f"{path}: the manifest says causal {short(causal)} and window "
            f"{short(window)}; causal is true or false, and window null or a number of tokens."
        )
    if not 0 <= manifest["norm_eps"] <= LARGEST_NUMBER:
        raise ValueError(
            f"{path}: the manifest says norm_eps {short(manifest['norm_eps'])}; it is a small "
            "number above 0."
        )
    if manifest["compute_dtype"] not in TOLERANCES:
        raise ValueError(
            f"{path}: the manifest says compute_dtype {short(manifest['compute_dtype'])}; it is "
            f"one of {', '.join(TOLERANCES)}."
        )
    return manifest


def manifest_beside(path):
    """Where the manifest of a recording stands; raises ValueError for an odd file name."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a recording ends with .safetensors.")
    return path.with_suffix(".json")
