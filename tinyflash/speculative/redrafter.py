"""ReDrafter: a small recurrent network that drafts what the model will say next.

    s_k = silu(W e_k + U s_{k-1} + b),  s_0 = 0        e_k : embedding of drafted token k - 1
    x   = [h ; s_k], through input_proj where the exit is not as wide
    x   = x + silu(A_i x + a_i)         for each of the draft layers
    the next token's logits are H x

h is the model's last hidden state after its final norm, from which the model itself chose the
token that the draft begins with; it stays the same during one draft.
(Recurrent drafter for fast speculative decoding, arXiv 2403.09919. Its text lets s_1 be e_1; the
released code, and so every checkpoint, is as here.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyflash.checkpoint.mapped import files_behind, refuse_changed
from tinyflash.checks import is_count
from tinyflash.config import ModelConfig
from tinyflash.ops import linear, log_softmax, rows, silu
from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.drafter_files import DrafterConfig, DrafterNetwork
from tinyflash.speculative.tree import Tree, pack
from tinyflash.workers import blas_threads_for

Weights = Mapping[str, Any]  # name -> array or Matrix
Embed = Callable[[np.ndarray], np.ndarray]  # int (B,) -> (B, D)

CANDIDATES = 50  # the released code forgets all but a beam's 50 likeliest next tokens


def next_state(
    config: DrafterConfig, weights: Weights, embeddings: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """The recurrent state after one more token: silu(W e + U s + b).

    embeddings : (..., D), the model's own, of the token;  state : (..., D)
    returns    : (..., D)

    >>> plain = DrafterConfig(vocab_size=9, width=2, exit_width=4, layers=0, rnn=False)
    >>> state = np.array([[1, 2]], dtype=np.float32)
    >>> next_state(plain, {}, np.array([[10, 20]], dtype=np.float32), state).tolist()
    [[11.0, 22.0]]
    """
    if not config.rnn:
        return embeddings + state
    recurrent = linear(state, weights["rnn_u.weight"], weights["rnn_u.bias"])
    return silu(linear(embeddings, weights["rnn_w.weight"]) + recurrent)


def next_logits(
    config: DrafterConfig, weights: Weights, hidden: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """The drafter's logits for the token that follows.

    hidden : (..., D), the model's, after its final norm;  state : (..., D)
    returns: (..., V)

    >>> plain = DrafterConfig(vocab_size=3, width=1, exit_width=2, layers=0, rnn=False)
    >>> head = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)  # (V, 2D)
    >>> one, two = np.array([[1]], dtype=np.float32), np.array([[2]], dtype=np.float32)
    >>> next_logits(plain, {"lm_head.0.weight": head}, one, two).tolist()  # H [h ; s]
    [[1.0, 2.0, 3.0]]
    """
    x = np.concatenate([hidden, state], axis=-1)  # (..., 2D)
    if config.exit_width != 2 * config.width:
        x = linear(x, weights["input_proj.weight"], weights["input_proj.bias"])
    for i in range(config.layers):
        layer = f"lm_head.{i}.linear"
        x = x + silu(linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
    return linear(x, weights[f"lm_head.{config.layers}.weight"])


def beam_search(
    drafter: DrafterNetwork,
    embed: Embed,
    hidden: np.ndarray,
    token: int,
    width: int,
    length: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest continuations of one token by the drafter: the best `width` at every step.

    A beam's score is the sum of its tokens' log-probabilities: no normalization by length, no
    special end of text, no temperature. Each beam's distribution is that over its 50 likeliest
    tokens. (The released code writes -50000 where log 0 is meant here; with more than 50 beams
    of length 2 it therefore returns junk beams, and this function returns fewer beams.)

    embed  : function from int (B,) to (B, D), the model's own token embeddings
    hidden : (D,);  token : int, chosen from hidden, with which all beams begin
    returns: beams int64 (W, N) with N = length, the best first; log_probs (W, N), of each token
             after those before it, 0 for the first. W is `width`, or fewer where there are fewer
    raises : ValueError if the drafter's logits are Inf or NaN

    >>> plain = DrafterConfig(vocab_size=3, width=3, exit_width=6, layers=0, rnn=False)
    >>> head = np.hstack([np.zeros((3, 3)), np.roll(np.eye(3), 1, axis=0)]).astype(np.float32)
    >>> drafter = DrafterNetwork(plain, {"lm_head.0.weight": head})  # after i comes i + 1
    >>> embed = lambda ids: 9 * np.eye(3, dtype=np.float32)[ids]
    >>> beam_search(drafter, embed, np.zeros(3, dtype=np.float32), 1, width=1, length=2)[0].tolist()
    [[1, 2]]
    """
    config, weights = drafter.config, drafter.weights
    beams = np.array([[token]], dtype=np.int64)
    log_probs = np.zeros((1, 1), dtype=hidden.dtype)
    state = np.zeros((1, config.width), dtype=hidden.dtype)
    for _ in range(length - 1):
        state = next_state(config, weights, embed(beams[:, -1]), state)  # (W, D)
        logits = next_logits(config, weights, np.broadcast_to(hidden, state.shape), state)
        if not np.isfinite(logits).all():
            raise ValueError(
                "The drafter's logits are Inf or NaN; get another copy of its checkpoint."
            )
        steps = log_softmax(only_candidates(logits))  # (W, V)
        scores = np.sum(log_probs, axis=1, keepdims=True) + steps
        best = largest(scores.reshape(-1), width)
        beam, following = np.divmod(best, config.vocab_size)
        beams = np.concatenate([beams[beam], following[:, None]], axis=1)
        log_probs = np.concatenate([log_probs[beam], steps[beam, following][:, None]], axis=1)
        state = state[beam]
    return beams, log_probs


