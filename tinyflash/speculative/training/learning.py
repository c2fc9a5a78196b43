"""Training a drafter: N tokens ahead, by the gradients of the code that drafts.

    loss = Σ_k -log q(tok_{k+1} | h, tok_1 … tok_k),  k = 1 … N, its mean over the examples

tok_1 is what the draft begins with, q the drafter's distribution, h the frozen model's hidden
state. Where the tokens are the text's this is the released code's loss; where they are the model's
own continuation it is the paper's distillation at temperature 0 (Recurrent drafter, arXiv
2403.09919, §3.5 and 4.3.3). Gradients flow through the recurrent state of all N steps.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from tinyflash.ops import log_softmax
from tinyflash.speculative.drafter_files import weight_shapes
from tinyflash.speculative.redrafter import next_logits, next_state
from tinyflash.training import loop
from tinyflash.training.loop import begin_or_resume
from tinyflash.training.tape import mean_value_and_grad
from tinyflash.workers import WORKERS, OneBlasThread

PART = 128  # examples that a worker computes together: N times as many logits stay in the cache
SAVE_EVERY = 200  # steps
BEST = 5  # accuracy is counted among so many first choices


@dataclass(frozen=True)
class Recipe(loop.Recipe):
    """How to train a drafter; see `loop.Recipe`.

    offsets : N, how many tokens ahead it learns to draft
    """

    batch: int = 256
    peak: float = 3e-3
    weight_decay: float = 0.01
    clip: float | None = 5.0
    offsets: int = 5


def random_weights(config, seed, embedding_size):
    """Weights to begin with: biases 0, matrices such that what they give has a size of about 1.

    The logits begin small, so that the first guess is that all tokens are as likely.

    embedding_size : root mean square of the numbers in the model's embeddings
    returns        : dict name -> float32 array
    """
    rng = np.random.default_rng(seed)
    head = f"lm_head.{config.layers}.weight"
    weights = {}
    for name, shape in weight_shapes(config).items():
        if len(shape) == 1:
            weights[name] = np.zeros(shape, dtype=np.float32)
            continue
        spread = 0.1 if name == head else 1.0
        spread /= embedding_size if name == "rnn_w.weight" else 1.0
        weights[name] = (spread / shape[1] ** 0.5 * rng.standard_normal(shape)).astype(np.float32)
    return weights


def drafted_logits(config, weights, embed, hidden, tokens):
    """The drafter's logits at each step of a draft that is fed the right tokens.

    embed  : function from int (B,) to (B, D), the model's token embeddings
    hidden : (B, D);  tokens : int (B, N + 1)
    yields : N arrays (B, V), the k-th for tokens[:, k + 1]
    """
    state = np.zeros(hidden.shape, dtype=hidden.dtype)
    for k in range(tokens.shape[1] - 1):
        state = next_state(config, weights, embed(tokens[:, k]), state)
        yield next_logits(config, weights, hidden, state)


def draft_loss(config, weights, embed, hidden, tokens):
    """The sum of the cross-entropies of N drafted tokens, in nats; see above.

    hidden : (B, D);  tokens : int (B, N + 1);  returns: the mean over B examples
    """
    loss = 0
    for k, logits in enumerate(drafted_logits(config, weights, embed, hidden, tokens)):
        target = tokens[:, k + 1, None]
        loss = loss - np.mean(np.take_along_axis(log_softmax(logits), target, axis=-1))
    return loss


def sample_batch(examples, recipe, step):
    """The examples of one step, drawn from (seed, step) alone: a resumed run sees the same.

    returns: float32 (batch, D), int64 (batch, N + 1)
    """
    rng = np.random.default_rng((recipe.seed, step))
    chosen = np.sort(rng.integers(0, len(examples), size=recipe.batch))
    return examples.hidden[chosen].astype(np.float32), examples.tokens[chosen].astype(np.int64)


def train(config, examples, embed, recipe, directory, *, initial, report=None):
    """Train a drafter, or go on where an interrupted run in `directory` stopped.

    config    : DrafterConfig
    examples  : drafter_examples.Examples, with recipe.offsets + 1 tokens each
    embed     : function from int (B,) to float32 (B, D), the model's token embeddings
    directory : where the state of the run is kept; written whole or not at all
    initial   : weights to begin with; they are written over
    report    : function (dict) called after each step, for progress
    returns   : weights, curve (list of dicts: step, loss, learning rate, seconds, …)
    raises    : ValueError if the state in `directory` is of another drafter or recipe
    """
    description = {"drafter": asdict(config), "recipe": asdict(recipe)}
    run = begin_or_resume(directory, description, lambda: initial)
    equal = max(n for n in range(1, PART + 1) if recipe.batch % n == 0)

    def loss_of(traced, part):
        return draft_loss(config, traced, embed, *part)

    with ThreadPoolExecutor(WORKERS) as executor:

        def gradients_of(step):
            hidden, tokens = sample_batch(examples, recipe, step)
            count = recipe.batch // equal
            parts = list(zip(np.split(hidden, count), np.split(tokens, count), strict=True))
            loss, gradients = mean_value_and_grad(loss_of, run.weights, parts, executor)
            return {"loss": loss}, gradients

        curve = run.train(recipe, gradients_of, save_every=SAVE_EVERY, report=report)
    return run.weights, curve


def ranks(config, weights, embed, examples):
    """How many tokens the drafter finds likelier than the right one, at each offset.

    It is fed the right tokens, whatever it would have drafted.

    returns: int64 (n, N), 0 where its first choice is right
    """

    def of_part(start):
        hidden = examples.hidden[start : start + PART].astype(np.float32)
        tokens = examples.tokens[start : start + PART].astype(np.int64)
        steps = drafted_logits(config, weights, embed, hidden, tokens)
        ranked = [rank_of(logits, tokens[:, k + 1]) for k, logits in enumerate(steps)]
        return np.stack(ranked, axis=1)

    with ThreadPoolExecutor(WORKERS) as executor, OneBlasThread():
        return np.concatenate(list(executor.map(of_part, range(0, len(examples), PART))))


def rank_of(logits, tokens):
    """How many logits are larger than a token's: (B, V), int (B,) -> int64 (B,)."""
    return np.sum(logits > np.take_along_axis(logits, tokens[:, None], axis=-1), axis=-1)


def accuracy(ranks):
    """How often the right token is among the drafter's first 1, 2 … 5 choices, by offset.

    ranks : int (n, N);  returns: float64 (N, 5)
    """
    return np.stack([np.mean(ranks < best, axis=0) for best in range(1, BEST + 1)], axis=1)


def tokens_per_step(ranks):
    """What a greedy step yields with one beam of N + 1 tokens: 1 and the right ones before a wrong.

    Exact where the examples are the model's own continuations: up to its first wrong token a
    drafter has been fed what it drafted.

    ranks : int (n, N);  returns: float, from 1 to N + 1
    """
    return 1 + float(np.mean(np.sum(np.cumprod(ranks == 0, axis=1), axis=1)))
