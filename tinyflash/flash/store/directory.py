"""The flash directory: what it holds, opening it, checking it.

    config.json  tokenizer.json ...   the model's own small files, as they are
    resident.safetensors              all weights but the matrices of the feed-forward, under the
                                      checkpoint's names: what stays in DRAM
    ffn.safetensors                   those matrices, neuron by neuron (bundles.py)
    flash.json                        the manifest, written last: format version, source digests,
                                      dtype, bundling, block size, thresholds, the size and SHA-256
                                      of every other file, and at its end its own (manifest.py)

Both weight files are ordinary safetensors files.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.checkpoint.noted import state_of
from tinyflash.checkpoint.safetensors_file import safetensors_entries
from tinyflash.config import ModelConfig, weight_shapes
from tinyflash.families import read_config
from tinyflash.files import digest, naming, read_json
from tinyflash.flash.store.bundles import (
    NUMPY_NAMES,
    ffn_layout,
    parts_of,
    regions_of,
    tensor_name,
)
from tinyflash.flash.store.manifest import FFN, MANIFEST, RESIDENT, SEAL, again, read_manifest
from tinyflash.flash.store.writing import MARK
from tinyflash.weights import bind_all, locate


@dataclass(frozen=True)
class Store:
    """A flash directory that was found whole.

    hf_config: its config.json
    dtype    : of the feed-forward: "float16", "bfloat16" or "float32"
    bundling : "row-column" or "plain"
    parts    : ("up", "down") or ("up", "gate", "down")
    ffn_path : its ffn.safetensors
    regions  : for each layer the byte in that file at which each region begins: "bundle" (F, parts
               · D), or one of (F, D) a part, the columns of down as rows. Layers that share
               weights begin at the same bytes
    manifest : its flash.json, without the digest that it ends with
    states   : of each file as it was found, see checkpoint/noted.py
    sealed   : whether flash.json ended with a digest; an earlier tinyflash wrote none
    """

    path: Path
    config: ModelConfig
    hf_config: dict
    dtype: str
    bundling: str
    parts: tuple[str, ...]
    ffn_path: Path
    regions: list[dict[str, int]]
    manifest: dict
    states: dict[str, list[int]]
    sealed: bool = True

    def __repr__(self):
        bundles = f"{self.bundling} bundles of {self.row_bytes:,} bytes"
        return f"<Store {str(self.path)!r}: {self.config.family}, {self.dtype}, {bundles}>"

    @property
    def numpy_dtype(self):
        """What NumPy reads the feed-forward as; uint16 for the bits of bfloat16."""
        return NUMPY_NAMES[self.dtype]

    @property
    def row_bytes(self):
        """Bytes of one bundle row."""
        return len(self.parts) * self.config.width * np.dtype(self.numpy_dtype).itemsize


def is_store(path):
    """Whether this is a flash directory, whole or damaged."""
    return (Path(path) / MANIFEST).is_file()


def open_store(path):
    """Open a flash directory; of the weights only headers and sizes are looked at.

    raises: FileNotFoundError if it is none, or a file is missing; ValueError if a file is
            truncated or damaged, or of a format version that we do not have. Changed weights are
            for `check_store` to find
    """
    path = Path(path)
    if not is_store(path):
        raise FileNotFoundError(
            f"{path} is no flash directory (it has no {MANIFEST}); "
            f"tinyflash convert MODEL OUT writes one."
        )
    if (path / MARK).exists():
        raise ValueError(f"{path} is unfinished: whoever wrote it was killed, or is still at it.")
    states = {MANIFEST: state_of(path / MANIFEST)}
    manifest = read_manifest(path)
    is_sealed = manifest.pop(SEAL, None) is not None
    for name, about in manifest["files"].items():
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} is missing; {again(path)}.")
        states[name] = state_of(path / name)
        nbytes = states[name][1]
        if nbytes != about["bytes"]:
            raise ValueError(
                f"{path / name} is truncated or damaged: it has {nbytes:,} bytes and was written "
                f"with {about['bytes']:,}; {again(path)}."
            )
        if not name.endswith(".safetensors"):  # the small ones are checked in full
            check_digest(path / name, about["sha256"])
    hf_config = read_json(path / "config.json")
    config = read_config(hf_config)
    dtype, bundling, parts = manifest["dtype"], manifest["bundling"], parts_of(config)
    expected = ffn_layout(config, bundling, dtype)
    with naming(path / FFN), open(path / FFN, "rb") as file:
        if file.read(len(expected.header)) != expected.header:
            raise ValueError(
                f"{path / FFN} is damaged: its header is not that of the feed-forward which "
                f"config.json and {MANIFEST} describe; {again(path)}."
            )
    safetensors_entries(path / RESIDENT)  # raises
    regions = [
        {
            region: expected.offsets[tensor_name(config.weight_layer(layer), region)]
            for region in regions_of(parts, bundling)
        }
        for layer in range(config.layers)
    ]
    fixed = path, config, hf_config, dtype, bundling, parts, path / FFN, regions, manifest
    return Store(*fixed, states, is_sealed)


def check_store(store, progress=None):
    """Read every file of a flash directory and compare its digest with flash.json's.

    progress: function (bytes done, bytes in all), or None
    raises  : ValueError that names the first file that differs
    """
    files = store.manifest["files"]
    total = sum(about["bytes"] for about in files.values())
    done = 0

    def report(nbytes):
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    for name, about in files.items():
        check_digest(store.path / name, about["sha256"], report)


def check_digest(file, expected, report=lambda nbytes: None):
    """Raise a ValueError if the SHA-256 of a file is not the expected one."""
    if digest(file, report) != expected:
        raise ValueError(
            f"{file} is damaged: its SHA-256 is not the one that {MANIFEST} has for it; "
            f"{again(file.parent)}."
        )


def resident_weights(store, dtype=np.float32):
    """Every weight but the matrices of the feed-forward, mapped where that is possible.

    dtype  : what they are decoded to: float32, or float64 for proofs
    returns: dict of our names -> array or HalfMatrix, as `tinyflash.weights.load_weights` has it
    raises : ValueError if one is missing, misshapen, or has Inf or NaN
    """
    checkpoint = Checkpoint(store.path, store.hf_config, safetensors_entries(store.path / RESIDENT))
    flash = flash_names(store.config)
    names = [name for name in weight_shapes(store.config) if name not in flash]
    return bind_all(checkpoint, locate(checkpoint, store.config, names), dtype)


def flash_names(config):
    """Our names of the weights that stay on flash, in the order in which they lie there."""
    return [
        f"layers.{layer}.ffn.{part}.weight"
        for layer in range(config.weight_layers)
        for part in parts_of(config)
    ]
