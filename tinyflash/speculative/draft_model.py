"""A smaller model as the drafter: it writes a few tokens, the larger one verifies them at once.

Each token is drawn from the smaller model's own law q, with the settings of the text that is
being made, so that `verify` can accept it with probability min(1, p / q).
(Speculative sampling, arXiv 2211.17192, §2.3 and 2302.01318)
"""

import numpy as np

from tinyflash.checks import is_count
from tinyflash.kv_cache import common_length
from tinyflash.sampling import distribution, draw
from tinyflash.speculative.tree import chain

PREFILL = 256  # tokens computed at once: bounds the (H, T, S) scores


class DraftModel:
    """A drafter at work for one model, with a KV cache of its own.

    draft  : the smaller model
    length : most tokens to propose
    cached : the tokens that its cache holds
    """

    def __init__(self, model, draft, length=4):
        """
        model, draft : models with the same words
        raises       : ValueError if their words differ, the draft model is an encoder, or length
                       is below 1
        """
        if not is_count(length):
            raise ValueError(f"A draft model proposes at least 1 token, not {length}.")
        if not draft.config.causal:
            raise ValueError(f"{draft.name} is an encoder: it continues no text and drafts none.")
        check_vocabulary(model, draft)
        self.draft = draft
        self.length = length
        self.cache = draft.new_cache()
        self.cached = []
        self.begin(lambda logits, step: distribution(logits, 0), np.random.default_rng(0))

    def begin(self, choose, rng):
        """Draw as a text that begins now is drawn.

        choose : function ((V,) logits, tokens drafted so far) -> float64 (V,) distribution
        rng    : np.random.Generator
        """
        self.choose = choose
        self.rng = rng

    def propose(self, ids, hidden=None):
        """A chain after the last token, with the laws it was drawn from.

        It is shorter where the draft model's context ends, and then the last token alone.

        ids     : ints, all tokens so far;  hidden : not looked at
        returns : Tree
        """
        length = min(self.length, self.draft.config.context - len(ids) + 1)
        if length < 1:
            return chain(ids[-1:])
        logits = self._read(list(ids))
        tokens, laws = [ids[-1]], []
        while True:
            laws.append(self.choose(logits, tokens[1:]))
            tokens.append(draw(laws[-1], self.rng))
            if len(laws) == length:
                break
            logits = self.draft.logits(tokens[-1:], self.cache)[-1]
            self.cached.append(tokens[-1])
        return chain(tokens, laws=np.stack([laws[0], *laws]))  # nobody looks at the root's

    def _read(self, ids):
        """Compute what the cache does not hold of the text: (V,) logits after its last token."""
        kept = min(common_length(self.cached, ids), len(ids) - 1)
        self.cache.truncate(kept)
        self.cached = ids[:kept]
        for first in range(kept, len(ids), PREFILL):
            logits = self.draft.logits(ids[first : first + PREFILL], self.cache)[-1]
        self.cached = ids
        return logits


def check_vocabulary(model, draft):
    """See that two models mean the same by every token id.

    raises: ValueError if not
    """
    words = [m.tokenizer and m.tokenizer.backend.get_vocab() for m in (model, draft)]
    sizes = [m.config.vocab_size for m in (model, draft)]
    if None not in words and words[0] != words[1]:
        raise ValueError(
            f"{draft.name} and {model.name} have different tokenizers, so it cannot draft for it; "
            "take a smaller model of the same family."
        )
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{draft.name} knows {sizes[1]:,} tokens and {model.name} {sizes[0]:,}, so it cannot "
            "draft for it; take a smaller model of the same family."
        )
