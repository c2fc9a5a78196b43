"""Kinds of tokenizers: what the name of a class says that a model's own files do not.

A vocabulary and merges, or a vocab.txt, are no tokenizer yet: how a text is cut into pieces, and
what the special tokens are called, belongs to the class. tokenizer_config.json names it; where it
does not, the kind of model decides. (transformers 5, models/auto/tokenization_auto.py and the
classes' own files.)
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from tinyflash.checkpoint.backends import (
    byte_level_bpe,
    gpt2_pieces,
    qwen2_pieces,
    wordpiece,
)
from tinyflash.files import printable, read_bytes, read_text
from tinyflash.native import native

END = "<|endoftext|>"
BERT = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
# What a class calls the special tokens that its files do not name.
NAMES = {
    "GPT2Tokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "CodeGenTokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "Qwen2Tokenizer": {"eos_token": END, "unk_token": END, "pad_token": END},
    "BertTokenizer": BERT,
    "DistilBertTokenizer": BERT,
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}
MERGED = {  # classes of a vocab.json and merges.txt: how they cut
    "GPT2Tokenizer": gpt2_pieces,
    "CodeGenTokenizer": gpt2_pieces,
    "Qwen2Tokenizer": qwen2_pieces,
}
WORDPIECE = ("BertTokenizer", "DistilBertTokenizer")  # classes of a vocab.txt
WHOLE = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend")  # all is in tokenizer.json
KIND_OF_MODEL = {
    "gpt2": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer",
    "codegen": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "mistral": "TokenizersBackend",
    "persimmon": "TokenizersBackend",
    "stablelm": "TokenizersBackend",
}
# Models whose published files often name another class than the one that they were trained with.
MODEL_DECIDES = ("qwen2", "mistral", "persimmon", "stablelm")


def kind_of(settings: dict, config: dict) -> str | None:
    """The class of the tokenizer, without "Fast"; None where tokenizer.json holds all of it.

    raises: ValueError if the name of the class is no text
    """
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    model = config.get("model_type")
    kind = KIND_OF_MODEL.get(model) if isinstance(model, str) else None
    if named is not None and model not in MODEL_DECIDES:
        if not isinstance(named, str):
            raise ValueError(
                f"tokenizer_config.json names the tokenizer_class {printable(repr(named))}, which "
                "is no name of a class; mend the file."
            )
        kind = named.removesuffix("Fast")
    return None if kind in WHOLE else kind


def names_of_kind(kind: str | None, tokenizer_json: Path) -> dict[str, str]:
    """What a class calls special tokens by itself: {"eos_token": "<|endoftext|>"}.

    A Llama tokenizer of bytes, as Llama 3's, is no LlamaTokenizer, though files call it so.
    """
    if kind == "LlamaTokenizer" and tokenizer_json.is_file():
        kind = None if b'"ByteLevel"' in read_bytes(tokenizer_json) else kind
    return NAMES.get(kind, {})


def whole_tokenizer(path: Path, kind: str | None = None, settings: dict | None = None) -> Backend:
    """The tokenizer of a tokenizer.json, with what tokenizer_config.json says of its pieces.

    raises: OSError or ValueError, one sentence that names the file
    """
    settings = settings or {}
    text = read_text(path)
    with native(f"{path}: the tokenizer cannot be read ({{}})."):
        backend = Backend.from_str(text)
        if kind in MERGED and isinstance(settings.get("add_prefix_space"), bool):
            set_prefix_space(backend.pre_tokenizer, settings["add_prefix_space"])
        said = bert_normalization(settings)
        if (
            kind in WORDPIECE
            and said
            and isinstance(backend.normalizer, normalizers.BertNormalizer)
        ):
            for name, value in said.items():
                setattr(backend.normalizer, name, value)
        return backend


def set_prefix_space(pieces: object, value: bool) -> None:
    """Whether the first word of a text is given the space that others have before them."""
    if isinstance(pieces, pre_tokenizers.ByteLevel):
        pieces.add_prefix_space = value
    elif isinstance(pieces, pre_tokenizers.Sequence):
        for part in pieces:
            set_prefix_space(part, value)


def bert_normalization(settings: dict) -> dict:
    """What tokenizer_config.json says of upper case, accents and Chinese characters."""
    words = {
        "lowercase": "do_lower_case",
        "strip_accents": "strip_accents",
        "handle_chinese_chars": "tokenize_chinese_chars",
    }
    return {ours: settings[theirs] for ours, theirs in words.items() if theirs in settings}


def tokenizer_of_merges(directory: Path, kind: str | None, settings: dict) -> Backend:
    """The byte-level BPE of vocab.json and merges.txt."""
    if kind not in MERGED:
        raise ValueError(
            f"{directory} has vocab.json and merges.txt, which are no whole tokenizer, and "
            f"{said_kind(kind)}; tinyflash knows how these cut a text: {', '.join(MERGED)}. Put "
            "the model's tokenizer.json beside them."
        )
    pieces = MERGED[kind](bool(settings.get("add_prefix_space", False)))
    with native(f"{directory}: the tokenizer cannot be read ({{}})."):
        vocabulary, merges = models.BPE.read_file(
            str(directory / "vocab.json"), str(directory / "merges.txt")
        )
        backend = byte_level_bpe(vocabulary, merges, pieces)
        if kind == "Qwen2Tokenizer":
            backend.normalizer = normalizers.NFC()
        return backend


def tokenizer_of_words(directory: Path, kind: str | None, settings: dict, unknown: str) -> Backend:
    """BERT's WordPiece of a vocab.txt, one word a line."""
    if kind not in WORDPIECE:
        raise ValueError(
            f"{directory} has a vocab.txt, which is no whole tokenizer, and {said_kind(kind)}; "
            f"tinyflash knows these: {', '.join(WORDPIECE)}. Put the model's tokenizer.json beside "
            "it."
        )
    words = read_text(directory / "vocab.txt").split("\n")
    vocabulary = {word: id for id, word in enumerate(words[:-1] if words[-1] == "" else words)}
    with native(f"{directory}: the tokenizer cannot be read ({{}})."):
        return wordpiece(vocabulary, unknown, **bert_normalization(settings))


def said_kind(kind: str | None) -> str:
    """How a message says which class the files name."""
    return "no file names its class" if kind is None else f"its class is {printable(kind)}"
