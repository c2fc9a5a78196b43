"""The state of a run that trains predictors, on disk: resumed bit for bit after a kill.

    run.json              what is trained, and on what: another run is not resumed by mistake
    layer.{i}.safetensors the predictor of a finished layer, and what was measured of it
    stream.safetensors    the residual stream behind the last finished layer; written after that
                          layer's file, so it says how many are finished

They lie in a directory beside the flash directory, `.training` behind its name.
"""

import json

import numpy as np
from safetensors import SafetensorError, safe_open

from tinyflash.checkpoint.safetensors_file import safetensors_content
from tinyflash.files import read_json, write_json, write_whole
from tinyflash.flash.predictor import Predictor
from tinyflash.matrices.half import HalfMatrix

RUN, STREAM = "run.json", "stream.safetensors"


def begin_or_resume(directory, description, sequences):
    """What an interrupted run left, or an empty beginning.

    description : dict, JSON-able: all that the result depends on
    sequences   : the token ids, for the lengths
    returns     : list of Predictors, list of what was measured, and the stream (list of (T, D))
                  behind them; [], [], None at the beginning
    raises      : ValueError if the run in `directory` is another one, or damaged
    """
    description = json.loads(json.dumps(description))
    if not (directory / RUN).exists():
        write_json(directory / RUN, description, parents=True)
        return [], [], None
    try:
        saved = read_json(directory / RUN)
        differ = [name for name, value in description.items() if saved.get(name) != value]
        if not differ and not (directory / STREAM).exists():
            return [], [], None
        if not differ:
            return load(directory, sequences)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ValueError(
            f"{directory} cannot be resumed from ({error}); delete it to train from the beginning."
        ) from None
    raise ValueError(
        f"{directory} holds an unfinished training whose {', '.join(differ)} differ; resume it "
        "with its own settings, or delete it."
    )


def load(directory, sequences):
    """The finished layers of a run, and the stream behind them; see `begin_or_resume`."""
    with safe_open(directory / STREAM, framework="np") as file:
        finished = int(file.metadata()["layers"])
        stream = file.get_tensor("stream")
    ends = np.cumsum([len(ids) for ids in sequences])
    if len(stream) != ends[-1]:
        raise ValueError(f"{STREAM} is of another text")
    predictors, measured = [], []
    for i in range(finished):
        with safe_open(directory / layer_file(i), framework="np") as file:
            threshold, of_layer = json.loads(file.metadata()["measured"])
            factors = (HalfMatrix(file.get_tensor(part), part) for part in ("down", "up"))
            predictors.append(Predictor(*factors, file.get_tensor("bias"), threshold))
            measured.append(of_layer)
    return predictors, measured, np.split(stream, ends[:-1])


def save_layer(directory, predictors, measured, stream):
    """Save the newest of some finished layers, and the stream behind it."""
    i, predictor = len(predictors) - 1, predictors[-1]
    arrays = {
        "down": predictor.down.bits.view(np.float16),
        "up": predictor.up.bits.view(np.float16),
        "bias": predictor.bias,
    }
    about = {"measured": json.dumps([predictor.threshold, measured[-1]])}
    write_whole(directory / layer_file(i), safetensors_content(arrays, about))
    arrays = {"stream": np.concatenate(stream)}
    write_whole(directory / STREAM, safetensors_content(arrays, {"layers": str(i + 1)}))


def is_state(directory):
    """Whether a directory holds the state of such a run; `begin_or_resume` says of which."""
    return (directory / RUN).exists()


def state_files(layers):
    """The names of all files that such a run keeps, of a model of so many layers."""
    return [RUN, STREAM, *map(layer_file, range(layers))]


def layer_file(i):
    """The file of a finished layer."""
    return f"layer.{i}.safetensors"
