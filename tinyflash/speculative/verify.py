"""Verification: which proposed tokens the model would have said itself, and what follows them.

One walk down the tree serves greedy decoding (a distribution with all its weight on one token)
and sampling. It is exact: the tokens of a step are distributed like as many tokens drawn one by
one from the model, whatever was proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from tinyflash.sampling import draw
from tinyflash.speculative.tree import Tree


@dataclass(frozen=True)
class Verdict:
    """What one step yields.

    path  : nodes whose tokens the model agrees with, from the root on, increasing: what the KV
            cache keeps of the tree, `cache.keep(start, verdict.path)`
    token : the model's own token after them, not yet computed: the next tree's root
    tokens: what the step adds to the text: those of the path after the root, then `token`

    >>> Verdict(path=[0, 2], token=7, tokens=[9, 7]).tokens
    [9, 7]
    """

    path: list[int]
    token: int
    tokens: list[int]


def verify(
    tree: Tree,
    logits: np.ndarray,
    choose: Callable[[np.ndarray, list[int]], np.ndarray],
    rng: np.random.Generator,
    ends: Collection[int] = (),
) -> Verdict:
    """Walk from the root as long as the model's next token is among those proposed.

    At each node a token is drawn from the model's distribution (`drawn`). If a child bears it, the
    walk goes on there; if not, it is the step's last token.

    tree   : tree.Tree of n nodes
    logits : (n, V), the model's after each node, given the node's ancestors
    choose : function ((V,) logits, tokens of this step so far) -> float64 (V,), the distribution
             of the token after them: it may depend on what was said, as penalties do
    rng    : np.random.Generator
    ends   : tokens that end the text; the walk stops there, with nothing behind them kept
    returns: Verdict
    raises : ValueError if the logits are not of this tree, or a token was drawn from a
             distribution that gives it no probability

    >>> from tinyflash.speculative.tree import chain
    >>> says = np.eye(10, dtype=np.float64)  # after token i the model says row i, without a doubt
    >>> logits = says[[7, 8, 4]]  # after 5 it says 7, after 7 it says 8, after 9 it says 4
    >>> rng = np.random.default_rng(0)
    >>> verify(chain([5, 7, 9]), logits, lambda row, said: row, rng)  # 7 is right, 9 is not
    Verdict(path=[0, 1], token=8, tokens=[7, 8])
    """
    if len(logits) != len(tree):
        raise ValueError(f"A tree of {len(tree)} tokens was verified with {len(logits)} logits.")
    path: list[int] = [0]
    tokens: list[int] = []
    while True:
        children = tree.children[path[-1]]
        p = choose(logits[path[-1]], tokens)
        if tree.drawn_from is None:
            token = draw(p, rng)
        else:
            drafts = [(int(tree.tokens[child]), tree.drawn_from[child]) for child in children]
            token = drawn(p, drafts, rng)
        tokens.append(token)
        agreed = [child for child in children if tree.tokens[child] == token]
        if not agreed or token in ends:
            return Verdict(path, token, tokens)
        path.append(agreed[0])


def drawn(p: np.ndarray, drafts: list[tuple[int, np.ndarray]], rng: np.random.Generator) -> int:
    """A token drawn from p that is one of the drafts as often as possible.

    A draft x that was drawn from q is accepted with probability min(1, p(x) / q(x)); when it is
    not, p becomes max(p - q, 0), rescaled, for what follows.
    (Speculative sampling, arXiv 2211.17192, §2.3 and 2302.01318; repeated over several drafts as
    in SpecInfer, arXiv 2305.09781.)

    A draft that was chosen without chance has a q that is 1 at itself. Then the result is
    distributed as if one draws from p and looks whether a draft was met, as `verify` does.

    p      : float64 (V,), sums to 1
    drafts : (token, q) pairs, q float64 (V,), each token drawn from its q independently
    raises : ValueError if a draft's q gives it no probability

    >>> p = np.array([0.5, 0.5, 0], dtype=np.float64)
    >>> q = np.array([0, 0.5, 0.5], dtype=np.float64)
    >>> drawn(p, [(1, q)], np.random.default_rng(0))  # p(1) / q(1) = 1: always accepted
    1
    >>> drawn(p, [(2, q)], np.random.default_rng(0))  # p(2) = 0: max(p - q, 0) is left, token 0
    0
    """
    for token, q in drafts:
        if len(q) != len(p):
            raise ValueError(
                f"The drafter knows {len(q)} tokens and the model {len(p)}; it was made for "
                "another model."
            )
        if not q[token] > 0:
            raise ValueError(
                f"The drafter proposed token {token}, to which its own distribution gives no "
                "probability."
            )
        if rng.random() * q[token] < p[token]:
            return token
        left = np.maximum(p - q, 0)
        total = np.sum(left)
        if total > 0:  # it is 0 only where p and q differ by rounding: p is right then
            p = left / total
    return draw(p, rng)


def released_rule(
    beams: np.ndarray, p: np.ndarray, q: np.ndarray, uniforms: np.ndarray
) -> tuple[int, int, np.ndarray]:
    """The sampling rule of ReDrafter's released code, which does NOT sample from the model.

    Each drafted token of each beam is accepted on its own where u < p / q; the beam with the
    longest accepted beginning wins; the token after it is drawn from max(p - q, 0), or from p
    after a whole beam. That would be speculative sampling if a beam had been drawn from q. It
    was searched for: the likeliest tokens are always proposed, so that they are said too often,
    and taking the longest of several beams adds to it. It stands here to fail the test that
    `verify` passes (tests/test_verify.py); nothing calls it.

    beams    : int (W, N), the first token of each is the model's own
    p        : (W, N, V), the model's distribution after each token
    q        : (W, N-1, V), the drafter's distribution, by which it ranked the tokens 1 … N-1
    uniforms : (W, N-1), numbers in [0, 1)
    returns  : number of accepted tokens, the beam, and the distribution (V,) of what follows

    >>> p = np.array([[[0.5, 0.5], [0.25, 0.75]]], dtype=np.float64)  # W = 1, N = 2, V = 2
    >>> q = np.array([[[0.25, 0.75]]], dtype=np.float64)
    >>> beams, uniforms = np.array([[0, 1]], dtype=np.int64), np.array([[0.9]], dtype=np.float64)
    >>> accepted, beam, following = released_rule(beams, p, q, uniforms)  # 0.9 > 0.5 / 0.75
    >>> accepted, beam, following.tolist()
    (0, 0, [1.0, 0.0])
    """
    W, N = beams.shape
    row, column = np.ogrid[:W, : N - 1]
    ratio = p[row, column, beams[:, 1:]] / q[row, column, beams[:, 1:]]
    lengths = np.sum(np.logical_and.accumulate(uniforms < ratio, axis=1), axis=1)
    beam = int(np.argmax(lengths))
    accepted = int(lengths[beam])
    following = p[beam, accepted]
    if accepted < N - 1:
        following = np.maximum(following - q[beam, accepted], 0)
    return accepted, beam, following / np.sum(following)
