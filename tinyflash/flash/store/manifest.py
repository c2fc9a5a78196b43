"""flash.json, the manifest of a flash directory: what it says, and the digest over all of it.

It holds what the text depends on and no other digest covers: dtype, bundling, thresholds, what was
measured of the predictors. So its last key, "sha256", is the digest of all others. A manifest
from before that was introduced has none; see verified.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tinyflash.checkpoint.cache import cache_directory
from tinyflash.files import read_json, write_whole
from tinyflash.flash.store.bundles import BLOCK, BUNDLINGS, NUMPY_NAMES

FORMAT_VERSION = 1
MANIFEST, RESIDENT, FFN = "flash.json", "resident.safetensors", "ffn.safetensors"
SEAL = "sha256"


def again(directory: Path) -> str:
    """What to do about a flash directory that is damaged."""
    if cache_directory() in Path(directory).parents:
        return f"delete {directory}, and it is made again"
    return "convert the model again"


def seal_of(manifest: dict) -> str:
    """SHA-256 of all that a manifest says, its seal left out: the same for the same meaning."""
    said = {name: value for name, value in manifest.items() if name != SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def sealed(manifest: dict) -> dict:
    """A manifest with its digest behind all else."""
    said = {name: value for name, value in manifest.items() if name != SEAL}
    return said | {SEAL: seal_of(said)}


def write_manifest(directory: Path, manifest: dict) -> None:
    """Write a flash directory's flash.json anew, whole or not at all. Raises OSError."""
    write_whole(Path(directory) / MANIFEST, manifest_text(manifest))


def manifest_text(manifest: dict) -> str:
    """A manifest as it is written, sealed."""
    return json.dumps(sealed(manifest), indent=1) + "\n"


def without_predictors(manifest: dict, file: str) -> dict:
    """A copy of a manifest that tells of no predictors, nor of their file."""
    manifest = {name: value for name, value in manifest.items() if name != "predictor"}
    files = {name: about for name, about in manifest["files"].items() if name != file}
    return manifest | {"files": files}


def read_manifest(directory: Path) -> dict:
    """The flash.json of a flash directory, with its seal if it has one.

    raises: ValueError if it is damaged, changed, or of another version; OSError
    """
    file = directory / MANIFEST
    manifest = read_json(file, unique_keys=True)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} is of format version {version!r}, and this tinyflash reads {FORMAT_VERSION}; "
            f"{again(directory)}."
        )
    if SEAL in manifest and manifest[SEAL] != seal_of(manifest):
        raise ValueError(
            f"{file} was changed after it was written: its SHA-256 is not the one that it ends "
            f"with; {again(directory)}."
        )
    if not describes_a_store(manifest):
        raise ValueError(
            f"{file} is damaged: it does not describe a flash directory; {again(directory)}."
        )
    return manifest


def refuse_changed_meanwhile(store) -> None:
    """Raise a ValueError if a store's flash.json is not the one that was opened."""
    manifest = read_manifest(store.path)
    manifest.pop(SEAL, None)
    if manifest != store.manifest:
        raise ValueError(
            f"{store.path / MANIFEST} was changed by somebody else meanwhile, so nothing was "
            "written; try again."
        )


def describes_a_store(manifest: dict) -> bool:
    """Whether a manifest has all that every flash directory has, and of the right kinds."""
    files = manifest.get("files")
    return (
        manifest.get("dtype") in tuple(NUMPY_NAMES)
        and manifest.get("bundling") in BUNDLINGS
        and manifest.get("block_size") == BLOCK
        and isinstance(files, dict)
        and {"config.json", RESIDENT, FFN} <= files.keys()
        and all(Path(name).name == name and name.isprintable() for name in files)
        and all(
            isinstance(about, dict)
            and type(about.get("bytes")) is int
            and isinstance(about.get("sha256"), str)
            for about in files.values()
        )
    )
