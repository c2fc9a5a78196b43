"""`tinyflash train drafter`: from a model and a text to a drafter directory in Apple's names.

The model is frozen: what it says of the text is recorded once (drafter_examples.py), and the
drafter learns from that (drafter_training.py). Both are kept in a directory beside OUT, `.training`
behind its name, from which the same command goes on, bit for bit, where it was killed.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import find_model
from tinyflash.directories import own_directory
from tinyflash.families import read_config
from tinyflash.files import read_json, read_text, write_files, write_json
from tinyflash.ops import rows
from tinyflash.speculative.drafter_files import DrafterConfig, DrafterNetwork, drafter_files
from tinyflash.speculative.redrafter import embedder
from tinyflash.speculative.training.examples import (
    HIDDEN,
    TOKENS,
    all_examples,
    cut_windows,
    record_examples,
)
from tinyflash.speculative.training.learning import (
    Recipe,
    accuracy,
    random_weights,
    ranks,
    tokens_per_step,
    train,
)
from tinyflash.tokenizer import tokenizer_of
from tinyflash.training.run_files import STATE, forget
from tinyflash.training.vocabulary import encode_documents
from tinyflash.weights import load_weights

RUN, REPORT = "run.json", "training.json"
HELDOUT = 8192  # examples that accuracy is measured on
CURVE = 500  # steps of the loss curve that are kept


def train_drafter(options, report):
    """Train as the command line says; OUT opens as a drafter when all is written, not before.

    options : the parsed arguments
    report  : function (done, total, **numbers), for progress: first of examples, then of steps
    returns : dict for the summary: sizes, losses, and accuracy on held-out text, whose right
              tokens are the "model"'s own continuations or those of the "text"
    raises  : ValueError or OSError, one sentence, for bad input
    """
    recipe = recipe_of(options)
    out, state = Path(options.out), Path(f"{options.out}.training")
    refuse_existing(out)
    model_config, weights, tokenizer = open_frozen(options.model)
    config = DrafterConfig(
        vocab_size=model_config.vocab_size,
        width=model_config.width,
        exit_width=options.exit_width or 2 * model_config.width,
        layers=options.layers,
    )
    windows, heldout = windows_of(options, model_config, tokenizer, recipe.offsets)
    embed = embedder(model_config, weights, DrafterNetwork(config, {}))
    description = {
        "model": digest_of(weights),
        "text": hashlib.sha256(windows.tobytes()).hexdigest(),
        "distill": options.distill,
        "drafter": asdict(config),
        "recipe": asdict(recipe),
    }
    with own_directory(state, is_state, "training a drafter"):
        check_run(state, description)
        examples = record_examples(
            state, weights, model_config, windows, recipe.offsets, options.distill, report
        )
        drafter, curve = learn(config, examples, embed, recipe, state, report)
        number = len(examples)
        del examples  # they are mapped, and Windows deletes no file that is
        measured = {}
        for kind in ("model", "text"):
            of = all_examples(weights, model_config, heldout, recipe.offsets, kind == "model")
            measured[kind] = ranks(config, drafter, embed, of)
        result = {"out": str(out), "loss_on": "model" if options.distill else "text"}
        result |= {"examples": number, "heldout_examples": len(measured["model"])}
        result |= summary(curve, measured)
        about = {"result": result, **description, "curve": curve[:: -(-len(curve) // CURVE)]}
        refuse_existing(out)
        files = drafter_files(out, DrafterNetwork(config, drafter), "float16")
        write_files({out / REPORT: json.dumps(about) + "\n"} | files, parents=True)
        forget(state, (HIDDEN, TOKENS, STATE, RUN))
    return result


def learn(config, examples, embed, recipe, state, report):
    """Train on the examples: the drafter's weights, as float16 has them, and the loss curve."""
    size = float(np.sqrt(np.mean(np.square(embed(np.arange(config.vocab_size, dtype=np.int64))))))
    drafter, curve = train(
        config,
        examples,
        embed,
        recipe,
        state,
        initial=random_weights(config, recipe.seed, size),
        report=lambda row: report(row["step"], recipe.steps, loss=row["loss"]),
    )
    with np.errstate(over="ignore"):  # save_drafter says it in a sentence
        return {name: w.astype(np.float16).astype(np.float32) for name, w in drafter.items()}, curve


