"""Train a language model from nothing, by the gradients of its own forward pass.

The loss is the cross-entropy of the next token, plus, on request, an L1 term on the feed-forward
activations that makes most of them zero (which is what flash inference lives on).
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from tinyflash.config import weight_shapes
from tinyflash.ops import log_softmax
from tinyflash.training import loop
from tinyflash.training.loop import begin_or_resume
from tinyflash.training.tape import mean_value_and_grad
from tinyflash.transformer import forward, no_tap
from tinyflash.workers import WORKERS, OneBlasThread

SAVE_EVERY = 200  # steps
PART_TOKENS = 512


@dataclass(frozen=True)
class Recipe(loop.Recipe):
    """How to train a language model; see `loop.Recipe`.

    length       : tokens of one sequence, at most the model's context
    active_share : wanted share of FFN neurons that fire, or None for no L1 term
    """

    floor: float | None = 2e-4
    warmup: int | None = 200
    length: int = 128
    active_share: float | None = None


@dataclass(frozen=True)
class Text:
    """What a model learns from, as one row of token ids, and what it is held against, or None."""

    ids: np.ndarray
    heldout: np.ndarray | None = None


def random_weights(config, seed, dtype=np.float32):
    """Weights to begin with: N(0, 0.02²), gains 1, biases 0.

    The two matrices that write into the residual stream are divided by √(2L), so that its
    variance does not grow with depth (Language models are unsupervised multitask learners, §2.3).

    returns: dict name -> array
    raises : ValueError if this machine has no memory to train so many
    """
    refuse_what_does_not_fit(config)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith("bias"):
            weights[name] = np.zeros(shape, dtype=dtype)
        elif len(shape) == 1:
            weights[name] = np.ones(shape, dtype=dtype)
        else:
            spread = 0.02
            if name.endswith(("attn.o.weight", "ffn.down.weight")):
                spread /= (2 * config.layers) ** 0.5
            weights[name] = (spread * rng.standard_normal(shape)).astype(dtype)
    return weights


def refuse_what_does_not_fit(config):
    """Raise a ValueError if weights, gradient and AdamW's two moments are more than all DRAM."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    numbers = sum(math.prod(shape) for shape in weight_shapes(config).values())
    if 16 * numbers > memory:
        raise ValueError(
            f"To train the {numbers:,} numbers of this config takes {16 * numbers / 1e9:,.1f} GB, "
            f"and this machine has {memory / 1e9:,.1f} GB; choose smaller sizes."
        )


def next_token_loss(weights, config, ids, tap=no_tap):
    """Mean cross-entropy of each token given those before it, in nats.

    -1/T Σ_t log p(id_{t+1} | id_1 … id_t)

    ids : int (B, T + 1)
    """
    logits = forward(weights, config, ids[:, :-1], tap=tap)  # (B, T, V)
    targets = ids[:, 1:, None]
    return -np.mean(np.take_along_axis(log_softmax(logits), targets, axis=-1))


def loss_and_activity(weights, config, ids, penalty):
    """The training loss, and what its parts were.

    loss = cross-entropy + penalty · mean |FFN activation|

    The L1 term pulls activations towards zero; after ReLU most then are exactly zero.

    ids : int (B, T + 1)
    returns: loss; cross-entropy in nats; active share of each layer, float64 (L,)
    """
    activations = []

    def tap(name, tensor):
        if name.endswith("ffn.act"):
            activations.append(tensor)

    cross_entropy = next_token_loss(weights, config, ids, tap)
    shares = [np.mean(plain(act) != 0, dtype=np.float64) for act in activations]
    loss = cross_entropy
    if penalty:
        l1 = sum(np.mean(np.abs(act)) for act in activations) * (1 / len(activations))
        loss = cross_entropy + l1 * penalty
    return loss, float(plain(cross_entropy)), np.array(shares, dtype=np.float64)


def plain(array):
    """The array behind a traced one."""
    return getattr(array, "value", array)


def sample_batch(ids, recipe, step):
    """The sequences of one step: windows of the text, drawn anew each step.

    Drawn from (seed, step) alone, so that a resumed run sees the very same batches.

    ids : int (N,), the text;  returns: int64 (batch, length + 1)
    """
    rng = np.random.default_rng((recipe.seed, step))
    starts = rng.integers(0, len(ids) - recipe.length, size=recipe.batch)
    return np.stack([ids[start : start + recipe.length + 1] for start in starts]).astype(np.int64)


