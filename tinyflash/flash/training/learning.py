"""Training one layer's activity predictor: two thin matrices that say which neurons fire.

It begins as the best rank-R copy of the projection that decides activity (its SVD), and two epochs
of gradient descent bend it towards the question that matters: not how large a pre-activation is,
but on which side of zero (LLM in a flash, §3.1). From random factors so few epochs lead nowhere.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tinyflash.flash.predictor import Predictor, sigmoid
from tinyflash.low_rank import truncated_svd
from tinyflash.matrices.half import HalfMatrix
from tinyflash.training import loop
from tinyflash.training.optimizers import adamw_init
from tinyflash.workers import WORKERS

SAMPLE = 1024  # tokens on which the first guess is compared with the truth
PROBIT = 1.702  # sigmoid(1.702 z) is Φ(z), to within 0.01


@dataclass(frozen=True)
class Recipe:
    """How one predictor is trained; the same recipe and data give the same bits.

    rank   : R
    epochs : passes over the tokens
    rate   : learning rate, as a share of the factors' root mean square
    batch  : tokens a step, fewer where there would be less than 16 steps an epoch
    seed   : of the order of the tokens, and of the directions the SVD starts from
    """

    rank: int
    epochs: int = 2
    rate: float = 0.02
    batch: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Recorded:
    """What a layer did with a text.

    inputs : float16 (N, D), what entered the feed-forward
    bits   : uint8 (N, ⌈F/8⌉), which neurons fired, eight to a byte
    F      : neurons
    """

    inputs: np.ndarray
    bits: np.ndarray
    F: int

    def __len__(self):
        return len(self.inputs)

    def batch(self, tokens):
        """Some tokens: their inputs as float32 (n, D), and which neurons fired, bool (n, F)."""
        bits = np.unpackbits(self.bits[tokens], axis=1, count=self.F)
        return self.inputs[tokens].astype(np.float32), bits.view(bool)

    def share(self):
        """Share of (token, neuron) pairs in which the neuron fired."""
        fired = sum(int(np.bitwise_count(rows).sum()) for rows in np.array_split(self.bits, 16))
        return fired / (len(self) * self.F)


def balanced_loss(scores, active, share):
    """Cross-entropy in which all firing neurons together weigh as much as all others.

    mean over tokens and neurons of  softplus(-s) / 2p where it fired, else softplus(s) / 2(1-p)

    with p the share of firing ones in the whole text: were every score 0, both kinds would
    contribute ½ log 2. Unbalanced, "nobody fires" would be right 97 times of 100.

    scores : (T, F), log-odds; may be traced;  active : bool (T, F);  share : p
    returns: one number, nats
    """
    signed = scores * np.where(active, np.float32(-1), np.float32(1))
    weights = np.where(active, np.float32(0.5 / share), np.float32(0.5 / (1 - share)))
    softplus = np.maximum(signed, 0) + np.log(1 + np.exp(-np.abs(signed)))
    return np.mean(softplus * weights)


def loss_gradients(factors, x, active, share):
    """The gradients of `balanced_loss` by hand: the tape takes twice as long for this one.

    With s = up h + bias, h = down x and g = ∂loss/∂s = weight · sign · sigmoid(sign · s) / (T·F):

        ∂up = gᵀ h,   ∂bias = Σ_t g,   ∂down = (g up)ᵀ x

    The tests hold them against the tape's.

    factors : dict "down" (R, D), "up" (F, R), "bias" (F,);  x : (T, D);  active : bool (T, F)
    returns : dict of the same shapes
    """
    h = x @ factors["down"].T  # (T, R)
    s = h @ factors["up"].T
    s += factors["bias"]
    np.negative(s, out=s, where=active)
    np.minimum(-s, np.float32(80), out=s)
    g = np.exp(s, out=s)  # e^(-sign·s)
    g += 1
    n = np.float32(active.size)
    weights = np.float32(-0.5 / share) / n, np.float32(0.5 / (1 - share)) / n
    np.divide(np.where(active, *weights), g, out=g)
    return {"down": (g @ factors["up"]).T @ x, "up": g.T @ h, "bias": g.sum(axis=0)}


def first_guess(projection, bias, inputs, active, share, recipe):
    """The factors to begin with: the projection's truncated SVD, read as a log-odds.

    The copy ŝ misses the true pre-activation of neuron j by an error of spread τ_j, so that the
    neuron fires with probability Φ((ŝ_j - cutoff) / τ_j), which is nearly sigmoid(1.702 …):

        score_j = 1.702 (ŝ_j - cutoff) / τ_j - log(p / (1 - p))

    As many pre-activations of `inputs` lie above the cutoff as neurons fired; for ReLU it is 0.
    The last term is the balance of the loss. Both factors get the same root mean square.

    projection : (F, D), the up projection (gated: the gate);  bias : (F,) or None
    inputs     : (n, D), some tokens;  active : bool (n, F), which neurons they fired
    returns    : dict "down", "up", "bias"
    """
    down, up = truncated_svd(projection, recipe.rank, recipe.seed)
    exact = inputs @ projection.T  # (n, F), bias left out of both
    copied = (inputs @ down.T) @ up.T
    missed = np.mean(exact - copied, axis=0)
    spread = np.std(exact - copied, axis=0) + np.float32(1e-3) * np.std(exact, axis=0)
    spread = np.maximum(spread, np.finfo(np.float32).tiny)
    offset = missed if bias is None else missed + bias
    pre = exact if bias is None else exact + bias
    cutoff = np.quantile(pre, 1 - np.mean(active, dtype=np.float64)).astype(np.float32)
    scale = np.float32(PROBIT) / spread
    up = up * scale[:, None]
    prior = np.float32(np.log(share / (1 - share)))
    even = np.sqrt(rms(up) / rms(down))
    return {"down": down * even, "up": up / even, "bias": (offset - cutoff) * scale - prior}


def rms(array):
    """Root mean square of all numbers; 1 where all are zero."""
    return np.float32(np.sqrt(np.mean(np.square(array)))) or np.float32(1)


def train_predictor_of(recorded, projection, bias, recipe):
    """A Predictor trained on what a layer did; its threshold is still to be chosen.

    recorded   : Recorded, the text to learn from
    projection : (F, D), what decides activity;  bias : (F,) or None
    returns    : Predictor with float16 factors, as a flash directory keeps them
    raises     : ValueError if the rank does not fit the layer
    """
    F, D = projection.shape
    if not 1 <= recipe.rank <= min(F, D):
        raise ValueError(
            f"A predictor's rank lies between 1 and {min(F, D)} here, not {recipe.rank}."
        )
    share = min(max(recorded.share(), 1e-6), 1 - 1e-6)
    rng = np.random.default_rng(recipe.seed)
    sample = np.sort(rng.permutation(len(recorded))[:SAMPLE])
    factors = first_guess(projection, bias, *recorded.batch(sample), share, recipe)
    descend(factors, recorded, share, recipe, rng)
    down, up = (factors[part].astype(np.float16, order="C") for part in ("down", "up"))
    return Predictor(HalfMatrix(down, "down"), HalfMatrix(up, "up"), factors["bias"])


def descend(factors, recorded, share, recipe, rng):
    """Some epochs of AdamW over the tokens, in place."""
    batch = max(1, min(recipe.batch, len(recorded) // 16))
    steps = len(recorded) // batch  # of an epoch
    total, peak = recipe.epochs * steps, recipe.rate * float(rms(factors["up"]))
    warmup = min(max(1, total // 20), total - 1)
    going_down = loop.Recipe(
        total, batch, peak, floor=peak / 20, warmup=warmup, weight_decay=0.0, clip=None
    )
    order = None
    with ThreadPoolExecutor(WORKERS) as executor:

        def of_tokens(tokens):
            return loss_gradients(factors, *recorded.batch(tokens), share)

        def gradients_of(step):
            nonlocal order
            if step % steps == 0:
                order = rng.permutation(len(recorded))
            tokens = order[step % steps * batch :][:batch]
            parts = list(executor.map(of_tokens, np.array_split(tokens, WORKERS)))
            return {}, {name: sum(part[name] for part in parts) / WORKERS for name in factors}

        for _ in loop.descend(factors, adamw_init(factors), going_down, gradients_of):
            pass


def choose_threshold(predictor, recorded, false_negatives):
    """The highest threshold at which the share of missed firings stays within what is allowed.

    |{fired, score ≤ c}| / |{fired}| ≤ false_negatives,  on text that was not trained on

    returns: float in (0, 1), sigmoid(c); ½ where no neuron fired at all
    """
    fired = []
    for tokens in pieces(len(recorded)):
        x, active = recorded.batch(tokens)
        fired.append(predictor.scores(x)[active])
    scores = np.sort(np.concatenate(fired)).astype(np.float64)
    if not len(scores):
        return 0.5
    first_kept = scores[min(int(false_negatives * len(scores)), len(scores) - 1)]
    missed = scores[scores < first_kept]
    cutoff = (missed[-1] + first_kept) / 2 if len(missed) else first_kept - 1
    return sigmoid(float(np.clip(cutoff, -30, 30)))


def pieces(n, height=256):
    """Tokens 0 … n-1 in pieces that fit DRAM easily: yields slices."""
    for first in range(0, n, height):
        yield slice(first, min(first + height, n))
