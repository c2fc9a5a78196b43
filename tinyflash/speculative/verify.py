"""Verification: which proposed tokens the model would have said itself, and what follows them.

One walk down the tree serves greedy decoding (a law with all its weight on one token) and
sampling. It is exact: the tokens of a step have the joint law of as many tokens drawn one by one
from the model, whatever was proposed.
"""

from dataclasses import dataclass

import numpy as np

from tinyflash.sampling import draw


@dataclass(frozen=True)
class Verdict:
    """What one step yields.

    path  : nodes whose tokens the model agrees with, from the root on, increasing: what the KV
            cache keeps of the tree, `cache.keep(start, verdict.path)`
    token : the model's own token after them, not yet computed: the next tree's root
    tokens: what the step adds to the text: those of the path after the root, then `token`
    """

    path: list
    token: int
    tokens: list


def verify(tree, logits, choose, rng, ends=()):
    """Walk from the root as long as the model's next token is among those proposed.

    At each node a token is drawn from the model's law (`drawn`). If a child bears it, the walk
    goes on there; if not, it is the step's last token.

    tree   : tree.Tree of n nodes
    logits : (n, V), the model's after each node, given the node's ancestors
    choose : function ((V,) logits, tokens of this step so far) -> float64 (V,), the distribution
             of the token after them: it may hang on what was said, as penalties do
    rng    : np.random.Generator
    ends   : tokens that end the text; the walk stops there, with nothing behind them kept
    returns: Verdict
    raises : ValueError if the logits are not of this tree, or a token was drawn from a law that
             gives it no probability
    """
    if len(logits) != len(tree):
        raise ValueError(f"A tree of {len(tree)} tokens was verified with {len(logits)} logits.")
    path, tokens = [0], []
    while True:
        children = tree.children[path[-1]]
        p = choose(logits[path[-1]], tokens)
        if tree.laws is None:
            token = draw(p, rng)
        else:
            drafts = [(int(tree.tokens[child]), tree.laws[child]) for child in children]
            token = drawn(p, drafts, rng)
        tokens.append(token)
        agreed = [child for child in children if tree.tokens[child] == token]
        if not agreed or token in ends:
            return Verdict(path, token, tokens)
        path.append(agreed[0])


def drawn(p, drafts, rng):
    """A token with law p that is one of the drafts as often as can be.

    A draft x that was drawn from q is accepted with probability min(1, p(x) / q(x)); when it is
    not, p becomes max(p - q, 0), rescaled, for what follows.
    (Speculative sampling, arXiv 2211.17192, §2.3 and 2302.01318; repeated over several drafts as
    in SpecInfer, arXiv 2305.09781.)

    A draft that was chosen without chance has a q that is 1 at itself. Then this is the same
    law as drawing from p and looking whether a draft was met, which is what `verify` does.

    p      : float64 (V,), sums to 1
    drafts : (token, q) pairs, q float64 (V,), each token drawn from its q independently
    raises : ValueError if a draft's q gives it no probability
    """
    for token, q in drafts:
        if len(q) != len(p):
            raise ValueError(
                f"The drafter knows {len(q)} tokens and the model {len(p)}; it was made for "
                "another model."
            )
        if not q[token] > 0:
            raise ValueError(
                f"The drafter proposed token {token}, to which its own law gives no probability."
            )
        if rng.random() * q[token] < p[token]:
            return token
        left = np.maximum(p - q, 0)
        total = np.sum(left)
        if total > 0:  # it is 0 only where p and q differ by rounding: p is right then
            p = left / total
    return draw(p, rng)


def released_rule(beams, p, q, uniforms):
    """The sampling rule of ReDrafter's released code, which does NOT sample from the model.

    Each drafted token of each beam is accepted on its own where u < p / q; the beam with the
    longest accepted beginning wins; the token after it is drawn from max(p - q, 0), or from p
    after a whole beam. That would be speculative sampling if a beam had been drawn from q. It
    was searched for: the likeliest tokens are always proposed, so that they are said too often,
    and taking the longest of several beams adds to it. It stands here to fail the test that
    `verify` passes (tests/test_verify.py); nothing calls it.

    beams    : int (W, N), the first token of each is the model's own
    p        : (W, N, V), the model's law after each token
    q        : (W, N-1, V), the drafter's law, by which it ranked the tokens 1 … N-1
    uniforms : (W, N-1), numbers in [0, 1)
    returns  : number of accepted tokens, the beam, and the law (V,) of the token that follows
    """
    W, N = beams.shape
    row, column = np.ogrid[:W, : N - 1]
    ratio = p[row, column, beams[:, 1:]] / q[row, column, beams[:, 1:]]
    lengths = np.sum(np.logical_and.accumulate(uniforms < ratio, axis=1), axis=1)
    beam = int(np.argmax(lengths))
    accepted = int(lengths[beam])
    law = p[beam, accepted]
    if accepted < N - 1:
        law = np.maximum(law - q[beam, accepted], 0)
    return accepted, beam, law / np.sum(law)
