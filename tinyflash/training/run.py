"""`tinyflash train lm`: from a config.json and text files to a model directory."""

import json
import math
import os
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.tokenizer_kinds import whole_tokenizer
from tinyflash.directories import own_directory
from tinyflash.families import read_config
from tinyflash.files import read_json, read_text, refuse_foreign, write_files, write_json
from tinyflash.ops import dense
from tinyflash.training.language_model import Recipe, Text, check_lengths, train
from tinyflash.training.run_files import STATE
from tinyflash.training.vocabulary import (
    encode_documents,
    tokenizer_files,
    train_tokenizer,
    write_tokenizer,
)
from tinyflash.weights import checkpoint_files, load_weights

CURVE, RUN = "training_curve.json", "run.json"
WHAT = "training a language model"


def train_lm(options, report):
    """Train as the command line says; the model directory appears complete or not at all.

    Beside `--out` stands `DIR.training`, the state of the run, from which the same command
    resumes; the tokenizer is trained on the text, or taken from there.

    options : the parsed arguments
    report  : function (done, total, **numbers), for progress
    returns : dict for the summary
    raises  : ValueError or OSError, one sentence, for bad input; nothing is written then
    """
    hf_config = read_json(options.config)
    config = read_config(hf_config)
    start = Path(options.start) if options.start else None
    initial = None if start is None else plain_weights(start, config)
    text = "\n\n</s>\n\n".join(map(read_text, options.text))
    heldout = read_text(options.heldout) if options.heldout else None
    recipe = recipe_of(options, config)
    out, state = Path(options.out), Path(f"{options.out}.training")

    refuse_foreign_model(out)
    with own_directory(state, is_state, WHAT):
        tokenizer_file = (start or state) / "tokenizer.json"
        if start or tokenizer_file.exists():
            tokenizer = whole_tokenizer(tokenizer_file)
        else:
            tokenizer = train_tokenizer(text, config.vocab_size)
        ids = encode_documents(tokenizer, text)
        check_lengths(config, ids, recipe)
        heldout_ids = None if heldout is None else encode_documents(tokenizer, heldout)
        if heldout is not None and len(heldout_ids) <= recipe.length:
            raise ValueError(
                f"{options.heldout} has {len(heldout_ids)} tokens, fewer than one sequence of "
                f"{recipe.length + 1}; give more held-out text or train on shorter sequences."
            )
        write_json(state / RUN, {"what": WHAT})
        write_tokenizer(tokenizer, config.context, state)
        weights, curve = train(
            config,
            Text(ids, heldout_ids),
            recipe,
            state,
            initial=initial,
            workers=options.workers,
            report=lambda row: report(
                row["step"], recipe.steps, loss=row["loss"], active=row["active"]
            ),
        )
        refuse_foreign_model(out)
        files = tokenizer_files(tokenizer, config.context, out) | {out / CURVE: curve_text(curve)}
        write_files(files | checkpoint_files(out, hf_config, config, weights), parents=True)
    last = curve[-1]
    return {
        "out": str(out),
        "steps": last["step"],
        "tokens": last["tokens"],
        "loss": last["loss"],
        "heldout_loss": last.get("heldout_loss"),
        "active": last["active"],
        "heldout_active": last.get("heldout_active"),
        "seconds": round(last["seconds"], 1),
        "tokens_per_second": round(last["tokens"] / last["seconds"], 1),
    }


def is_state(directory):
    """Whether a directory holds the state of such a training."""
    run = directory / RUN  # older ones have none
    return read_json(run) == {"what": WHAT} if run.exists() else (directory / STATE).exists()


def refuse_foreign_model(out):
    """Raise a ValueError if OUT holds anything but a model that was trained here."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        if out.is_dir():
            refuse_foreign(out / CURVE, is_curve, "the curve of a training")
        if not (out / CURVE).exists():
            raise ValueError(
                f"{out} exists already and was not trained by tinyflash, so it is left alone; "
                "choose another place, or delete it first."
            )


def is_curve(path):
    """Whether a file is a loss curve, as `curve_text` writes it."""
    return all({"step", "loss"} <= row.keys() for row in json.loads(read_text(path)))


def recipe_of(options, config):
    """The Recipe that the arguments describe; ValueError for one that cannot be followed."""
    for name in ("steps", "batch", "workers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(options, name)}.")
    if options.length is not None and options.length < 1:
        raise ValueError(f"--length must be at least 1, not {options.length}.")
    if not (options.learning_rate > 0 and math.isfinite(options.learning_rate)):
        raise ValueError(f"--learning-rate must be above 0, not {options.learning_rate}.")
    if options.active_share is not None and not 0 < options.active_share < 1:
        raise ValueError(f"--active-share is a share between 0 and 1, not {options.active_share}.")
    if options.active_share is not None and config.activation != "relu":
        raise ValueError(
            f"--active-share needs an activation that can be exactly zero, relu, and the config "
            f"has {config.activation}."
        )
    return Recipe(
        steps=options.steps,
        batch=options.batch,
        length=options.length or config.context,
        peak=options.learning_rate,
        floor=options.learning_rate / 10,
        warmup=max(1, min(200, options.steps // 10)) if options.steps > 1 else 0,
        active_share=options.active_share,
        seed=options.seed,
    )


def plain_weights(directory, config):
    """The weights of a model directory as float32 arrays that may be written over.

    raises: ValueError if they are not of this config, or there is no tokenizer.json with them
    """
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(f"{directory} has no tokenizer.json, so its training cannot go on.")
    weights = load_weights(open_checkpoint(directory), config)
    return {name: np.array(dense(weight), dtype=np.float32) for name, weight in weights.items()}


def curve_text(curve):
    """The loss curve as data: a list of steps as JSON, six digits a number."""
    return json.dumps([rounded(row) for row in curve]).replace("}, {", "},\n{") + "\n"


def rounded(value):
    """A JSON value with its floats cut to six digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
