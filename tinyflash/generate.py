"""Text from a model: prefill the prompt, then propose, verify and emit until a stop rule.

`greedy` is the specification. `Generation` says the same, or draws from the same law, with a
drafter that proposes several tokens for each pass, stop rules and streaming. Plain decoding is
the drafter that proposes nothing.
"""

import time

import numpy as np

from tinyflash.kv_cache import common_length
from tinyflash.sampling import check_sampling, distribution, draw
from tinyflash.speculative.counts import StepCounts
from tinyflash.speculative.drafters import NoDrafter, spare_nodes
from tinyflash.speculative.tree import chain
from tinyflash.speculative.verify import verify
from tinyflash.transformer import no_tap

PREFILL = 256  # tokens of a prompt computed at once: bounds the (H, T, S) scores


def greedy(model, ids, new_tokens):
    """The likeliest continuation, token by token: what every faster way must reproduce.

    It does not look for the end of the text; `Generation` does.

    ids : list of int;  returns: list of int, `new_tokens` long
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
    on the prompt and on the new tokens; and `counts`, the StepCounts.
    """

    def __init__(
        self,
        model,
        prompt_ids,
        *,
        max_new_tokens=128,
        temperature=0.0,
        top_k=None,
        top_p=None,
        seed=None,
        stop=(),
        cache=None,
        drafter=None,
        tap=no_tap,
    ):
        """
        prompt_ids     : list of int, at least one; the first cache.length of them are cached
        max_new_tokens : at least 0
        temperature, top_k, top_p : see sampling.distribution
        seed           : of the random draws; None draws differently each time
        stop           : strings (or one); the text ends before the first that appears
        cache          : KVCache of a beginning of prompt_ids, or None for a new one
        drafter        : what proposes tokens, see speculative/drafters.py; None proposes nothing
        tap            : shown the tensors of every pass, and draft.* of every step (taps.py)
        raises         : ValueError for settings that mean nothing and prompts that do not fit
        """
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        check_sampling(temperature, top_k, top_p)
        if seed is not None and seed < 0:
            raise ValueError(f"The seed must be 0 or more, not {seed}.")
        if max_new_tokens < 0:
            raise ValueError(f"The number of new tokens must be 0 or more, not {max_new_tokens}.")
        if len(prompt_ids) == 0:
            raise ValueError("The prompt is empty and this model has no token that begins a text.")
        if len(prompt_ids) > model.config.context:
            raise ValueError(
                f"The prompt has {len(prompt_ids)} tokens and the model's context is "
                f"{model.config.context}; shorten the prompt."
            )
        if any(stop_text == "" for stop_text in stop):
            raise ValueError(
                "An empty stop string would stop before the first letter; leave it out."
            )
        self.model = model
        self.prompt_ids = list(prompt_ids)
        self.max_new_tokens = max_new_tokens
        self.choose = lambda logits: distribution(logits, temperature, top_k, top_p)
        self.rng = np.random.default_rng(seed)
        self.stop = stop
        self.drafter = NoDrafter() if drafter is None else drafter
        if hasattr(self.drafter, "begin"):  # it draws, and does so as this text is drawn
            self.drafter.begin(self.choose, self.rng)
        self.tap = tap
        self.counts = StepCounts()
        tokens = min(len(prompt_ids) + max_new_tokens, model.config.context)
        tokens += spare_nodes(self.drafter)
        self.cache = model.new_cache(tokens) if cache is None else cache
        if cache is not None:
            model.reserve(tokens)
            cache.reserve(tokens)
        self.ids = []
        self.text = ""
        self.stop_reason = None
        self.prompt_seconds = 0.0
        self.seconds = 0.0
        self._pieces = self._run()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._pieces)

    def _run(self):
        """Pieces of text, as soon as they are certain to be part of the answer."""
        decoder = self.model.tokenizer.decode_stream() if self.model.tokenizer else None
        held = ""  # text that may be the beginning of a stop string
        for token in self._tokens():
            held += decoder.step(token) if decoder else ""
            cut = first_stop(held, self.stop)
            if cut is not None:
                self.stop_reason = "stop"
                held = held[:cut]
                break
            ready = len(held) - possible_stop(held, self.stop)
            if ready:
                self.text += held[:ready]
                yield held[:ready]
                held = held[ready:]
        if self.stop_reason != "stop" and decoder:
            held += decoder.flush()
            cut = first_stop(held, self.stop)
            if cut is not None:
                self.stop_reason = "stop"
                held = held[:cut]
        if held:
            self.text += held
            yield held

    def _tokens(self):
        """New tokens until a stop rule; the end-of-text token is not among them."""
        began = time.perf_counter()
        self.counts.passes = -(-(len(self.prompt_ids) - self.cache.length) // PREFILL)
        logits, self.hidden = prefill(self.model, self.prompt_ids, self.cache, self.tap)
        self.prompt_seconds = time.perf_counter() - began
        began = time.perf_counter()
        said = [draw(self.choose(logits), self.rng)]
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
        tree = self.drafter.propose(ids, self.hidden) if room else chain(ids[-1:])
        if len(tree) > room + 1:  # or it is not too deep
            tree = tree.cut(room)
        counts.draft_seconds += time.perf_counter() - began
        if tree.tokens[0] != ids[-1]:
            raise ValueError("A proposal must begin with the text's last token; this one does not.")
        logits, hidden = compute(self.model, tree.tokens, self.cache, self.tap, tree)
        verdict = verify(tree, logits, self.choose, self.rng, self.model.eos_ids)
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


def prefill(model, ids, cache, tap=no_tap):
    """Compute a prompt, a few hundred tokens at a time, into the cache.

    ids : all of the prompt; the first cache.length of them are cached already
    returns: (V,) logits after the last token; (D,) its hidden state, see `compute`
    """
    for first in range(cache.length, len(ids), PREFILL):
        logits, hidden = compute(model, ids[first : first + PREFILL], cache, tap)
    return logits[-1], hidden[-1]


def compute(model, ids, cache, tap=no_tap, tree=None):
    """One forward pass: (T, V) logits, and the hidden states (T, D) that they are read off.

    Those are what the final norm gives; the last layer's output where there is no such norm.

    ids, cache, tap, tree : as for Model.logits
    """
    config, seen = model.config, {}
    last = "final_norm" if config.final_norm else f"layers.{config.layers - 1}.resid_post"

    def look(name, tensor):
        tap(name, tensor)
        if name == last:
            seen["hidden"] = tensor

    logits = model.logits(ids, cache, look, tree)
    return logits, seen["hidden"]


def first_stop(text, stop):
    """Where the first stop string begins in `text`, or None."""
    places = [text.find(stop_text) for stop_text in stop if stop_text in text]
    return min(places) if places else None


def possible_stop(text, stop):
    """Length of the longest end of `text` with which a stop string begins."""
    longest = 0
    for stop_text in stop:
        for length in range(1, min(len(stop_text), len(text)) + 1):
            if text.endswith(stop_text[:length]):
                longest = max(longest, length)
    return longest


class Chat:
    """A conversation that keeps its KV cache from turn to turn."""

    def __init__(self, model):
        """
        raises: ValueError if the model has no chat template
        """
        if model.tokenizer is None or model.tokenizer.chat_template is None:
            raise ValueError(
                f"{model.name} has no chat template, so it was not trained to converse; "
                "leave --chat out, or use a model that was, such as smollm2."
            )
        self.model = model
        self.cache = model.new_cache()
        self.cached_ids = []  # the tokens whose keys and values the cache holds
        self.answered = []  # messages of the finished turns
        self.generation = None  # the turn in the making

    @property
    def messages(self):
        """The conversation so far: dicts with "role" and "content"."""
        if self.generation is None:
            return list(self.answered)
        return [*self.answered, {"role": "assistant", "content": self.generation.text}]

    def say(self, text, **settings):
        """Put a user's message; iterate over the Generation it returns for the answer.

        settings: as for Model.generate; what has been iterated over when the next message comes
                  is the answer that stays in the conversation
        raises  : ValueError if the conversation no longer fits the context
        """
        tokenizer = self.model.tokenizer
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)
        if self.generation is not None:
            self.cached_ids = [*self.generation.prompt_ids, *self.generation.ids]
        # What the cache holds beyond the common beginning was tokenized otherwise; and the last
        # token is always computed again, because its logits are wanted.
        kept = min(common_length(self.cached_ids[: self.cache.length], ids), len(ids) - 1)
        settings = self.model.settled(settings)
        generation = Generation(self.model, ids, cache=self.cache, **settings)
        self.cache.truncate(kept)
        self.answered, self.generation = messages, generation
        return generation
