"""Text to token ids and back: a thin face over the `tokenizers` package."""

import re
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from tinyflash import files
from tinyflash.chat_template import default_template, render, templates_of

SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")  # a vocabulary of words spells other bytes so
INCOMPLETE = "\ufffd"  # what bytes that are no character (yet) are decoded to


class Tokenizer:
    """Words of a model: encode, decode, and what chat needs.

    bos_id       : id of the token that begins a text, or None
    eos_ids      : ids of the tokens that end one
    chat_template: Jinja source, a dict of several by name, or None if the model was not trained to
                   converse
    """

    def __init__(self, backend, bos_id=None, eos_ids=(), chat_template=None):
        """Wrap a `tokenizers.Tokenizer`, whose post-processor says what is put before a text."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)

    def __repr__(self):
        return f"<Tokenizer: {self.vocab_size:,} tokens>"

    @property
    def vocab_size(self):
        """Number of tokens; the model's V may be larger, padded to a round number."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text, *, add_special_tokens=True):
        """Token ids of a text: list of int.

        add_special_tokens: put before it what the model expects there (False for a rendered chat,
                            whose template has written it); special tokens spelled out in the text
                            become themselves either way
        raises: ValueError for a str with lone surrogates, which is how Python holds bytes of a
                command line that are not UTF-8
        """
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            raise ValueError("The text is not in UTF-8; convert it and try again.") from None

    def framed(self, text):
        """Token ids of a text, apart from those that stand before and after every text.

        returns: before, ids, after: lists of int. Of an empty text all that there is stands before
        raises : as `encode`
        """
        ids = self.encode(text)
        put = self.backend.encode(text).special_tokens_mask  # 1 for what the text does not spell
        start = next((i for i, own in enumerate(put) if not own), len(ids))
        end = next((i for i in range(len(ids), start, -1) if not put[i - 1]), len(ids))
        return ids[:start], ids[start:end], ids[end:]

    def decode(self, ids):
        """The text of token ids, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode([int(id) for id in ids], skip_special_tokens=True)

    def decode_stream(self):
        """A DecodeStream for one text in the making."""
        return DecodeStream(self)

    def render_chat(self, messages, add_generation_prompt=True, template=None):
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
        return render(
            template,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._spelling(self.bos_id),
            eos_token=self._spelling(self.eos_ids[0] if self.eos_ids else None),
        )

    def _spelling(self, id):
        return "" if id is None else self.backend.id_to_token(id)


class DecodeStream:
    """Text from token ids that come one by one; a UTF-8 character is never split.

    What `step` and `flush` return, put together, equals `decode` of all the ids. (The `tokenizers`
    package's own DecodeStream has no flush, so bytes that never become UTF-8 are lost.)
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []  # those of the last piece, as context, and those after it
        self.shown = 0  # characters of decode(ids) that were given out
        self.pending = 0  # how many ids came after the last piece

    def step(self, id):
        """The piece of text that one more token completes, often empty."""
        id = int(id)
        if id in self.tokenizer.special_ids:
            return ""
        self.ids.append(id)
        self.pending += 1
        # A run of byte tokens decodes as a whole or not at all, so its end must be seen.
        if BYTE_TOKEN.fullmatch(self.tokenizer.backend.id_to_token(id) or ""):
            return ""
        text = self.tokenizer.decode(self.ids)
        if text.endswith(INCOMPLETE):
            return ""
        return self._give_out(text)

    def flush(self):
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


def tokenizer_of(checkpoint):
    """The tokenizer that came with a checkpoint, or None where there is none.

    raises: ValueError for one that is damaged or of a kind that we do not have
    """
    if checkpoint.path.is_file():
        # here and not above, because that file builds on this one
        from tinyflash.checkpoint.gguf_tokenizer import tokenizer_from_gguf

        return tokenizer_from_gguf(checkpoint)
    try:
        return open_tokenizer(checkpoint.path)
    except FileNotFoundError:
        return None


def open_tokenizer(directory):
    """The tokenizer in a Hugging Face model directory.

    directory: holds tokenizer.json, or vocab.json and merges.txt as OPT and GPT-2 were published
    raises   : FileNotFoundError if it holds neither; ValueError if a file is damaged, or there is
               only a sentencepiece model
    """
    directory = Path(directory)
    config = read_json(directory / "config.json")
    settings = read_json(directory / "special_tokens_map.json")
    settings |= read_json(directory / "tokenizer_config.json")
    if (directory / "tokenizer.json").is_file():
        backend = read_backend(directory / "tokenizer.json", Backend.from_file)
        add_bos = settings.get("add_bos_token")  # None: the file's post-processor knows
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        backend = read_backend(directory, byte_level_bpe)
        backend.pre_tokenizer.add_prefix_space = settings.get("add_prefix_space", False)
        add_bos = settings.get("add_bos_token", config.get("model_type") == "opt")
    elif (directory / "tokenizer.model").is_file():
        raise ValueError(
            f"{directory} has a tokenizer.model of sentencepiece and no tokenizer.json; make one "
            'with transformers: python -c "from transformers import AutoTokenizer as T; '
            f"T.from_pretrained('{directory}').save_pretrained('{directory}')\""
        )
    else:
        raise FileNotFoundError(
            f"{directory} has no tokenizer; put the model's tokenizer.json, or its vocab.json and "
            "merges.txt, beside the weights."
        )
    ids = special_ids(backend, settings, config)
    add_special(backend, ids.values())
    if add_bos is not None:
        put_before(backend, ids.get("bos_token") if add_bos else None)
    eos_ids = [ids["eos_token"]] if "eos_token" in ids else []
    more = read_json(directory / "generation_config.json").get("eos_token_id")
    eos_ids += more if isinstance(more, list) else [] if more is None else [more]
    return Tokenizer(backend, ids.get("bos_token"), eos_ids, chat_template(directory, settings))


def read_json(path):
    """A JSON dictionary; an empty one if there is no such file; ValueError if it is damaged."""
    return files.read_json(path) if path.is_file() else {}


def read_backend(path, read):
    """`read(str(path))`, with what the `tokenizers` package raises said in one sentence."""
    try:
        return read(str(path))
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{path}: the tokenizer cannot be read ({error}).") from None


def byte_level_bpe(directory):
    """The byte-level BPE of vocab.json and merges.txt, as GPT-2 brought it into use."""
    backend = Backend(models.BPE.from_file(f"{directory}/vocab.json", f"{directory}/merges.txt"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def special_ids(backend, settings, config):
    """Ids of the special tokens by role, from their names, or the ids that config.json gives."""
    ids = {}
    for role in SPECIAL_ROLES:
        name = settings.get(role)
        name = name["content"] if isinstance(name, dict) else name
        id = config.get(f"{role}_id") if name is None else backend.token_to_id(name)
        if isinstance(id, int) and backend.id_to_token(id) is not None:
            ids[role] = id
    return ids


def add_special(backend, ids):
    """Mark tokens of the vocabulary as special: found whole in a text, left out of decoded ones."""
    known = backend.get_added_tokens_decoder()
    names = [backend.id_to_token(id) for id in ids if id not in known]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def put_before(backend, bos_id):
    """Put this token, or nothing if it is None, before every text that is encoded."""
    bos = [] if bos_id is None else [backend.id_to_token(bos_id)]
    backend.post_processor = processors.TemplateProcessing(
        single=[*bos, "$A"], special_tokens=[(token, bos_id) for token in bos]
    )


def chat_template(directory, settings):
    """The chat template, from its own file or tokenizer_config.json, or None."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return files.read_text(file)
    return templates_of(settings.get("chat_template"), directory / "tokenizer_config.json")
