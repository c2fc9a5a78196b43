"""The loop of every training: steps of AdamW along a schedule, saved and resumed bit for bit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyflash.checks import is_number
from tinyflash.training.optimizers import (
    adamw_init,
    adamw_step,
    clip_by_global_norm,
    cosine_schedule,
)
from tinyflash.training.run_files import load_state, save_state, saved_run
from tinyflash.workers import OneBlasThread

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How weights descend; the same recipe, data and seed give the same weights, bit for bit.

    steps        : optimizer steps in all
    batch        : sequences or examples a step
    peak, floor  : learning rate after the warm-up and at the end; no floor: a hundredth of the peak
    warmup       : steps from 0 to the peak; None: a tenth of all
    weight_decay : of matrices; gains and biases are left alone
    clip         : largest global norm of a gradient, or None
    seed         : of the initial weights and of the batches
    """

    steps: int
    batch: int = 16
    peak: float = 2e-3
    floor: float | None = None
    warmup: int | None = None
    weight_decay: float = 0.1
    clip: float | None = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of one step, counted from 0; see `cosine_schedule`."""
        return cosine_schedule(
            step,
            total_steps=self.steps,
            warmup_steps=self.steps // 10 if self.warmup is None else self.warmup,
            peak=self.peak,
            floor=self.peak / 100 if self.floor is None else self.floor,
        )


def descend(
    weights: Arrays,
    optimizer: dict,
    recipe: Recipe,
    gradients_of: Callable[[int], tuple[dict, Arrays]],
    begin: int = 0,
) -> Iterator[dict]:
    """Take the steps of a recipe, from number `begin` on: the weights change in place.

    BLAS has one thread meanwhile: whoever computes the gradients shares them out to workers.

    optimizer    : what `adamw_init` gave, or an earlier call left
    gradients_of : function from a step's number to what to note of it, "loss" at least, and its
                   gradients: dict name -> array
    yields       : after each step, what was noted and "step" (counted from 1), "gradient_norm"
                   (if it is clipped) and "learning_rate"
    raises       : ValueError if the gradients are not finite
    """
    for step in range(begin, recipe.steps):
        with OneBlasThread():
            noted, gradients = gradients_of(step)
            norm = {}
            if recipe.clip is not None:
                norm = {"gradient_norm": clip_by_global_norm(gradients, recipe.clip)}
            rate = recipe.rate(step)
            adamw_step(weights, gradients, optimizer, rate, weight_decay=recipe.weight_decay)
        yield {"step": step + 1, **noted, **norm, "learning_rate": rate}


@dataclass
class Run:
    """A training that is kept on disk: what its next step depends on.

    directory : where it is saved, whole or not at all
    weights   : dict name -> array;  optimizer: see `adamw_init`
    kept      : JSON-able: "step" (how many are done), "seconds", "curve" (what was noted of each),
                what describes the run, and what else its steps need
    """

    directory: Path
    weights: Arrays
    optimizer: dict
    kept: dict

    def train(
        self,
        recipe: Recipe,
        gradients_of: Callable[[int], tuple[dict, Arrays]],
        *,
        save_every: int,
        report: Callable[[dict], object] | None = None,
        at_save: Callable[[], dict] | None = None,
    ) -> list[dict]:
        """Take the steps that are left, and save every so many and at the end: the curve.

        gradients_of : see `descend`
        report       : told what was noted of each step, for progress
        at_save      : what to note beside it when the run is saved
        """
        began = time.perf_counter() - self.kept["seconds"]
        begin = self.kept["step"]
        for row in descend(self.weights, self.optimizer, recipe, gradients_of, begin):
            row["seconds"] = self.kept["seconds"] = time.perf_counter() - began
            self.kept["step"] = row["step"]
            saves = row["step"] % save_every == 0 or row["step"] == recipe.steps
            if saves and at_save:
                row |= at_save()
            self.kept["curve"].append(row)
            if report:
                report(row)
            if saves:
                save_state(self.directory, self.weights, self.optimizer, self.kept)
        return self.kept["curve"]


def begin_or_resume(
    directory: str | Path, description: dict, initial: Callable[[], Arrays], **begins: float
) -> Run:
    """A new Run, or an interrupted one that goes on where it was saved.

    description : dict of dicts, JSON-able: all that the result depends on
    initial     : makes the weights to begin with, in the order of computation; they are written
                  over
    begins      : what else is kept, and what it is at the beginning
    raises      : ValueError if the run in `directory` has another description, or is damaged
    """
    refuse_other_run(directory, description)
    saved, weights = load_state(directory), initial()
    if saved is None:
        kept = {"step": 0, "seconds": 0.0, "curve": [], **begins, **description}
        return Run(Path(directory), weights, adamw_init(weights), kept)
    found, optimizer, kept = saved
    parts = (found, optimizer["first"], optimizer["second"])
    fit = all(
        name in part and part[name].shape == weight.shape and part[name].dtype == weight.dtype
        for name, weight in weights.items()
        for part in parts
    )
    if not fit or not all(is_number(kept.get(name)) for name in begins):
        raise ValueError(
            f"{directory} cannot be resumed from: its weights are not those of such a run; delete "
            "it to train from the beginning."
        )
    # In the order of computation again: the gradient's norm is a sum in this order.
    return Run(Path(directory), {name: found[name] for name in weights}, optimizer, kept)


def refuse_other_run(directory: str | Path, description: dict) -> None:
    """Raise a ValueError if the run in a directory, if any, has another description."""
    kept = saved_run(directory)
    if kept is None:
        return
    for part, wanted in json.loads(json.dumps(description)).items():
        had = kept.get(part)
        had = had if isinstance(had, dict) else {}
        differ = [name for name, value in wanted.items() if had.get(name) != value]
        if differ:
            raise ValueError(
                f"{directory} holds a run whose {part} differs in {', '.join(differ)}; "
                "resume it with its own settings, or train into another directory."
            )