def only_candidates(logits: np.ndarray) -> np.ndarray:
    """Logits with -inf for all but the CANDIDATES largest of each row (and those equal to them).

    >>> kept = only_candidates(np.arange(60, dtype=np.float32))
    >>> kept[:10].max(), kept[10:].min()
    (np.float32(-inf), np.float32(10.0))
    """
    if logits.shape[-1] <= CANDIDATES:
        return logits
    smallest = np.partition(logits, -CANDIDATES, axis=-1)[..., -CANDIDATES, None]
    return np.where(logits < smallest, -np.inf, logits)


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Where the largest scores are, the largest first and of equals the first; none that is -inf.

    scores : (n,);  returns : int64, `count` of them or as many as there are

    >>> largest(np.array([1, 3, -np.inf, 3], dtype=np.float32), 4).tolist()
    [1, 3, 0]
    """
    possible = np.flatnonzero(scores > -np.inf)
    return possible[np.argsort(-scores[possible], kind="stable")[:count]]


@dataclass(frozen=True)
class ReDrafter(Drafter):
    """A drafter at work for one model: proposes the prefix tree of its beams.

    embed         : function from int (B,) to (B, D), the model's token embeddings (`embedder`)
    width, length : beams, and tokens of each; the first is the model's own, so that length 5
                    drafts 4 tokens, and a step yields at most 5
    raises        : ValueError if either is smaller than 1

    >>> import tinyflash
    >>> tinyflash.load("default").drafter("redrafter", width=2, length=3)
    <ReDrafter: 2 beams of 3, <DrafterNetwork: 1 layers of width 384, 2,048 tokens>>
    """

    drafter: DrafterNetwork
    embed: Embed
    width: int = 4
    length: int = 5

    def __repr__(self):
        return f"<ReDrafter: {self.width} beams of {self.length}, {self.drafter!r}>"

    def __post_init__(self):
        if not is_count(self.width) or not is_count(self.length):
            raise ValueError(
                "A draft has at least 1 beam of at least 1 token, not "
                f"{self.width} of {self.length}."
            )

    @property
    def spare_nodes(self) -> int:  # type: ignore[override]  # Drafter has a constant there
        """Tokens of the tree beyond one beam, if no two beams share any but the first."""
        return (self.width - 1) * (self.length - 1)

    def propose(self, ids: Sequence[int], hidden: np.ndarray | None = None) -> Tree:
        """A prefix tree after the last token.

        ids     : ints, all tokens so far
        hidden  : (D,), final norm at the token before the last: what the last was chosen from
        returns : tree.Tree
        raises  : OSError if somebody wrote to the drafter's file
        """
        assert hidden is not None  # a ReDrafter drafts from it
        refuse_changed(files_behind(self.drafter.weights.values()))
        config = self.drafter.config
        largest = config.exit_width * max(config.exit_width, config.vocab_size)
        with blas_threads_for(self.width * largest):
            beams, log_probs = beam_search(
                self.drafter, self.embed, hidden, ids[-1], self.width, self.length
            )
        return pack(beams, log_probs)[0]


def embedder(model_config: ModelConfig, model_weights: Weights, drafter: DrafterNetwork) -> Embed:
    """The function by which a model embeds tokens for its drafter: (B,) -> (B, D).

    Token embeddings alone, without positions.

    raises: ValueError if the drafter's vocabulary or width are not the model's

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> drafter = model.drafter("redrafter").drafter
    >>> embed = embedder(model.config, model.weights, drafter)
    >>> embed(np.array([5, 6], dtype=np.int64)).shape == (2, model.config.width)
    True
    """
    for name, size in (("vocabulary", "vocab_size"), ("width", "width")):
        theirs, ours = getattr(drafter.config, size), getattr(model_config, size)
        if theirs != ours:
            raise ValueError(
                f"This drafter was trained for another model: its {name} is {theirs} and the "
                f"model's is {ours}."
            )

    def embed(ids):
        x = rows(model_weights["embed.weight"], ids)
        if model_config.embed_width != model_config.width:
            x = linear(x, model_weights["embed.project.weight"])
        return x

    return embed
