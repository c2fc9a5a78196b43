"""Text to token ids and back: a thin face over the `tokenizers` package."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyflash import files
from tinyflash.chat_template import default_template, render
from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.native import native

if TYPE_CHECKING:  # these import the `tokenizers` package
    from tokenizers import Tokenizer as Backend

    from tinyflash.checkpoint.backends import Words

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")  # a vocabulary of words spells other bytes so
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
INCOMPLETE = "\ufffd"  # what bytes that are no character (yet) are decoded to
# Spaces that words of WordPiece have before them and a text has not, in transformers' order.
TIDIED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Tokenizer:
    """Words of a model: encode, decode, and what chat needs.

    bos_id       : id of the token that begins a text, or None
    eos_ids      : ids of the tokens that end one
    chat_template: Jinja source, a dict of several by name, or None if the model was not trained to
                   converse
    named        : what a chat template calls the special tokens: {"bos_token": "<s>"}

    >>> import tinyflash
    >>> tokenizer = tinyflash.load("default").tokenizer
    >>> ids = tokenizer.encode("To be")
    >>> tokenizer.decode(ids), tokenizer.bos_id in ids
    ('To be', True)
    """

    def __init__(
        self,
        backend: Backend,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: str | dict[str, str] | None = None,
        named: dict[str, str] | None = None,
        tidy: bool = False,
    ) -> None:
        """Wrap a `tokenizers.Tokenizer`, whose post-processor says what is put before a text.

        named: None for the spellings of bos_id and the first of eos_ids
        tidy : decoded texts lose the spaces before their signs
        """
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.chat_template = chat_template
        if named is None:
            ends = {"bos_token": bos_id, "eos_token": next(iter(self.eos_ids), None)}
            named = {r: backend.id_to_token(id) for r, id in ends.items() if id is not None}
        self.named = named
        self.tidy = tidy
        added = backend.get_added_tokens_decoder()
        special = [id for id, token in added.items() if token.special]
        # (One whose spelling the normalizer changes is written out nevertheless.)
        self.special_ids = frozenset(id for id in special if self.decode([id]) == "")

    def __repr__(self):
        return f"<Tokenizer: {self.vocab_size:,} tokens>"

    @property
    def vocab_size(self) -> int:
        """Number of tokens; the model's V may be larger, padded to a round number."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text: list of int.

        add_special_tokens: put before it what the model expects there (False for a rendered chat,
                            whose template has written it); special tokens spelled out in the text
                            become themselves either way
        raises: ValueError for a str with lone surrogates, which is how Python holds bytes of a
                command line that are not UTF-8; and if the tokenizer fails on the text
        """
        if LONE_SURROGATE.search(text):
            raise ValueError("The text is not in UTF-8; convert it and try again.")
        with native("This model's tokenizer fails on the text ({}); take another copy of it."):
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def framed(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Token ids of a text, apart from those that stand before and after every text.

        returns: before, ids, after: lists of int. Of an empty text all that there is stands before
        raises : as `encode`
        """
        ids = self.encode(text)
        put = self.backend.encode(text).special_tokens_mask  # 1 for what the text does not spell
        start = next((i for i, own in enumerate(put) if not own), len(ids))
        end = next((i for i in range(len(ids), start, -1) if not put[i - 1]), len(ids))
        return ids[:start], ids[start:end], ids[end:]

    def special_tokens_in(self, text: str) -> list[int]:
        """Ids of the special tokens that a text spells; no decoded text holds them. List of int."""
        id = self.backend.token_to_id(text)
        found = [id] if id is not None else self.encode(text, add_special_tokens=False)
        spelling = self.backend.id_to_token
        return [id for id in found if id in self.special_ids and spelling(id) in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens left out; bytes that are no UTF-8 become U+FFFD.

        raises: ValueError if the tokenizer fails on them
        """
        with native("This model's tokenizer fails on these token ids ({}); take another copy."):
            text = self.backend.decode([int(id) for id in ids], skip_special_tokens=True)
        for spaced in TIDIED if self.tidy else ():
            text = text.replace(spaced, spaced.strip())
        return text

    def decode_stream(self) -> DecodeStream:
        """A DecodeStream for one text in the making."""
        return DecodeStream(self)

    def render_chat(
        self,
        messages: Sequence[dict],
        add_generation_prompt: bool = True,
        template: str | None = None,
    ) -> str:
        """The text that a conversation is for the model, by its chat template.

        messages             : dicts with "role" and "content"
        add_generation_prompt: end with the words that begin the assistant's turn
        template             : Jinja source of another template; None for the model's own
        raises               : ValueError if there is no template, it refuses the messages, fails,
                               or does not come to an end
        """
        template = default_template(self.chat_template) if template is None else template
        if template is None:
            raise ValueError(
                "This tokenizer has no chat template, so its model was not trained to converse; "
                "give a plain prompt, or a template with --chat-template FILE."
            )
        messages = [
            {name: value for name, value in message.items() if value is not None}
            for message in messages
        ]
        return render(
            template,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.named,
        )


class DecodeStream:
    """Text from token ids that come one by one; a UTF-8 character is never split.

    What `step` and `flush` return, put together, equals `decode` of all the ids. (The `tokenizers`
    package's own DecodeStream has no flush, so bytes that never become UTF-8 are lost.)

    >>> import tinyflash
    >>> tokenizer = tinyflash.load("default").tokenizer
    >>> stream = tokenizer.decode_stream()
    >>> [stream.step(id) for id in tokenizer.encode("é!")], stream.flush()
    (['', '', 'é', '!'], '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids = []  # those of the last piece, as context, and those after it
        self.shown = 0  # characters of decode(ids) that were given out
        self.pending = 0  # how many ids came after the last piece

    def step(self, id: int) -> str:
        """The piece of text that one more token completes, often empty."""
        id = int(id)
        if id in self.tokenizer.special_ids:
            return ""
        self.ids.append(id)
        self.pending += 1
        if self.tokenizer.tidy:  # what follows may take a space from what was given out
            return ""
        # A run of byte tokens decodes as a whole or not at all, so its end must be seen.
        if BYTE_TOKEN.fullmatch(self.tokenizer.backend.id_to_token(id) or ""):
            return ""
        text = self.tokenizer.decode(self.ids)
        if text.endswith(INCOMPLETE):
            return ""
        return self._give_out(text)

    def flush(self) -> str:
        """What is left when no token will follow: unfinished characters as U+FFFD."""
        return self._give_out(self.tokenizer.decode(self.ids))

    def _give_out(self, text):
        piece = text[self.shown :]
        if piece:
            # The decoder treats the first token of a text differently (it drops its space), so
            # the last piece's ids stay in front of what follows.
            self.ids = self.ids[len(self.ids) - self.pending :]
            self.shown = len(self.tokenizer.decode(self.ids))
            self.pending = 0
        return piece


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer that came with a checkpoint, or None where there is none.

    Where the package `tokenizers` is missing, as in a browser, a warning says so.

    raises: ValueError for one that is damaged or of a kind that we do not have

    >>> from tinyflash.checkpoint.opening import open_checkpoint
    >>> from tinyflash.checkpoint.sources import find_model
    >>> tokenizer_of(open_checkpoint(find_model("default"))).vocab_size
    2048
    """
    try:
        if not checkpoint.path.is_file():
            return open_tokenizer(checkpoint.path)
        # here and not above, because it imports the `tokenizers` package
        from tinyflash.checkpoint.gguf_tokenizer import words_of_gguf

        return tokenizer_from(words_of_gguf(checkpoint))
    except FileNotFoundError:
        return None
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
    warnings.warn(
        f"{checkpoint.path} reads token ids only, because the package tokenizers is missing.",
        stacklevel=2,
    )
    return None


def open_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer in a Hugging Face model directory.

    directory: holds tokenizer.json, or vocab.json and merges.txt as OPT and GPT-2 were published,
               or vocab.txt as DistilBERT
    raises   : FileNotFoundError if it holds none of them; ValueError if a file is damaged, two
               disagree, or there is only a sentencepiece model

    >>> from tinyflash.checkpoint.sources import find_model
    >>> open_tokenizer(find_model("default"))
    <Tokenizer: 2,048 tokens>
    """
    # here and not above, because it imports the `tokenizers` package
    from tinyflash.checkpoint.tokenizer_files import words_of_directory

    return tokenizer_from(words_of_directory(directory))


def tokenizer_from(words: Words) -> Tokenizer:
    """The Tokenizer of a checkpoint's Words.

    >>> from tinyflash.checkpoint.sources import find_model
    >>> from tinyflash.checkpoint.tokenizer_files import words_of_directory
    >>> words = words_of_directory(find_model("default"))
    >>> tokenizer_from(words).eos_ids
    (2,)
    """
    return Tokenizer(
        words.backend, words.bos_id, words.eos_ids, words.chat_template, words.named, words.tidy
    )


def read_json(path: Path) -> dict:
    """A JSON dictionary; an empty one if there is no such file; ValueError if it is damaged.

    >>> read_json(Path("no such file"))
    {}
    """
    return files.read_json(path) if path.is_file() else {}
