"""Chat templates: the text that a conversation is for a model, as its makers wrote it in Jinja."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension

from tinyflash.template_prices import TooMuch, weigh
from tinyflash.template_sandbox import LONGEST_TEMPLATE, PURSE, Sandbox

INPUT_SHARE = 200  # letters of the purse for each letter of the conversation
LONGEST_REASON = 300  # letters of what a template says when it refuses


class GenerationTag(Extension):
    """`{% generation %}`: it marks what a model is trained on, which is written as it is.

    >>> render("{% generation %}the answer{% endgeneration %}")
    'the answer'
    """

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        """The statements up to `{% endgeneration %}`, in a scope of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def render(template: str, **words: object) -> str:
    """What a template makes of a conversation.

    template: Jinja source, from a stranger
    words   : what it can name: messages, add_generation_prompt, bos_token, …
    raises  : ValueError, one sentence, if the template is damaged, refuses the conversation, fails,
              or does not come to an end

    >>> render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ...        messages=[{"role": "user", "content": "Why?"}])
    '<user>Why?'
    """
    if len(template) > LONGEST_TEMPLATE:
        raise ValueError(
            f"The chat template has {len(template)} letters, and tinyflash takes "
            f"{LONGEST_TEMPLATE} at most; give a shorter one with --chat-template FILE."
        )
    try:
        sandbox = chat_sandbox(PURSE + INPUT_SHARE * weigh(words))
        return sandbox.concat(sandbox.from_string(template).generate(words))
    except (TooMuch, RecursionError, MemoryError):
        raise ValueError(
            "The model's chat template takes more steps, or makes more text, than any conversation "
            "needs; give another with --chat-template FILE."
        ) from None
    except jinja2.TemplateError as error:
        raise ValueError(
            f"The model's chat template refuses these messages: {said(error)}"
        ) from None
    except Exception as error:  # whatever an expression of a template can raise
        raise ValueError(
            f"The model's chat template fails with these messages ({type(error).__name__}: "
            f"{said(error)}); give another with --chat-template FILE."
        ) from None


def said(error: Exception) -> str:
    """What an exception says, on one line.

    >>> said(ValueError("two\\nlines"))
    'two lines'
    """
    return " ".join(str(error)[:LONGEST_REASON].split())


def chat_sandbox(purse: int) -> Sandbox:
    """Jinja as chat templates expect it, in its sandbox.

    >>> chat_sandbox(purse=1000).from_string("{{ [1, 2] | tojson }}").render()
    '[1, 2]'
    """

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    sandbox = Sandbox(purse, (GenerationTag,))
    sandbox.filters["tojson"] = tojson
    sandbox.globals["raise_exception"] = raise_exception
    sandbox.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    sandbox.price_all()
    return sandbox


def templates_of(value: object, path: Path) -> str | dict[str, str] | None:
    """The chat templates as a file gives them: one, several by name, or none.

    value : text, {name: text}, [{"name": name, "template": text}], or None
    raises: ValueError that names the file, for anything else

    >>> templates_of([{"name": "default", "template": "{{ 1 }}"}], Path("tokenizer_config.json"))
    {'default': '{{ 1 }}'}
    """
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    texts = [*value, *value.values()] if isinstance(value, dict) else [value]
    if value is None or (texts and all(isinstance(text, str) for text in texts)):
        return value
    raise ValueError(
        f"{path}: the chat_template is neither a text nor texts by name; mend it, or delete it and "
        "give another with --chat-template FILE."
    )


def default_template(template: str | dict[str, str] | None) -> str | None:
    """The template for a plain conversation, of one or several by name.

    raises: ValueError if there are several and none is the default

    >>> default_template({"default": "{{ 1 }}", "tool_use": "{{ 2 }}"})
    '{{ 1 }}'
    """
    if not isinstance(template, dict):
        return template
    if "default" not in template:
        raise ValueError(
            f"This model has the chat templates {', '.join(sorted(template))} and none for plain "
            "conversation (default); give one with --chat-template FILE."
        )
    return template["default"]
