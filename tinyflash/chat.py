"""A conversation: each turn is a Generation whose prompt is all that was said before."""

from tinyflash.generate import Generation
from tinyflash.kv_cache import common_length


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
