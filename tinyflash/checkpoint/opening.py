"""Opens a model directory or a GGUF file as a Checkpoint; only headers are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinyflash.checkpoint.adapter import refuse_adapter
from tinyflash.checkpoint.entries import Checkpoint, Entry
from tinyflash.checkpoint.gguf_file import begins_as_gguf, open_gguf
from tinyflash.checkpoint.pytorch_bin import pytorch_entries
from tinyflash.checkpoint.safetensors_file import safetensors_entries
from tinyflash.checks import short
from tinyflash.files import read_json

DIRECTORY_HOLDS = (
    "a model directory holds config.json and model.safetensors or pytorch_model.bin, "
    "whole or as shards with their index"
)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a Hugging Face directory or a GGUF file; only headers are read.

    In a directory safetensors win over PyTorch files, and one whole file over shards. A GGUF file
    may have any name: the hub's cache and other programs keep them under digests.

    raises: FileNotFoundError if the path, its config.json, its weights or a shard is missing;
            ValueError if a file is truncated, damaged or not what its name says
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or directory; {DIRECTORY_HOLDS}")
    if path.is_file():
        if path.suffix.lower() != ".gguf" and not begins_as_gguf(path):
            raise ValueError(f"{path}: only a .gguf file is a model by itself; {DIRECTORY_HOLDS}")
        return open_gguf(path)

    config_file = path / "config.json"
    if not any(path.iterdir()):
        raise FileNotFoundError(f"{path}: the directory is empty; {DIRECTORY_HOLDS}")
    refuse_adapter(path)
    if not config_file.is_file():
        raise FileNotFoundError(f"{path}: there is no config.json; {DIRECTORY_HOLDS}")
    config = read_json(config_file, unique_keys=True)
    entries, absent = _directory_entries(path)
    return Checkpoint(path, config, entries, absent)


def _directory_entries(directory: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    formats = [("model.safetensors", safetensors_entries), ("pytorch_model.bin", pytorch_entries)]
    for name, read_entries in formats:
        whole, index = directory / name, directory / f"{name}.index.json"
        if whole.is_file():
            return read_entries(whole), {}
        if index.is_file():
            return _sharded_entries(index, read_entries)
    raise FileNotFoundError(
        f"{directory}: there are no weights (shards need their index file); {DIRECTORY_HOLDS}"
    )


def _sharded_entries(
    index: Path, read_entries: Callable[[Path], dict[str, Entry]]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries of all shards that an index names, and why a tensor is not among them.

    The index decides which tensors there are. It may list one that its shard lacks: published
    checkpoints do, where a tied tensor was dropped; that is an error only when it is asked for.
    """
    weight_map = read_json(index, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: the index has no weight_map from tensor names to shards")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index}: {short(shard)} is not the name of a file beside the index")
    entries, shard_of, absent = {}, {}, {}
    for shard in sorted(set(weight_map.values())):
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(
                f"{index}: the shard {shard} is missing from the directory; download it again"
            )
        for name, entry in read_entries(index.parent / shard).items():
            if name in shard_of:
                raise ValueError(f"{index.parent}: {shard_of[name]} and {shard} both hold {name}")
            shard_of[name] = shard
            if weight_map.get(name) == shard:
                entries[name] = entry
            else:
                absent[name] = f"{shard} holds it, and {index.name} does not say so"
    for name, shard in weight_map.items():
        if name not in shard_of:
            absent[name] = f"{index.name} places it in {shard}, which does not hold it"
    return entries, absent
