"""What a drafter is, and the one that proposes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tinyflash.speculative.tree import Tree, chain


class Drafter(Protocol):
    """Proposes tokens, which the model verifies in one pass.

    Name it as the base class, and only `propose` has to be written.

    spare_nodes : most tokens that one of its trees has beyond one path: the KV cache holds them for
                  a step

    >>> class Echo(Drafter):
    ...     def propose(self, ids, hidden=None):
    ...         return chain([ids[-1], ids[-1]])  # the last token, and then the same again
    >>> Echo().propose([4, 7]).tokens.tolist()
    [7, 7]
    """

    spare_nodes: int = 0

    def begin(self, choose: Callable, rng: np.random.Generator) -> None:
        """Draw from now on as the text is drawn, if it draws at all. Called before each proposal.

        choose : function ((V,) logits, tokens drafted so far) -> float64 (V,) distribution
        """
        return None

    def propose(self, ids: Sequence[int], hidden: np.ndarray | None = None) -> Tree:
        """What may come next.

        ids     : all tokens so far
        hidden  : (D,), final norm at the token before the last: what the last was chosen from
        returns : Tree, whose root is the last token
        """
        ...


class NoDrafter(Drafter):
    """Plain decoding: nothing is proposed.

    >>> NoDrafter().propose([5, 9]).tokens.tolist()
    [9]
    """

    def propose(self, ids: Sequence[int], hidden: np.ndarray | None = None) -> Tree:
        """The tree of the last token alone."""
        return chain(ids[-1:])
