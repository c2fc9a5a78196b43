"""The state of a training run on disk: written whole or not at all, resumed bit for bit."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

STATE = "training_state.safetensors"
MOMENTS = ("first", "second")  # of AdamW


def save_state(directory, weights, optimizer, run):
    """Weights, optimizer moments and the run's bookkeeping in one file, replaced atomically.

    weights   : dict name -> array
    optimizer : {"step": int, "first": {name: array}, "second": {name: array}}
    run       : JSON-able dict: step, curve, config, recipe
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {f"weights/{name}": array for name, array in weights.items()}
    for moment in MOMENTS:
        arrays |= {f"{moment}/{name}": array for name, array in optimizer[moment].items()}
    write_whole(directory / STATE, arrays, {"run": json.dumps(run)})


def write_whole(path, arrays, metadata):
    """Write a safetensors file whole or not at all, and have it reach the disk.

    arrays : dict name -> array;  metadata : dict of str
    """
    unfinished = path.with_name(f"{path.name}.part")
    save_file(arrays, unfinished, metadata)
    with open(unfinished, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_json(path, value):
    """Write a JSON file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(value) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def load_state(directory):
    """What `save_state` wrote: weights, optimizer, run; or None if nothing was written yet.

    raises: ValueError if the file is damaged
    """
    path = Path(directory) / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            run = json.loads(file.metadata()["run"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be resumed from ({error}); delete it to train from the beginning."
        ) from None
    parts = {"weights": {}, "first": {}, "second": {}}
    for name, array in arrays.items():
        part, name = name.split("/", 1)
        parts[part][name] = array
    optimizer = {"step": run["step"]} | {moment: parts[moment] for moment in MOMENTS}
    return parts["weights"], optimizer, run
