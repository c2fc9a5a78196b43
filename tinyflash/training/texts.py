"""Texts to train on, as token ids; and in sequences, some to learn from, some to measure on."""

import numpy as np

from tinyflash.files import read_text
from tinyflash.training.vocabulary import encode_documents

LONGEST = 256  # tokens of a sequence
SHORTEST = 16  # tokens: a window of 12 must fill
FEWEST = 20  # sequences
EVERY = 10  # each so-many-th sequence is kept apart


def read_texts(tokenizer, files):
    """The token ids of some text files, one document behind the other: int64 (N,).

    tokenizer : Tokenizer of the model that is to read them
    raises    : OSError if a file cannot be read; ValueError if there is nothing in them
    """
    ids = [encode_documents(tokenizer.backend, read_text(file)) for file in files]
    if not sum(map(len, ids)):
        raise ValueError(f"There is no text in {', '.join(map(str, files))}.")
    return np.concatenate(ids).astype(np.int64)


def split_sequences(ids, heldout, tokenizer, config, tokens=None):
    """Sequences to train on, to choose thresholds on, and to measure on.

    They lie evenly over the text, none over another, and each begins as texts do for this model.
    Every tenth is for calibration. Without a held-out text another tenth is held out; of a
    held-out text no more is taken than a quarter of `ids`.

    ids, heldout : int (N,), or None for no held-out text
    tokens       : how many of the text to take, or None for all
    returns      : dict "train", "calibration", "heldout" -> list of int64 (T,)
    raises       : ValueError if a text is too short
    """
    prefix = np.array(tokenizer.encode(""), dtype=np.int64)  # what is put before every text
    length = min(LONGEST, config.context, max(SHORTEST, len(ids) // FEWEST))
    sequences = evenly(ids, prefix, length, tokens, "--text")
    rest = [n % EVERY for n in range(len(sequences))]
    parts = {
        "train": [ids for n, ids in zip(rest, sequences, strict=True) if n not in (4, 9)],
        "calibration": [ids for n, ids in zip(rest, sequences, strict=True) if n == 4],
        "heldout": [ids for n, ids in zip(rest, sequences, strict=True) if n == 9],
    }
    if heldout is not None:
        parts["train"] += parts["heldout"]
        quarter = sum(map(len, sequences)) // 4
        parts["heldout"] = evenly(heldout, prefix, length, quarter, "--heldout")
    return parts


def evenly(ids, prefix, length, tokens, what):
    """Sequences of `length` tokens that begin with `prefix`, evenly over a text: list of int64."""
    own = length - len(prefix)  # tokens of the text in each
    count = len(ids) // own if tokens is None else min(len(ids) // own, tokens // length)
    fewest = FEWEST if what == "--text" else 1
    if what == "--text" and tokens is not None and tokens // length < fewest <= len(ids) // own:
        raise ValueError(
            f"--tokens {tokens} is {tokens // length} sequences of {length} tokens, and it takes "
            f"at least {fewest}; give --tokens {fewest * length} or more."
        )
    if own < SHORTEST - len(prefix) or count < fewest:
        raise ValueError(
            f"{what} gives {count} sequences of {length} tokens, and it takes at least {fewest}; "
            "give more text."
        )
    starts = [n * (len(ids) - own) // max(1, count - 1) for n in range(count)]
    return [np.concatenate((prefix, ids[start : start + own])) for start in starts]
