"""Text from a model: prefill the prompt, then propose, verify and emit until a stop rule.

`greedy` is the specification. `Generation` says the same, or draws from the same distribution,
with a drafter that proposes several tokens for each pass, stop rules and streaming. Plain
decoding is the drafter that proposes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyflash.flash.counters import TokenCounters
from tinyflash.kv_cache import PREFILL, KVCache
from tinyflash.sampling import draw, next_distribution
from tinyflash.settings import Sampling, whole
from tinyflash.speculative.counts import StepCounts
from tinyflash.speculative.drafter import Drafter, NoDrafter
from tinyflash.speculative.tree import Tree, chain
from tinyflash.speculative.verify import verify
from tinyflash.stopping import StopStrings, stop_strings, stop_tokens
from tinyflash.taps import Tap
from tinyflash.token_ids import token_ids
from tinyflash.transformer import no_tap


def greedy(model: Any, ids: Sequence[int], new_tokens: int) -> list[int]:
    """The likeliest continuation, token by token: what every faster way must reproduce.

    It does not look for the end of the text; `Generation` does.

    ids : list of int;  returns: list of int, `new_tokens` long

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> model.tokenizer.decode(greedy(model, model.encode("To be, or not to"), 3))
    ' be a great'
    """
    ids = list(ids)
    for _ in range(new_tokens):
        logits = model.logits(ids)
        ids.append(int(np.argmax(logits[-1])))
    return ids[len(ids) - new_tokens :]


class Generation:
    """One answer in the making: iterate over it for pieces of text.

    Afterwards (and at any moment) it holds `ids`, the new tokens; `text`; `stop_reason`, one of
    "end" (the model said so), "stop" (a stop string), "length" and "context"; the seconds spent
    on the prompt and on the new tokens; `counts`, the StepCounts; and `spent`, the TokenCounters
    of the steps (not of the prompt) of a model on flash.

    Set `tap` before the first piece, and it is shown the tensors of every pass, and draft.* of
    every step (taps.py).

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> generation = model.generate("To be, or not to", max_new_tokens=3, temperature=0)
    >>> "".join(generation), generation.stop_reason, generation.counts.passes
    (' be a great', 'length', 3)
    """

    def __init__(
        self,
        model: Any,
        prompt_ids: Sequence[int],
        sampling: Sampling | None = None,
        *,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] = (),
        drafter: Drafter | None = None,
        cache: KVCache | None = None,
    ) -> None:
        """
        prompt_ids     : list of int, at least one; the first cache.length of them are cached
        sampling       : settings.Sampling, how the next token is chosen; None for the likeliest
        max_new_tokens : at least 0
        stop           : strings (or one); the text ends before the first that appears, or with
                         the first token that is one of them and special
        drafter        : what proposes tokens, see speculative/drafter.py; None proposes nothing
        cache          : KVCache of a beginning of prompt_ids, or None for a new one
        raises         : ValueError for settings that mean nothing and prompts that do not fit
        """
        self.model = model
        self.prompt_ids = token_ids(prompt_ids, model.config.vocab_size).tolist()
        self.sampling = sampling or Sampling()
        self.max_new_tokens = whole("max_new_tokens", max_new_tokens)
        self.stop, self.stop_ids = stop_tokens(stop_strings(stop), model.tokenizer)
        self.drafter = NoDrafter() if drafter is None else drafter
        self.tap = no_tap
        self.ids = []
        self.hidden = None  # (D,), the state from which the newest token was chosen
        self.text = ""
        self.stop_reason = None
        self.prompt_seconds = 0.0
        self.seconds = 0.0
        self.counts, self.spent = StepCounts(), TokenCounters()
        check_request(self)
        self.rng = np.random.default_rng(self.sampling.seed)
        tokens = min(len(self.prompt_ids) + self.max_new_tokens, model.config.context)
        tokens += self.drafter.spare_nodes
        self.cache = model.new_cache(tokens) if cache is None else cache
        if cache is not None:
            model.reserve(tokens)
            cache.reserve(tokens)
        self._pieces = self._run()
        self._whole = False  # whether it came to its end

    def __repr__(self):
        ended = f"ended by {self.stop_reason}" if self.stop_reason else "in the making"
        text = self.text if len(self.text) <= 40 else self.text[:39] + "…"
        return f"<Generation: {len(self.ids)} of {self.max_new_tokens} tokens, {ended}, {text!r}>"

    def choose(self, logits: np.ndarray, step: Sequence[int]) -> np.ndarray:
        """The distribution of the next token, by all that the text holds.

        logits : (V,);  step : the tokens that this step has added to `ids`, list of int
        returns: float64 (V,)
        """
        return next_distribution(logits, self.sampling, self.prompt_ids, [*self.ids, *step])

    def __iter__(self):
        return self

    def __next__(self):
        """The next piece of text.

        raises: ValueError if an exception ended the text before; another text may be begun
        """
        try:
            return next(self._pieces)
        except StopIteration:
            if self._whole:
                raise
        raise ValueError(
            "This text was interrupted and goes no further, `text` and `ids` hold its beginning; "
            "generate it again."
        )

    def close(self) -> None:
        """End it as it is. Its cache may then be used for another text."""
        self._pieces.close()

    def _run(self):
        """Pieces of text, as soon as they are certain to be part of the answer."""
        decoder = self.model.tokenizer.decode_stream() if self.model.tokenizer else None
        text = StopStrings(self.stop)
        for token in self._tokens():
            piece = text.add(decoder.step(token) if decoder else "")
            if text.found:
                break
            if piece:
                self.text += piece
                yield piece
        else:
            piece = text.add(decoder.flush() if decoder else "")
            if not text.found:
                piece += text.held
        if text.found:
            self.stop_reason = "stop"
        if piece:
            self.text += piece
            yield piece
        self._whole = True

    def _tokens(self):
        """New tokens until a stop rule; the end-of-text token is not among them."""
        began = time.perf_counter()
        # Rounded up:
        self.counts.passes = -(-(len(self.prompt_ids) - self.cache.length) // PREFILL)
        logits, self.hidden = prefill(self.model, self.prompt_ids, self.cache, self.tap)
        self.prompt_seconds = time.perf_counter() - began
        began = time.perf_counter()
        said = [draw(self.choose(logits, []), self.rng)]
        while True:
            self.seconds += time.perf_counter() - began
            for token in said:
                if len(self.ids) == self.max_new_tokens:
                    self.stop_reason = "length"
                    return
                if token in self.model.eos_ids:
                    self.stop_reason = "end"
                    return
                self.ids.append(token)
                yield token
                if token in self.stop_ids:
                    self.stop_reason = "stop"
                    return
            if self.cache.length == self.model.config.context:
                self.stop_reason = "context"
                return
            if len(self.ids) == self.max_new_tokens:
                self.stop_reason = "length"
                return
            began = time.perf_counter()
            said = self._step()

    def _step(self):
        """Propose, and verify in one pass: the tokens that follow, one or more.

        The last token is not computed yet: it is the root of what is proposed. No proposal goes
        beyond the tokens wanted, or the context's end.
        """
        began, counts = time.perf_counter(), self.counts
        start = self.cache.length
        room = min(self.max_new_tokens - len(self.ids), self.model.config.context - start) - 1
        ids = [*self.prompt_ids, *self.ids]
        self.drafter.begin(self.choose, self.rng)
        tree = self.drafter.propose(ids, self.hidden) if room else chain(ids[-1:])
        if len(tree) > room + 1:  # a smaller tree cannot be too deep
            tree = tree.cut(room)
        counts.draft_seconds += time.perf_counter() - began
        if tree.tokens[0] != ids[-1]:
            raise ValueError("A proposal must begin with the text's last token; this one does not.")
        logits, hidden = compute(self.model, tree.tokens, self.cache, self.tap, tree)
        if self.model.flash:
            self.spent = self.spent + self.model.flash.last_cost
        ends = self.model.eos_ids | self.stop_ids
        verdict = verify(tree, logits, self.choose, self.rng, ends)
        self.model.keep(self.cache, start, verdict.path)
        self.hidden = hidden[verdict.path[-1]]
        counts.passes += 1
        counts.steps += 1
        counts.drafted += len(tree) - 1
        counts.accepted += len(verdict.path) - 1
        self._show(tree, verdict)
        return verdict.tokens

    def _show(self, tree, verdict):
        self.tap("draft.tokens", tree.tokens)
        self.tap("draft.parents", tree.parents)
        if tree.log_probs is not None:
            self.tap("draft.log_probs", tree.log_probs)
        self.tap("draft.accepted", np.array(verdict.path, dtype=np.int64))


def check_request(generation: Generation) -> None:
    """Raise a ValueError, one sentence, where no text can be made of what was asked for.

    >>> import tinyflash
    >>> tinyflash.load("default").generate("Why?", max_new_tokens=-1)
    Traceback (most recent call last):
        ...
    ValueError: The number of new tokens must be 0 or more, not -1.
    """
    prompt, context = len(generation.prompt_ids), generation.model.config.context
    if generation.max_new_tokens is None or generation.max_new_tokens < 0:
        raise ValueError(
            f"The number of new tokens must be 0 or more, not {generation.max_new_tokens}."
        )
    if prompt == 0:
        raise ValueError("The prompt is empty and this model has no token that begins a text.")
    if prompt > context:
        raise ValueError(
            f"The prompt has {prompt} tokens and the model's context is {context}; shorten the "
            "prompt."
        )
    V, never = generation.model.config.vocab_size, generation.sampling.suppress_tokens
    if never and max(never) >= V:
        raise ValueError(
            f"Token {max(never)} cannot be suppressed: the vocabulary has {V:,} tokens, from 0 on."
        )


def prefill(
    model: Any, ids: Sequence[int], cache: KVCache, tap: Tap = no_tap
) -> tuple[np.ndarray, np.ndarray]:
    """Compute a prompt, a few hundred tokens at a time, into the cache.

    ids : all of the prompt; the first cache.length of them are cached already
    returns: (V,) logits after the last token; (D,) its hidden state, see `compute`

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> cache = model.new_cache()
    >>> logits, hidden = prefill(model, [5, 6, 7], cache)
    >>> cache.length, logits.shape, hidden.shape
    (3, (2048,), (192,))
    """
    for first in range(cache.length, len(ids), PREFILL):
        logits, hidden = compute(model, ids[first : first + PREFILL], cache, tap)
    return logits[-1], hidden[-1]


def compute(
    model: Any,
    ids: Sequence[int],
    cache: KVCache | None,
    tap: Tap = no_tap,
    tree: Tree | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One forward pass: (T, V) logits, and the hidden states (T, D) that they are read off.

    Those are what the final norm gives; the last layer's output where there is no such norm.

    ids, cache, tap, tree : as for Model.logits

    >>> import tinyflash
    >>> logits, hidden = compute(tinyflash.load("default"), [5, 6, 7], None)
    >>> logits.shape, hidden.shape
    ((3, 2048), (3, 192))
    """
    config, seen = model.config, {}
    last = "final_norm" if config.final_norm else f"layers.{config.layers - 1}.resid_post"

    def look(name, tensor):
        tap(name, tensor)
        if name == last:
            seen["hidden"] = tensor

    logits = model.logits(ids, cache, look, tree)
    return logits, seen["hidden"]
