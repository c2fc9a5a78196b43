"""What the `tokenizers` package builds for us: a text is cut into pieces, and these into tokens.

Byte-level BPE (GPT-2: Language models are unsupervised multitask learners, §2.2) joins bytes inside
of pieces; each model has its own rule for the pieces. Sentencepiece's BPE joins letters, spaces
among them. WordPiece takes the longest word of the vocabulary that a piece begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend


@dataclass
class Words:
    """What a model's files say about words.

    backend      : tokenizers.Tokenizer
    bos_id       : of the token that begins a text, or None
    eos_ids      : of the tokens that end one
    chat_template: Jinja source, several by name, or None
    named        : what chat templates call the special tokens: {"bos_token": "<s>"}
    tidy         : decoded texts lose the spaces before their signs, as WordPiece needs it
    """

    backend: Backend
    bos_id: int | None
    eos_ids: Sequence[int]
    chat_template: str | dict[str, str] | None
    named: dict[str, str]
    tidy: bool = False


# ---- how byte-level BPE cuts a text into pieces

# Contractions, words with one sign before them, digits (Llama 3: three; Qwen2: one), signs, line
# ends, spaces.
LLAMA3_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PIECES = LLAMA3_PIECES.replace(r"\p{N}{1,3}", r"\p{N}")


def gpt2_pieces(add_prefix_space=False):
    """GPT-2's: contractions, and words, numbers and signs with the one space before them."""
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)


def smollm_pieces(add_prefix_space=False):
    """SmolLM's: every digit apart, then GPT-2's between the digits.

    In that order: three spaces before a digit are one piece of three spaces, whereas GPT-2's rule
    alone (which transformers uses for these GGUF files) leaves the last to the digit. SmolLM2's
    tokenizer.json and llama.cpp do it as here.
    """
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, gpt2_pieces(add_prefix_space)])


def llama3_pieces(add_prefix_space=False):
    """Llama 3's own regular expression, then bytes."""
    return split_pieces(LLAMA3_PIECES, add_prefix_space)


def qwen2_pieces(add_prefix_space=False):
    """Qwen2's: Llama 3's, but that each digit is a piece."""
    return split_pieces(QWEN2_PIECES, add_prefix_space)


def split_pieces(pattern, add_prefix_space=False):
    """What a regular expression finds, and what is between; then bytes."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), letters]
    )


# ---- tokenizers


def byte_level_bpe(vocabulary, merges, pieces, ignore_merges=False):
    """Byte-level BPE.

    vocabulary   : dict token -> id
    merges       : pairs of tokens, the first joined first
    pieces       : a pre-tokenizer of those above
    ignore_merges: take a piece that is a word of the vocabulary whole, whatever the merges say
    """
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    backend.pre_tokenizer = pieces
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece_bpe(vocabulary, merges, unknown, space_first):
    """Sentencepiece's BPE: letters that no word has are spelled in bytes.

    unknown    : the token for what cannot be spelled
    space_first: a text begins with a space, so that its first word is as any other
    """
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    spell_spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), spell_spaces] if space_first else [spell_spaces]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        [*steps, decoders.Strip(" ", 1, 0)] if space_first else steps
    )
    return backend


def wordpiece(vocabulary, unknown, **normalization):
    """BERT's WordPiece; `normalization` as for tokenizers.normalizers.BertNormalizer."""
    backend = Backend(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(**normalization)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def put_around(backend, before=None, after=None):
    """Put these tokens, by their spelling, before and after every text; None puts nothing there."""
    tokens = [token for token in (before, after) if token is not None]
    backend.post_processor = processors.TemplateProcessing(
        single=[token or "$A" for token in (before, "", after) if token is not None],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(tokens)],
    )


def add_special(backend, tokens):
    """Find tokens whole in every text, and leave them out of decoded ones."""
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
