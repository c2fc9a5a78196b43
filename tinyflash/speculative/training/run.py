"""`tinyflash train drafter`: from a model and a text to a drafter directory in Apple's names.

The model is frozen: what it says of the text is recorded once (examples.py), and the drafter
learns from that (learning.py). Both are kept in a directory beside OUT, `.training`
behind its name, from which the same command goes on, bit for bit, where it was killed.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import find_model
from tinyflash.config import ModelConfig
from tinyflash.directories import own_directory
from tinyflash.families import read_config
from tinyflash.files import read_json, write_files, write_json
from tinyflash.ops import rows
from tinyflash.progress import quiet
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
from tinyflash.tokenizer import Tokenizer, tokenizer_of
from tinyflash.training.refusals import refuse_below, refuse_no_rate
from tinyflash.training.run_files import STATE, forget
from tinyflash.training.texts import read_texts
from tinyflash.weights import load_weights

RUN, REPORT = "run.json", "training.json"
HELDOUT = 8192  # examples that accuracy is measured on
CURVE = 500  # steps of the loss curve that are kept


@dataclass(frozen=True)
class Settings:
    """How a drafter is trained.

    tokens             : most tokens of the text to use
    steps, batch, seed : see `loop.Recipe`
    learning_rate      : after the warm-up
    layers             : draft layers
    exit_width         : their width; None for twice the model's
    """

    tokens: int = 300_000
    steps: int = 5000
    batch: int = 256
    learning_rate: float = 3e-3
    layers: int = 2
    exit_width: int | None = None
    seed: int = 0

    def __post_init__(self):
        refuse_below(1, tokens=self.tokens, steps=self.steps, batch=self.batch)
        refuse_below(1, exit_width=self.exit_width)
        refuse_below(0, layers=self.layers, seed=self.seed)
        refuse_no_rate(learning_rate=self.learning_rate)

    def recipe(self):
        """The Recipe."""
        rate, seed = self.learning_rate, self.seed
        return Recipe(steps=self.steps, batch=self.batch, peak=rate, seed=seed)

    def sizes(self, model_config):
        """The DrafterConfig for a model."""
        return DrafterConfig(
            vocab_size=model_config.vocab_size,
            width=model_config.width,
            exit_width=self.exit_width or 2 * model_config.width,
            layers=self.layers,
        )


def train_drafter(model, text, out, *, distill=False, heldout=None, progress=quiet, **settings):
    """Train a drafter for a model; OUT opens as a drafter when all is written, not before.

    model    : path, hub id or word;  text: list of text files;  out: the directory to write
    distill  : learn how the model goes on, not how the text does
    heldout  : a text file for the report, or None for the end of `text`
    settings : of Settings, as steps=100
    returns  : dict for the summary: sizes, losses, and accuracy on held-out text, whose right
               tokens are the "model"'s own continuations or those of the "text"
    raises   : ValueError or OSError, one sentence, for bad input
    """
    wanted, out, state = Settings(**settings), Path(out), Path(f"{Path(out)}.training")
    refuse_existing(out)
    recipe = wanted.recipe()
    frozen = open_frozen(model)
    config = wanted.sizes(frozen.config)
    windows, apart = windows_of(frozen, text, heldout, wanted.tokens, recipe.offsets)
    embed = embedder(frozen.config, frozen.weights, DrafterNetwork(config, {}))
    description = {
        "model": digest_of(frozen.weights),
        "text": hashlib.sha256(windows.tobytes()).hexdigest(),
        "distill": distill,
        "drafter": asdict(config),
        "recipe": asdict(recipe),
    }
    with own_directory(state, is_state, "training a drafter"):
        check_run(state, description)
        given = frozen.weights, frozen.config, windows, recipe.offsets, distill
        with progress("Recording what the model says", "examples") as report:
            examples = record_examples(state, *given, report)
        with progress("Drafter", "steps") as report:
            drafter, curve = learn(config, examples, embed, recipe, state, report)
        number = len(examples)
        del examples  # they are mapped, and Windows deletes no file that is
        with progress("Measuring on text held out"):
            measured = {
                kind: ranks(config, drafter, embed, frozen.examples(apart, recipe, kind == "model"))
                for kind in ("model", "text")
            }
        result = {"out": str(out), "loss_on": "model" if distill else "text"}
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


@dataclass(frozen=True)
class Frozen:
    """The model that a drafter is trained for; it stays as it is."""

    config: ModelConfig
    weights: dict
    tokenizer: Tokenizer

    def examples(self, windows, recipe, distill):
        """The examples of some windows, in memory; see `all_examples`."""
        return all_examples(self.weights, self.config, windows, recipe.offsets, distill)


def open_frozen(source):
    """Open a model to train a drafter for.

    returns: Frozen
    raises : ValueError or OSError if there is none that continues texts
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
    return Frozen(config, weights, tokenizer)


def windows_of(frozen, text, heldout, tokens, offsets):
    """Windows of the text to learn from, and of the text to measure on.

    Without a held-out text the last twentieth of the text is held out.
    """
    ids = read_texts(frozen.tokenizer, text)
    if heldout:
        apart, what = read_texts(frozen.tokenizer, [heldout]), "--heldout"
    else:
        ids, apart = np.split(ids, [len(ids) - len(ids) // 20])
        what = "The last twentieth of --text, which is held out,"
    prefix, config = frozen.tokenizer.encode(""), frozen.config
    return (
        cut_windows(ids, prefix, config, offsets, tokens, "--text"),
        cut_windows(apart, prefix, config, offsets, HELDOUT, what),
    )


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
