"""Proposed tokens as a tree: what beams share is verified once.

Node 0, the root, is the token that the model itself emitted last and has not computed yet. Every
other node is a proposal for what follows its parent. A chain is a tree without forks, and the
root alone is a step that proposes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Tree:
    """n tokens, each after its parent; a parent stands before its children.

    tokens     : int64 (n,)
    parents    : int64 (n,), the root's is -1
    log_probs  : float (n,), the drafter's log-probability of each token after its parent, the
                 root's is 0; or None where the drafter has none
    drawn_from : float64 (n, V), row i is the distribution that token i was drawn from (nobody
                 looks at the root's); or None where the drafter chose its tokens without chance
    raises     : ValueError if these are not one tree

    >>> tokens, parents = (np.array(ints, dtype=np.int64) for ints in ([5, 8, 9, 3], [-1, 0, 0, 2]))
    >>> tree = Tree(tokens, parents)  # 5 is followed by 8, or by 9 and then 3
    >>> tree.depths.tolist(), tree.children, tree.path(3)
    ([0, 1, 1, 2], [[1, 2], [], [3], []], [0, 2, 3])
    """

    tokens: np.ndarray
    parents: np.ndarray
    log_probs: np.ndarray | None = None
    drawn_from: np.ndarray | None = None

    def __post_init__(self):
        n = len(self.tokens)
        if n == 0 or self.parents.shape != (n,) or self.parents[0] != -1:
            raise ValueError("A tree begins with its root, whose parent is -1; each token has one.")
        places = np.arange(1, n, dtype=np.int64)
        if np.any(self.parents[1:] < 0) or np.any(self.parents[1:] >= places):
            raise ValueError("Each token of a tree comes after its parent, which is in the tree.")
        for rows in (self.log_probs, self.drawn_from):
            if rows is not None and len(rows) != n:
                raise ValueError(f"A tree of {n} tokens has {len(rows)} rows of probabilities.")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> np.ndarray:
        """Distance of each token from the root: its position is the root's plus this. int64 (n,)"""
        depths = np.zeros(len(self), dtype=np.int64)
        for node in range(1, len(self)):
            depths[node] = depths[self.parents[node]] + 1
        return depths

    @cached_property
    def ancestors(self) -> np.ndarray:
        """Which tokens of the tree each may look at: those on its way from the root, and itself.

        returns: bool (n, n); what the cache holds before the root is seen by all
        """
        ancestors = np.eye(len(self), dtype=np.bool_)
        for node in range(1, len(self)):
            ancestors[node] |= ancestors[self.parents[node]]
        return ancestors

    @cached_property
    def children(self) -> list[list[int]]:
        """The nodes proposed after each node, in order: a list of lists of int."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parents.tolist()[1:], start=1):
            children[parent].append(node)
        return children

    def path(self, node: int) -> list[int]:
        """The nodes from the root to this one, both included: increasing ints."""
        return np.flatnonzero(self.ancestors[node]).tolist()

    def cut(self, depth: int) -> Tree:
        """The tree without what lies deeper than `depth`: at the context's end, say."""
        kept = self.depths <= depth
        number = np.cumsum(kept) - 1  # of a kept node in the new tree
        parents = np.where(self.parents < 0, -1, number[self.parents])
        log_probs = None if self.log_probs is None else self.log_probs[kept]
        drawn_from = None if self.drawn_from is None else self.drawn_from[kept]
        return Tree(self.tokens[kept], parents[kept], log_probs, drawn_from)


def chain(
    tokens: Sequence[int] | np.ndarray,
    log_probs: np.ndarray | None = None,
    drawn_from: np.ndarray | None = None,
) -> Tree:
    """The tree without forks: each token proposed after the one before it.

    tokens : ints (n,), the model's own last token first;  log_probs, drawn_from : as in Tree

    >>> chain([5, 8, 9]).parents.tolist()
    [-1, 0, 1]
    """
    n = len(tokens)
    parents = np.arange(-1, n - 1, dtype=np.int64)
    return Tree(np.array(tokens, dtype=np.int64), parents, log_probs, drawn_from)


def pack(
    beams: np.ndarray | Sequence[Sequence[int]], log_probs: np.ndarray | None = None
) -> tuple[Tree, np.ndarray]:
    """The prefix tree of W beams: a beginning that several share is kept once.

    Beams b and c share their node at depth l when their first l + 1 tokens agree; the node
    belongs to the first beam that has it, and nodes are numbered beam by beam.
    (Dynamic tree attention, ReDrafter, arXiv 2403.09919. The listing in its appendix, as printed,
    yields zeros on its own example; this is what the released code computes.)

    beams     : int (W, N), all beginning with the model's own last token
    log_probs : float (W, N) or None, of each token after those before it
    returns   : Tree, and unpacker, int64 (W, N): the node of each token of each beam, so that
                x[unpacker] is (W, N, ...) for an x of one row a node
    raises    : ValueError if there are no tokens or several roots

    >>> tree, unpacker = pack([[5, 8, 9], [5, 8, 3], [5, 2, 9]])
    >>> tree.tokens.tolist()  # 6 of the 9 tokens: 5 and 5 8 are shared
    [5, 8, 9, 3, 2, 9]
    >>> unpacker.tolist()
    [[0, 1, 2], [0, 1, 3], [0, 4, 5]]
    """
    beams = np.asarray(beams, dtype=np.int64)
    if beams.ndim != 2 or beams.size == 0:
        raise ValueError("Beams are a table of at least one row of at least one token.")
    if np.any(beams[:, 0] != beams[0, 0]):
        raise ValueError("All beams begin with the same token, the last one that the model chose.")
    W, N = beams.shape
    equal = beams[:, None, :] == beams[None, :, :]  # (W, W, N)
    shared = np.logical_and.accumulate(equal, axis=2)  # the first l + 1 tokens agree
    owner = np.argmax(shared, axis=1)  # (W, N): the first beam with this beginning
    owns = owner == np.arange(W, dtype=np.int64)[:, None]
    number = (np.cumsum(owns) - 1).reshape(W, N)  # right where a beam owns the node
    unpacker = np.take_along_axis(number, owner, axis=0)
    before = np.concatenate([np.full((W, 1), -1, dtype=np.int64), unpacker[:, :-1]], axis=1)
    tree = Tree(beams[owns], before[owns], None if log_probs is None else log_probs[owns])
    return tree, unpacker


def pack_slowly(
    beams: Sequence[Sequence[int]],
) -> tuple[list[int], list[int], list[list[int]]]:
    """What `pack` computes, by a dictionary of all beginnings: its specification.

    (On a processor it is as fast. Comparing all beams at once has no loops, for a GPU.)

    returns: tokens, parents, unpacker, as lists

    >>> pack_slowly([[5, 8], [5, 2]])
    ([5, 8, 2], [-1, 0, 0], [[0, 1], [0, 2]])
    """
    number: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    parents: list[int] = []
    unpacker: list[list[int]] = []
    for beam in beams:
        unpacker.append([])
        for end in range(1, len(beam) + 1):
            beginning = tuple(beam[:end])
            if beginning not in number:
                number[beginning] = len(tokens)
                tokens.append(beginning[-1])
                parents.append(number.get(beginning[:-1], -1))
            unpacker[-1].append(number[beginning])
    return tokens, parents, unpacker


def tokens_saved(tree: Tree, unpacker: np.ndarray) -> float:
    """Share of the beams' tokens that the model need not compute, because they are shared.

    1 - n / (W · N); ReDrafter reports 30-60 % at N = 5 and W = 5 … 70 (arXiv 2403.09919)

    returns: float in [0, 1)

    >>> tokens_saved(*pack([[5, 8, 9, 1], [5, 8, 9, 2]]))  # 5 tokens instead of 8
    0.375
    """
    return 1 - len(tree) / unpacker.size
