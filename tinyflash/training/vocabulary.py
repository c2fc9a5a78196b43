"""The tokenizer of a model that we train ourselves: a byte-level BPE by OPT's conventions.

Ids 0 to 3 are `<s>`, `<pad>`, `</s>`, `<unk>`; then the 256 bytes, so that any UTF-8 text can be
encoded; then merges. As in OPT, `</s>` opens every text and also ends a document.
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tinyflash.files import write_files
from tinyflash.native import native

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
END_OF_DOCUMENT = "</s>"
DOCUMENT_BREAK = f"\n\n{END_OF_DOCUMENT}\n\n"  # how documents are set apart in a text file
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


def train_tokenizer(text, vocabulary_size):
    """A byte-level BPE of `vocabulary_size` entries, trained on the documents of `text`.

    (Byte-level byte pair encoding: Language models are unsupervised multitask learners, §2.2.)

    raises: ValueError when the size leaves no room for all bytes, or when the text is too short
            for so many merges
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"A vocabulary of {vocabulary_size} is too small: {SMALLEST_VOCABULARY} entries are "
            "taken by the special tokens and the 256 bytes."
        )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split(DOCUMENT_BREAK), trainer)
    if tokenizer.get_vocab_size() != vocabulary_size:
        raise ValueError(
            f"The text allows only {tokenizer.get_vocab_size()} of {vocabulary_size} entries: "
            "give more text or a smaller vocab_size."
        )
    # BOS = EOS = </s>, id 2, put before every text: OPT's convention.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_DOCUMENT} $A",
        pair=f"{END_OF_DOCUMENT} $A {END_OF_DOCUMENT} $B:1",
        special_tokens=[(END_OF_DOCUMENT, SPECIAL_TOKENS.index(END_OF_DOCUMENT))],
    )
    return tokenizer


def write_tokenizer(tokenizer, context, out):
    """Write the three files that Hugging Face tools expect: all of them whole, or none."""
    write_files(tokenizer_files(tokenizer, context, out), parents=True)


def tokenizer_files(tokenizer, context, out):
    """Those files, for `files.write_files`: dict path in `out` -> content."""
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    return {Path(out) / name: f"{content}\n" for name, content in files.items()}


def documents_of(text):
    """The documents of a text file, those without a word left out: list of str."""
    return [part for part in text.split(DOCUMENT_BREAK) if part.strip()]


def encode_documents(tokenizer, text):
    """A text file as one row of token ids, each document begun as this tokenizer begins texts.

    tokenizer: a tokenizers.Tokenizer
    returns  : uint16 or uint32 (N,)
    raises   : ValueError if the tokenizer fails on the text
    """
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    with native("This model's tokenizer fails on the text ({}); take another copy of it."):
        encoded = tokenizer.encode_batch_fast(documents_of(text))
    if not encoded:
        return np.empty(0, dtype=dtype)
    return np.concatenate([np.array(document.ids, dtype=dtype) for document in encoded])
