"""A smaller model as the drafter: it writes a few tokens, the larger one verifies them at once.

Each token is drawn from the smaller model's own distribution q, with the settings of the text that
is being made, so that `verify` can accept it with probability min(1, p / q).
(Speculative sampling, arXiv 2211.17192, §2.3 and 2302.01318)

Models of one family share their tokenizer, and still their matrices may be padded to different
numbers of rows: Qwen2.5 has 151,936 at 0.5B and 152,064 at 7B. The draft draws among the rows that
both have; q is 0 for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyflash.checks import is_count
from tinyflash.kv_cache import PREFILL, common_length
from tinyflash.sampling import distribution, draw
from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.tree import Tree, chain
from tinyflash.turns import Turn


class DraftModel(Drafter):
    """A drafter at work for one model, with a KV cache of its own.

    draft  : the smaller model
    length : most tokens to propose
    V      : rows of the larger model's vocabulary;  shared : those that the draft model has, too
    cached : the tokens that its cache holds, or the first of them

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> tree = DraftModel(model, model, length=3).propose(model.encode("Once upon a"))
    >>> tree.tokens.tolist() == model.encode("Once upon a")[-1:] + tree.tokens[1:].tolist()
    True
    >>> len(tree), tree.drawn_from.shape == (4, model.config.vocab_size)
    (4, True)
    """

    def __init__(self, model: Any, draft: Any, length: int = 4):
        """
        model, draft : Models with the same tokens
        raises       : ValueError if their tokens differ, the draft model is an encoder, or length
                       is below 1
        """
        if not is_count(length):
            raise ValueError(f"A draft model proposes at least 1 token, not {length}.")
        if not draft.config.causal:
            raise ValueError(f"{draft.name} is an encoder: it continues no text and drafts none.")
        check_vocabulary(model, draft)
        self.draft = draft
        self.length = length
        self.V = model.config.vocab_size
        self.shared = min(self.V, draft.config.vocab_size)
        self.cache = draft.new_cache()
        self.cached: list[int] = []
        self.turn = Turn("This drafter")
        self.begin(lambda logits, step: distribution(logits, 0), np.random.default_rng(0))

    def __repr__(self):
        return f"<DraftModel: {self.length} tokens by {self.draft!r}>"

    def begin(
        self, choose: Callable[[np.ndarray, list[int]], np.ndarray], rng: np.random.Generator
    ) -> None:
        """Draw as a text that begins now is drawn.

        choose : function ((V,) logits, tokens drafted so far) -> float64 (V,) distribution
        rng    : np.random.Generator
        """
        self.choose = choose
        self.rng = rng

    def propose(self, ids: Sequence[int], hidden: np.ndarray | None = None) -> Tree:
        """A chain after the last token, with the distributions it was drawn from.

        It is shorter where the draft model's context ends, and then the last token alone; as it is
        where the text holds a token that the draft model has not.

        ids     : ints, all tokens so far;  hidden : not looked at
        returns : Tree
        """
        length = min(self.length, self.draft.config.context - len(ids) + 1)
        if length < 1 or (self.shared < self.V and max(ids) >= self.shared):
            return chain(ids[-1:])
        with self.turn:
            return self._chain(ids, length)

    def _chain(self, ids, length):
        """`propose`, when it is our turn: `length` tokens, one after the other."""
        logits = self._read(list(ids))
        tokens, drawn_from = [ids[-1]], []
        while True:
            q = self.choose(logits[: self.shared], tokens[1:])
            drawn_from.append(np.pad(q, (0, self.V - self.shared)))  # (V,)
            tokens.append(draw(drawn_from[-1], self.rng))
            if len(drawn_from) == length:
                break
            logits = self.draft.logits(tokens[-1:], self.cache)[-1]
            self.cached.append(tokens[-1])
        # Nobody looks at the root's row.
        return chain(tokens, drawn_from=np.stack([drawn_from[0], *drawn_from]))

    def _read(self, ids):
        """Compute what the cache does not hold of the text: (V,) logits after its last token."""
        # After an interruption either may be ahead of the other; what both have is right.
        kept = min(common_length(self.cached[: self.cache.length], ids), len(ids) - 1)
        self.cache.truncate(kept)
        self.cached = ids[:kept]
        for first in range(kept, len(ids), PREFILL):
            logits = self.draft.logits(ids[first : first + PREFILL], self.cache)[-1]
        self.cached = ids
        return logits


def check_vocabulary(model: Any, draft: Any) -> None:
    """See that two models mean the same by every token id that both have.

    raises: ValueError if not, or if nothing says so

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> check_vocabulary(model, model)  # says nothing
    """
    words = [m.tokenizer and m.tokenizer.backend.get_vocab() for m in (model, draft)]
    sizes = [m.config.vocab_size for m in (model, draft)]
    if None not in words and words[0] != words[1]:
        raise ValueError(
            f"{draft.name} and {model.name} have different tokenizers, so it cannot draft for it; "
            "take a smaller model of the same family."
        )
    if None in words and sizes[0] != sizes[1]:
        raise ValueError(
            f"{draft.name} has {sizes[1]:,} tokens and {model.name} {sizes[0]:,}, and without the "
            "tokenizers of both nobody knows whether they mean the same; put their tokenizer.json "
            "beside the weights."
        )
