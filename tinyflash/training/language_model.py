"""Train a language model from nothing, by the gradients of its own forward pass.

The loss is the cross-entropy of the next token, plus, on request, an L1 term on the feed-forward
activations that makes most of them zero (which is what flash inference lives on).
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tinyflash.config import weight_shapes
from tinyflash.ops import log_softmax
from tinyflash.training.optimizers import (
    adamw_init,
    adamw_step,
    clip_by_global_norm,
    cosine_schedule,
)
from tinyflash.training.run_files import load_state, save_state
from tinyflash.training.tape import mean_value_and_grad
from tinyflash.transformer import forward, no_tap
from tinyflash.workers import OneBlasThread

PART_TOKENS = 512


@dataclass(frozen=True)
class Recipe:
    """How to train; the same recipe, text and seed give the same weights, bit for bit.

    steps         : optimizer steps in all
    batch         : sequences a step
    length        : tokens of one sequence, at most the model's context
    peak, floor   : learning rate after warm-up and at the end
    warmup        : steps from 0 to peak
    weight_decay  : of matrices; gains and biases are left alone
    clip          : largest global norm of a gradient
    active_share  : wanted share of FFN neurons that fire, or None for no L1 term
    seed          : of the initial weights and of the batches
    """

    steps: int
    batch: int = 16
    length: int = 128
    peak: float = 2e-3
    floor: float = 2e-4
    warmup: int = 200
    weight_decay: float = 0.1
    clip: float = 1.0
    active_share: float | None = None
    seed: int = 0


def random_weights(config, seed, dtype=np.float32):
    """Weights to begin with: N(0, 0.02²), gains 1, biases 0.

    The two matrices that write into the residual stream are divided by √(2L), so that its
    variance does not grow with depth (Language models are unsupervised multitask learners, §2.3).

    returns: dict name -> array
    """
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


def train(
    config,
    ids,
    recipe,
    directory,
    *,
    initial=None,
    heldout=None,
    save_every=200,
    workers=2,
    report=None,
):
    """Train from scratch, or go on where an interrupted run in `directory` stopped.

    config   : ModelConfig
    ids      : int (N,), the text as one row of token ids
    directory: where the state of the run is kept; written whole or not at all
    initial  : weights to begin with (they are written over), or None for random ones
    heldout  : int (M,), text for validation every `save_every` steps, or None
    workers  : threads, each with whole sequences; their number does not change the result
    report   : function (dict) called after each step, for progress
    returns  : weights, curve (list of dicts: step, tokens, loss, active share, seconds, …)
    raises   : ValueError if the text is shorter than one sequence, or the state in `directory`
               is of another model or recipe
    """
    check_lengths(config, ids, recipe)
    weights, optimizer, run = begin_or_resume(config, recipe, Path(directory), initial)
    began = time.perf_counter() - run["seconds"]
    with ThreadPoolExecutor(workers) as executor, OneBlasThread():
        while run["step"] < recipe.steps:
            row = step_once(weights, optimizer, run, config, ids, recipe, executor)
            row["seconds"] = run["seconds"] = time.perf_counter() - began
            saves = run["step"] % save_every == 0 or run["step"] == recipe.steps
            if heldout is not None and saves:
                loss, shares = heldout_loss(weights, config, heldout, recipe.length)
                row |= {"heldout_loss": loss, "heldout_active": shares}
            run["curve"].append(row)
            if report:
                report(row)
            if saves:
                save_state(directory, weights, optimizer, run)
    return weights, run["curve"]


def step_once(weights, optimizer, run, config, ids, recipe, executor):
    """One optimizer step, in place; returns the row that it adds to the curve."""
    step, penalty = run["step"], run["penalty"]
    parts = {}

    def objective(traced, part):
        number, sequences = part
        loss, *parts[number] = loss_and_activity(traced, config, sequences, penalty)
        return loss

    batch = sample_batch(ids, recipe, step)
    numbered = list(enumerate(np.split(batch, len(batch) // sequences_per_part(recipe))))
    _, gradients = mean_value_and_grad(objective, weights, numbered, executor)
    norm = clip_by_global_norm(gradients, recipe.clip)
    rate = cosine_schedule(
        step,
        total_steps=recipe.steps,
        warmup_steps=recipe.warmup,
        peak=recipe.peak,
        floor=recipe.floor,
    )
    adamw_step(weights, gradients, optimizer, rate, weight_decay=recipe.weight_decay)
    losses, shares = zip(*(parts[number] for number, _ in numbered), strict=True)
    active = float(np.mean(shares))
    run["step"] = step + 1
    run["penalty"] = next_penalty(penalty, active, recipe.active_share)
    return {
        "step": run["step"],
        "tokens": run["step"] * recipe.batch * recipe.length,
        "loss": sum(losses) / len(losses),
        "active": active,
        "penalty": penalty,
        "gradient_norm": norm,
        "learning_rate": rate,
    }


def sequences_per_part(recipe):
    """How many sequences one worker computes together; it divides the batch.

    About PART_TOKENS tokens: with fewer the time between NumPy calls tells; with more the arrays
    leave the processor's cache.
    """
    most = max(1, PART_TOKENS // recipe.length)
    return max(n for n in range(1, most + 1) if recipe.batch % n == 0)


def check_lengths(config, ids, recipe):
    """Raise a ValueError, one sentence, unless sequences fit the text and the model."""
    if len(ids) <= recipe.length:
        raise ValueError(
            f"The text has {len(ids)} tokens, fewer than one training sequence of "
            f"{recipe.length + 1}; give more text or train on shorter sequences."
        )
    if recipe.length > config.context:
        raise ValueError(
            f"A training sequence of {recipe.length} tokens does not fit the model's context of "
            f"{config.context}; train on shorter ones."
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
    for start in starts:
        window = ids[None, start : start + length + 1].astype(np.int64)
        _, cross_entropy, active = loss_and_activity(weights, config, window, 0.0)
        losses.append(cross_entropy)
        shares.append(active)
    return sum(losses) / len(losses), np.mean(shares, axis=0).tolist()


def begin_or_resume(config, recipe, directory, initial=None):
    """The initial (or random) weights and a new optimizer, or those of an interrupted run.

    raises: ValueError if that run had another config or recipe
    """
    description = {"config": json.loads(json.dumps(asdict(config))), "recipe": asdict(recipe)}
    saved = load_state(directory)
    if saved is None:
        weights = random_weights(config, recipe.seed) if initial is None else initial
        penalty = 0.0 if recipe.active_share is None else 0.2
        run = {"step": 0, "seconds": 0.0, "penalty": penalty, "curve": [], **description}
        return weights, adamw_init(weights), run
    weights, optimizer, run = saved
    for part in ("config", "recipe"):
        differ = [k for k, v in description[part].items() if run[part].get(k) != v]
        if differ:
            raise ValueError(
                f"{directory} holds a run whose {part} differs in {', '.join(differ)}; "
                "resume it with its own settings, or train into another directory."
            )
    # In the order of computation again: the gradient's norm is a sum in this order.
    weights = {name: weights[name] for name in weight_shapes(config)}
    return weights, optimizer, run