def train(config, text, recipe, directory, *, initial=None, workers=WORKERS, report=None):
    """Train from scratch, or go on where an interrupted run in `directory` stopped.

    config    : ModelConfig
    text      : Text; held-out text is measured whenever the run is saved
    directory : where the state of the run is kept; written whole or not at all
    initial   : weights to begin with (they are written over), or None for random ones
    workers   : threads, each with whole sequences; their number does not change the result
    report    : function (dict) called after each step, for progress
    returns   : weights, curve (list of dicts: step, tokens, loss, active share, seconds, …)
    raises    : ValueError if the text is shorter than one sequence, or the state in `directory`
                is of another model or recipe
    """
    check_lengths(config, text, recipe)
    run = begin_or_resume(
        directory,
        description_of(config, recipe),
        lambda: random_weights(config, recipe.seed) if initial is None else initial,
        penalty=0.0 if recipe.active_share is None else 0.2,
    )

    def held_out():
        if text.heldout is None:
            return {}
        loss, shares = heldout_loss(run.weights, config, text.heldout, recipe.length)
        return {"heldout_loss": loss, "heldout_active": shares}

    with ThreadPoolExecutor(workers) as executor:
        steps = step_gradients(run.weights, run.kept, config, text.ids, recipe, executor)
        settings = {"save_every": SAVE_EVERY, "report": report, "at_save": held_out}
        curve = run.train(recipe, steps, **settings)
    return run.weights, curve


def description_of(config, recipe):
    """What the state of a run says of it: see `loop.begin_or_resume`."""
    return {"config": asdict(config), "recipe": asdict(recipe)}


def step_gradients(weights, kept, config, ids, recipe, executor):
    """The function that `loop.descend` asks for what to note of a step, and its gradients.

    kept : dict with "penalty", the weight of the L1 term, which follows the measured share
    """

    def gradients_of(step):
        penalty, parts = kept["penalty"], {}

        def objective(traced, part):
            number, sequences = part
            loss, *parts[number] = loss_and_activity(traced, config, sequences, penalty)
            return loss

        batch = sample_batch(ids, recipe, step)
        numbered = list(enumerate(np.split(batch, len(batch) // sequences_per_part(recipe))))
        _, gradients = mean_value_and_grad(objective, weights, numbered, executor)
        losses, shares = zip(*(parts[number] for number, _ in numbered), strict=True)
        active = float(np.mean(shares))
        kept["penalty"] = next_penalty(penalty, active, recipe.active_share)
        noted = {"tokens": (step + 1) * recipe.batch * recipe.length}
        noted |= {"loss": sum(losses) / len(losses), "active": active, "penalty": penalty}
        return noted, gradients

    return gradients_of


def sequences_per_part(recipe):
    """How many sequences one worker computes together; it divides the batch.

    About PART_TOKENS tokens: with fewer the time between NumPy calls tells; with more the arrays
    leave the processor's cache.
    """
    most = max(1, PART_TOKENS // recipe.length)
    return max(n for n in range(1, most + 1) if recipe.batch % n == 0)


def check_length(config, recipe):
    """Raise a ValueError, one sentence, if a sequence does not fit the model."""
    if recipe.length > config.context:
        raise ValueError(
            f"A training sequence of {recipe.length} tokens does not fit the model's context of "
            f"{config.context}; train on shorter ones."
        )


def check_lengths(config, text, recipe):
    """Raise a ValueError, one sentence, unless sequences fit the text and the model."""
    check_length(config, recipe)
    for name, ids in (("The text", text.ids), ("The held-out text", text.heldout)):
        if ids is not None and len(ids) <= recipe.length:
            raise ValueError(
                f"{name} has {len(ids)} tokens, fewer than one training sequence of "
                f"{recipe.length + 1}; give more text or train on shorter sequences."
            )


def next_penalty(penalty, active, wanted):
    """The weight of the L1 term follows the measured share: a little up while too many fire."""
    if wanted is None:
        return 0.0
    return penalty * 1.01 if active > wanted else penalty / 1.02


def heldout_loss(weights, config, ids, length):
    """Cross-entropy per token on text that was not trained on, and the active share by layer.

    The text is cut into windows of `length` tokens; each token but a window's first is predicted.

    ids : int (M,);  returns: nats per token, list of L shares
    """
    starts = range(0, len(ids) - length, length)
    losses, shares = [], []
    with OneBlasThread():
        for start in starts:
            window = ids[None, start : start + length + 1].astype(np.int64)
            _, cross_entropy, active = loss_and_activity(weights, config, window, 0.0)
            losses.append(cross_entropy)
            shares.append(active)
    return sum(losses) / len(losses), np.mean(shares, axis=0).tolist()
