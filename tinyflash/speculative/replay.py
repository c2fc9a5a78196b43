"""A drafter that knows the text already and errs as often as it is told to.

With it the machinery can be measured on models that have nothing to say: synthetic weights of a
real shape have no drafter, but a token that is verified costs them what it costs a real model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tinyflash.checks import is_count
from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.tree import Tree, chain


@dataclass
class Replay(Drafter):
    """Proposes how the recorded text goes on, each token right with probability alpha.

    Of N proposed tokens a step accepts α + α² + … + α^N in the mean.  (arXiv 2211.17192, §3.1)

    text       : ints, the prompt and what follows it
    alpha      : in [0, 1]
    length     : tokens to propose, at least 1
    vocab_size : of the model; a wrong token is any other of its tokens
    seed       : of the errors
    raises     : ValueError if one of these is out of its range

    >>> replay = Replay([5, 6, 7, 8, 9], alpha=1, length=3, vocab_size=10)
    >>> replay.propose([5, 6]).tokens.tolist()  # the last token, and what follows it
    [6, 7, 8, 9]
    """

    text: list[int]
    alpha: float
    length: int
    vocab_size: int
    seed: int = 0
    rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a probability between 0 and 1, not {self.alpha}.")
        if not is_count(self.length):
            raise ValueError(f"A replay proposes at least 1 token, not {self.length}.")
        if self.vocab_size < 2:
            raise ValueError("There is no wrong token in a vocabulary of one.")
        self.rng = np.random.default_rng(self.seed)

    def propose(self, ids: Sequence[int], hidden: np.ndarray | None = None) -> Tree:
        """A chain after the last token; that token alone where the recording ends.

        ids : ints, all tokens so far;  hidden : not looked at
        """
        right = np.array(self.text[len(ids) : len(ids) + self.length], dtype=np.int64)
        other = self.rng.integers(1, self.vocab_size, len(right))
        wrong = self.rng.random(len(right)) >= self.alpha
        return chain([ids[-1], *np.where(wrong, (right + other) % self.vocab_size, right)])


def expected_tokens(alpha: float, length: int) -> float:
    """Tokens a step in the mean: 1 + α + … + α^N = (1 - α^(N+1)) / (1 - α).  (§3.1, equation 1)

    >>> expected_tokens(0.5, 4)
    1.9375
    """
    return sum(alpha**n for n in range(length + 1))
