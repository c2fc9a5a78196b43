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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinyflash.checkpoint.mapped import files_behind, refuse_changed
from tinyflash.checks import is_count
from tinyflash.ops import linear, log_softmax, rows, silu
from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.drafter_files import DrafterNetwork
from tinyflash.speculative.tree import pack
from tinyflash.workers import blas_threads_for

CANDIDATES = 50  # the released code forgets all but a beam's 50 likeliest next tokens


def next_state(config, weights, embeddings, state):
    """The recurrent state after one more token: silu(W e + U s + b).

    embeddings : (..., D), the model's own, of the token;  state : (..., D)
    returns    : (..., D)
    """
    if not config.rnn:
        return embeddings + state
    recurrent = linear(state, weights["rnn_u.weight"], weights["rnn_u.bias"])
    return silu(linear(embeddings, weights["rnn_w.weight"]) + recurrent)


def next_logits(config, weights, hidden, state):
    """The drafter's logits for the token that follows.

    hidden : (..., D), the model's, after its final norm;  state : (..., D)
    returns: (..., V)
    """
    x = np.concatenate([hidden, state], axis=-1)  # (..., 2D)
    if config.exit_width != 2 * config.width:
        x = linear(x, weights["input_proj.weight"], weights["input_proj.bias"])
    for i in range(config.layers):
        layer = f"lm_head.{i}.linear"
        x = x + silu(linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
    return linear(x, weights[f"lm_head.{config.layers}.weight"])


def beam_search(drafter, embed, hidden, token, width, length):
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


def only_candidates(logits):
    """Logits with -inf for all but the CANDIDATES largest of each row (and those equal to them)."""
    if logits.shape[-1] <= CANDIDATES:
        return logits
    smallest = np.partition(logits, -CANDIDATES, axis=-1)[..., -CANDIDATES, None]
    return np.where(logits < smallest, -np.inf, logits)


def largest(scores, count):
    """Where the largest scores are, the largest first and of equals the first; none that is -inf.

    scores : (n,);  returns : int64, `count` of them or as many as there are
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
    """

    drafter: DrafterNetwork
    embed: Callable
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
    def spare_nodes(self):
        """Tokens of the tree beyond one beam, if no two beams share any but the first."""
        return (self.width - 1) * (self.length - 1)

    def propose(self, ids, hidden):
        """A prefix tree after the last token.

        ids     : ints, all tokens so far
        hidden  : (D,), final norm at the token before the last: what the last was chosen from
        returns : tree.Tree
        raises  : OSError if somebody wrote to the drafter's file
        """
        refuse_changed(files_behind(self.drafter.weights.values()))
        config = self.drafter.config
        largest = config.exit_width * max(config.exit_width, config.vocab_size)
        with blas_threads_for(self.width * largest):
            beams, log_probs = beam_search(
                self.drafter, self.embed, hidden, ids[-1], self.width, self.length
            )
        return pack(beams, log_probs)[0]


def embedder(model_config, model_weights, drafter):
    """The function by which a model embeds tokens for its drafter: (B,) -> (B, D).

    Token embeddings alone, without positions.

    raises: ValueError if the drafter's vocabulary or width are not the model's
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
