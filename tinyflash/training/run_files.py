"""The state of a training run on disk: written whole or not at all, resumed bit for bit."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tinyflash.checkpoint.safetensors_file import safetensors_content
from tinyflash.files import write_whole

STATE = "training_state.safetensors"
MOMENTS = ("first", "second")  # of AdamW


def save_state(directory, weights, optimizer, run):
    """Weights, optimizer moments and the run's bookkeeping in one file, replaced atomically.

    weights   : dict name -> array
    optimizer : {"step": int, "first": {name: array}, "second": {name: array}}
    run       : JSON-able dict: step, curve, config, recipe
    """
    arrays = {f"weights/{name}": array for name, array in weights.items()}
    for moment in MOMENTS:
        arrays |= {f"{moment}/{name}": array for name, array in optimizer[moment].items()}
    content = safetensors_content(arrays, {"run": json.dumps(run)})
    write_whole(Path(directory) / STATE, content, parents=True)


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


def forget(directory, names):
    """Delete the state of a run that is finished, by the names of its files; others stay."""
    for name in names:
        (directory / name).unlink(missing_ok=True)
