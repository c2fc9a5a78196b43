"""A conversation: each turn is a Generation whose prompt is all that was said before."""

from __future__ import annotations

from typing import Any

from tinyflash.generate import Generation
from tinyflash.kv_cache import common_length
from tinyflash.transformer import no_tap


class Chat:
    """A conversation that keeps its KV cache from turn to turn.

    system  : what the model is told before all else, or None
    template: Jinja source of the chat template, or None for the model's own

    >>> import tinyflash
    >>> template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    >>> chat = tinyflash.load("default").chat(template=template)
    >>> answer = "".join(chat.say("To be, or not to be?", max_new_tokens=4))
    >>> [message["role"] for message in chat.messages], chat.cache.length > 0
    (['user', 'assistant'], True)
    """

    def __init__(self, model: Any, system: str | None = None, template: str | None = None) -> None:
        """
        raises: ValueError if neither the model has a chat template nor one is given
        """
        if model.tokenizer is None:
            raise ValueError(
                f"{model.name} has no tokenizer, and so has no chat template; put its "
                "tokenizer.json beside the weights."
            )
        if template is None and model.tokenizer.chat_template is None:
            raise ValueError(
                f"{model.name} has no chat template, so it was not trained to converse; "
                "leave --chat out, use a model that was, such as smollm2, or give a template with "
                "--chat-template FILE."
            )
        self.model = model
        self.system = system
        self.template = template
        self.cache = model.new_cache()
        self.cached_ids = []  # the tokens whose keys and values the cache holds
        self.answered = []  # messages of the finished turns
        self.generation = None  # the turn in the making

    def __repr__(self):
        messages, cached = len(self.messages), self.cache.length
        return f"<Chat with {self.model.name!r}: {messages} messages, {cached} tokens cached>"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, but for `system`: dicts with "role" and "content"."""
        if self.generation is None:
            return list(self.answered)
        return [*self.answered, {"role": "assistant", "content": self.generation.text}]

    def say(self, text: str, **settings: Any) -> Generation:
        """Put a user's message; iterate over the Generation it returns for the answer.

        settings: as for Model.generate; what has been iterated over when the next message comes
                  is the answer that stays in the conversation
        raises  : ValueError if the conversation no longer fits the context, or the template
                  refuses it
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        rendered = self._render(messages, self.system)
        ids = self.model.tokenizer.encode(rendered, add_special_tokens=False)
        if self.generation is not None:
            self.cached_ids = [*self.generation.prompt_ids, *self.generation.ids]
        # What the cache holds beyond the common beginning was tokenized otherwise; and the last
        # token is always computed again, because its logits are wanted.
        kept = min(common_length(self.cached_ids[: self.cache.length], ids), len(ids) - 1)
        tap = settings.pop("tap", no_tap)
        settings = self.model.settled(settings)
        generation = Generation(self.model, ids, cache=self.cache, **settings)
        generation.tap = tap
        if self.generation is not None:
            self.generation.close()  # the cache is another's from here on
        self.cache.truncate(kept)
        vars(self).update(answered=messages, generation=generation)  # Ctrl-C finds both or none
        return generation

    def tell(self, system: str | None) -> None:
        """Set what the model is told before all else, from the next message on; None for nothing.

        raises: ValueError if the template leaves it out; what was told before then stays
        """
        self._render([*self.messages, {"role": "user", "content": "?"}], system)
        self.system = system

    def clear(self) -> None:
        """Forget what was said; `system` stays."""
        if self.generation is not None:
            self.generation.close()
        vars(self).update(answered=[], generation=None, cached_ids=[])
        self.cache.truncate(0)

    def _render(self, messages, system):
        """The text of the conversation, `system` first."""
        told = [] if system is None else [{"role": "system", "content": system}]
        text = self.model.tokenizer.render_chat([*told, *messages], template=self.template)
        if told and system.strip() not in text:
            raise ValueError(
                "This model's chat template leaves a system message out; put what it says into the "
                "question, or give another template with --chat-template FILE."
            )
        return text
