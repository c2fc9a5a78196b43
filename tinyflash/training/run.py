"""`tinyflash train lm`: from a config.json and text files to a model directory."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.tokenizer_kinds import whole_tokenizer
from tinyflash.directories import own_directory
from tinyflash.families import read_config
from tinyflash.files import (
    json_value,
    read_json,
    read_text,
    refuse_foreign,
    write_files,
    write_json,
)
from tinyflash.ops import dense
from tinyflash.progress import quiet
from tinyflash.training.language_model import (
    Recipe,
    Text,
    check_length,
    check_lengths,
    description_of,
    train,
)
from tinyflash.training.loop import refuse_other_run
from tinyflash.training.refusals import (
    refuse_below,
    refuse_no_rate,
    refuse_no_share,
    refuse_short,
)
from tinyflash.training.run_files import STATE
from tinyflash.training.vocabulary import (
    DOCUMENT_BREAK,
    encode_documents,
    tokenizer_files,
    train_tokenizer,
    write_tokenizer,
)
from tinyflash.weights import checkpoint_files, load_weights
from tinyflash.workers import WORKERS

CURVE, RUN = "training_curve.json", "run.json"
WHAT = "training a language model"


@dataclass(frozen=True)
class Settings:
    """How a language model is trained.

    steps, batch, seed : see `loop.Recipe`
    length        : tokens of a sequence; None for as many as the model's context has
    learning_rate : after the warm-up; at the end it is a tenth of that
    active_share  : wanted share of firing FFN neurons, or None
    workers       : threads; their number does not change the result
    """

    steps: int = 2000
    batch: int = 16
    length: int | None = None
    learning_rate: float = 2e-3
    active_share: float | None = None
    seed: int = 0
    workers: int = WORKERS

    def __post_init__(self):
        refuse_below(1, steps=self.steps, batch=self.batch, workers=self.workers)
        refuse_below(1, length=self.length)
        refuse_below(0, seed=self.seed)
        refuse_no_rate(learning_rate=self.learning_rate)
        refuse_no_share(active_share=self.active_share)

    def recipe(self, config):
        """The Recipe for a model; ValueError for one that cannot be followed."""
        if self.active_share is not None and config.activation != "relu":
            raise ValueError(
                f"--active-share needs an activation that can be exactly zero, relu, and the "
                f"config has {config.activation}."
            )
        recipe = Recipe(
            steps=self.steps,
            batch=self.batch,
            length=self.length or config.context,
            peak=self.learning_rate,
            floor=self.learning_rate / 10,
            warmup=max(1, min(200, self.steps // 10)) if self.steps > 1 else 0,
            active_share=self.active_share,
            seed=self.seed,
        )
        check_length(config, recipe)
        return recipe


def train_lm(config, text, out, *, start=None, heldout=None, progress=quiet, **settings):
    """Train a language model; the model directory appears complete or not at all.

    Beside `out` stands `OUT.training`, the state of the run, from which the same call resumes; the
    tokenizer is trained on the text, or taken from there.

    config   : a config.json: the model's sizes;  text : list of text files
    start    : a model directory whose weights and words it begins with, or None
    heldout  : a text file for validation, or None
    settings : of Settings, as steps=100
    returns  : dict for the summary
    raises   : ValueError or OSError, one sentence, for bad input; nothing is written then
    """
    wanted, hf_config = Settings(**settings), read_json(config)
    config = read_config(hf_config)
    recipe = wanted.recipe(config)
    out, state = Path(out), Path(f"{Path(out)}.training")
    refuse_foreign_model(out)
    whole = DOCUMENT_BREAK.join(map(read_text, text))
    refuse_short("The text", whole, recipe.length)
    apart = None if heldout is None else read_text(heldout)
    if heldout is not None:
        refuse_short(heldout, apart, recipe.length)
    with own_directory(state, is_state, WHAT):
        refuse_other_run(state, description_of(config, recipe))
        initial = None if start is None else plain_weights(Path(start), config)
        with progress("Learning the vocabulary"):
            tokenizer = tokenizer_for(start or state, start is not None, whole, config)
            learned = Text(*(ids_of(tokenizer, part) for part in (whole, apart)))
        check_lengths(config, learned, recipe)
        write_json(state / RUN, {"what": WHAT})
        write_tokenizer(tokenizer, config.context, state)
        with progress("Training", "steps") as report:
            weights, curve = train(
                config,
                learned,
                recipe,
                state,
                initial=initial,
                workers=wanted.workers,
                report=lambda row: report(
                    row["step"], recipe.steps, loss=row["loss"], active=row["active"]
                ),
            )
        refuse_foreign_model(out)
        files = tokenizer_files(tokenizer, config.context, out) | {out / CURVE: curve_text(curve)}
        write_files(files | checkpoint_files(out, hf_config, config, weights), parents=True)
    return summary(out, curve[-1])


def tokenizer_for(directory, given, text, config):
    """The tokenizer of a directory; trained on the text if it is not given and there is none."""
    file = Path(directory) / "tokenizer.json"
    if given or file.exists():
        tokenizer = whole_tokenizer(file)
        last = max(tokenizer.get_vocab().values(), default=0)
        if last < config.vocab_size:
            return tokenizer
        raise ValueError(
            f"{file} has a token of id {last}, and the config a vocabulary of "
            f"{config.vocab_size} words; the two do not belong together."
        )
    return train_tokenizer(text, config.vocab_size)


def ids_of(tokenizer, text):
    """A text as one row of token ids, or None for none."""
    return None if text is None else encode_documents(tokenizer, text)


def summary(out, last):
    """What the command says of a training, whose last step noted this."""
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
    return all({"step", "loss"} <= row.keys() for row in json_value(read_text(path)))


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
