"""The state of a training run on disk: written whole or not at all, resumed bit for bit."""

import json
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tinyflash.checkpoint.safetensors_file import safetensors_content
from tinyflash.checks import is_number
from tinyflash.files import json_value, write_whole

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


def saved_run(directory):
    """The bookkeeping of a run that `save_state` wrote, of a file whose weights nobody reads yet.

    returns: dict, or None if nothing was written yet
    raises : ValueError if the file is damaged
    """
    return read_state(directory, lambda file, run: run)


def load_state(directory):
    """What `save_state` wrote: weights, optimizer, run; or None if nothing was written yet.

    raises: ValueError if the file is damaged
    """

    def everything(file, run):
        parts = {"weights": {}, "first": {}, "second": {}}
        for key in file.keys():
            part, name = key.split("/", 1)
            parts[part][name] = file.get_tensor(key)
        optimizer = {"step": run["step"]} | {moment: parts[moment] for moment in MOMENTS}
        return parts["weights"], optimizer, run

    return read_state(directory, everything)


def check_run(run):
    """Raise a ValueError if this is not the bookkeeping of a run."""
    if not {"step", "seconds", "curve"} <= set(run):
        raise ValueError("it does not say how far it came")
    rows = run["curve"]
    counts = [run["step"], *(row["step"] for row in rows)]
    numbers = [run["seconds"], *(row.get("tokens", 0) for row in rows)]
    sane = all(type(step) is int and step >= 0 for step in counts) and all(map(is_number, numbers))
    if not sane or not isinstance(rows, list) or len(rows) > run["step"]:
        raise ValueError("its bookkeeping makes no sense")


def read_state(directory, read):
    """What `read(file, run)` makes of a state; None if there is none. Raises as `load_state`."""
    path = Path(directory) / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            run = json_value(file.metadata()["run"])
            check_run(run)
            return read(file, run)
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ValueError(
            f"{path} cannot be resumed from ({error}); delete it to train from the beginning."
        ) from None


def forget(directory, names):
    """Delete the state of a run that is finished, by the names of its files; others stay.

    What says whose they are goes last, so that what cannot be deleted is known to be ours.
    """
    with suppress(OSError):
        for name in sorted(names, key=lambda name: name == "run.json"):
            (directory / name).unlink(missing_ok=True)