def summary(curve, measured):
    """What the command says of a training: steps, losses, accuracy, seconds."""
    losses = [row["loss"] for row in curve]
    last = losses[-max(1, len(losses) // 20) :]
    return {
        "steps": curve[-1]["step"],
        "first_loss": losses[0],
        "loss": sum(last) / len(last),
        "tokens_per_step": tokens_per_step(measured["model"]),
        "accuracy": {kind: accuracy(of).tolist() for kind, of in measured.items()},
        "seconds": round(curve[-1]["seconds"], 1),
    }


def refuse_existing(out):
    """Raise a ValueError if there is anything at OUT but an empty directory."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists already; choose another place, or delete it first.")


def is_state(directory):
    """Whether a directory holds the state of such a training; `check_run` says of which."""
    return (directory / RUN).exists()


def recipe_of(options):
    """The Recipe that the arguments describe; ValueError for one that cannot be followed."""
    for name in ("tokens", "steps", "batch", "exit_width"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    for name in ("layers", "seed"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} must be at least 0, not {getattr(options, name)}.")
    if not (options.learning_rate > 0 and math.isfinite(options.learning_rate)):
        raise ValueError(f"--learning-rate must be above 0, not {options.learning_rate}.")
    return Recipe(
        steps=options.steps, batch=options.batch, peak=options.learning_rate, seed=options.seed
    )


def open_frozen(source):
    """The model that a drafter is to be trained for: ModelConfig, weights, tokenizer.

    raises: ValueError or OSError if there is none that continues texts
    """
    path = find_model(source)
    if (path / "flash.json").is_file():
        raise ValueError(
            f"{path} is a flash directory; train a drafter from the model that it was made of."
        )
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint.config)
    if not config.causal:
        raise ValueError(
            f"{path} is an encoder, which continues no text, so there is nothing to draft for it."
        )
    weights, tokenizer = load_weights(checkpoint, config), tokenizer_of(checkpoint)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer, so it cannot read --text.")
    return config, weights, tokenizer


def windows_of(options, config, tokenizer, offsets):
    """Windows of the text to learn from, and of the text to measure on.

    Without a held-out text the last twentieth of the text is held out.
    """
    ids = read_texts(tokenizer, options.text)
    if options.heldout:
        apart, what = read_texts(tokenizer, [options.heldout]), "--heldout"
    else:
        ids, apart = np.split(ids, [len(ids) - len(ids) // 20])
        what = "The last twentieth of --text, which is held out,"
    prefix = tokenizer.encode("")
    return (
        cut_windows(ids, prefix, config, offsets, options.tokens, "--text"),
        cut_windows(apart, prefix, config, offsets, HELDOUT, what),
    )


def read_texts(tokenizer, files):
    """The token ids of some text files, one behind the other: int (n,)."""
    texts = map(read_text, files)
    return np.concatenate([encode_documents(tokenizer.backend, text) for text in texts])


def digest_of(weights):
    """A digest by which another model is told from this one: its vectors, and rows of matrices."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name]
        some = np.arange(min(64, weight.shape[0]), dtype=np.int64)
        part = rows(weight, some) if len(weight.shape) == 2 else weight
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def check_run(directory, description):
    """Begin a run in a directory, or see that the one begun there is this one.

    raises: ValueError if it is another
    """
    description = json.loads(json.dumps(description))
    path = directory / RUN
    if not path.exists():
        write_json(path, description)
        return
    try:
        saved = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete {directory} to train from the beginning."
        ) from None
    differ = [name for name, value in description.items() if saved.get(name) != value]
    if differ:
        raise ValueError(
            f"{directory} holds an unfinished training whose {', '.join(differ)} differ; resume it "
            "with its own settings, or delete it."
        )
