"""What a drafter is, and the one that proposes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tinyflash.speculative.tree import Tree, chain


class Drafter(Protocol):
    """Proposes tokens, which the model verifies in one pass.

    Name it as the base class, and only `propose` has to be written.

    spare_nodes : most tokens that a tree of its has beyond one path: the KV cache holds them for
                  a step
    """

    spare_nodes: int = 0

    def begin(self, choose: Callable, rng: np.random.Generator) -> None:
        """Draw from now on as the text is drawn, if it draws at all. Called before each proposal.

        choose : function ((V,) logits, tokens drafted so far) -> float64 (V,) distribution
        """

    def propose(self, ids: Sequence[int], hidden: np.ndarray | None = None) -> Tree:
        """What may come next.

        ids     : all tokens so far
        hidden  : (D,), final norm at the token before the last: what the last was chosen from
        returns : Tree, whose root is the last token
        """
        ...


class NoDrafter(Drafter):
    """Plain decoding: nothing is proposed."""

    def propose(self, ids, hidden=None):
        """The tree of the last token alone.

        >>> NoDrafter().propose([5, 9]).tokens.tolist()
        [9]
        """
        return chain(ids[-1:])
