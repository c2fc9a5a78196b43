"""What a drafter learns from: a frozen model's hidden states, and the tokens that follow them.

Position t of a text x gives one example: h_t, the model's last hidden state after its final norm,
and the N + 1 tokens after it. The first of these is what a draft begins with, and the other N are
to be predicted. They are

    ground truth   x_{t+1} … x_{t+N+1}: as the text goes on
    distillation   y_1 … y_{N+1}: as the model itself goes on, y_i = argmax p(· | x_1 … x_t, y_1 …
                   y_{i-1}), at temperature 0, after every position of the text
                   (Recurrent drafter, arXiv 2403.09919, §3.5 and 4.3.3)

The model does not change meanwhile, so all this is computed once, into files that are mapped.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinyflash.checkpoint.mapped import files_behind, mapped_array, refuse_changed
from tinyflash.files import naming
from tinyflash.transformer import forward
from tinyflash.workers import WORKERS, OneBlasThread

LENGTH = 128  # tokens of text that a window gives examples of
MOST_WINDOWS = 128  # computed together
MOST_LOGITS = 1 << 25  # of those, in one array
HIDDEN, TOKENS = "hidden.float16", "tokens.int32"


@dataclass(frozen=True)
class Examples:
    """Hidden states, float16 (n, D), and the N + 1 tokens after each, int32 (n, N + 1)."""

    hidden: np.ndarray
    tokens: np.ndarray

    def __len__(self):
        return len(self.hidden)


class BatchCache:
    """Keys and values of B sequences of one length, for the forward pass of all of them at once.

    `length` may be set back: what comes next is written over the tokens from there on.
    """

    def __init__(self, config, sequences, capacity):
        """Room for `capacity` tokens of each sequence."""
        shape = (sequences, config.kv_heads, capacity, config.head_width)
        self.length = 0
        self.keys = [np.empty(shape, dtype=np.float32) for _ in range(config.layers)]
        self.values = [np.empty(shape, dtype=np.float32) for _ in range(config.layers)]

    def append(self, layer, k, v):
        """Put keys and values (B, G, T, K) behind the cached ones: both, (B, G, S, K)."""
        end = self.length + k.shape[-2]
        self.keys[layer][..., self.length : end, :] = k
        self.values[layer][..., self.length : end, :] = v
        return self.keys[layer][..., :end, :], self.values[layer][..., :end, :]

    def advance(self, tokens):
        """Count `tokens` more tokens as cached."""
        self.length += tokens


def cut_windows(ids, prefix, config, offsets, positions, what):
    """Windows of a text, evenly over it and none over another, each begun as texts are.

    ids       : int (n,);  prefix : ints, what this model expects before a text
    offsets   : N;  positions : examples wanted; all there are if the text has fewer
    what      : the text's name in messages
    returns   : int64 (windows, T + N + 1): T positions to learn from, and what follows the last
    raises    : ValueError if the text is too short, or the model's context
    """
    T = min(LENGTH, config.context - offsets)
    own = T + offsets + 1 - len(prefix)  # tokens of the text in each
    if T <= len(prefix):
        raise ValueError(
            f"The model's context of {config.context} tokens is too short for drafts of {offsets}."
        )
    count = min(len(ids) // own, -(-positions // T))
    if count < 1:
        raise ValueError(
            f"{what} has {len(ids)} tokens and takes at least {own} for a drafter to learn from or "
            "be measured on; give more text."
        )
    starts = [n * (len(ids) - own) // max(1, count - 1) for n in range(count)]
    begin = np.array(prefix, dtype=np.int64)
    return np.stack([np.concatenate((begin, ids[start : start + own])) for start in starts])


def examples_of(weights, config, windows, offsets, distill):
    """The examples that some windows of text give, all at once.

    windows : int (B, T + N + 1);  offsets : N;  distill : whether the model itself goes on
    returns : Examples, the windows' positions one after another, n = B · T
    raises  : ValueError if hidden states are beyond float16, Inf or NaN; OSError if somebody wrote
              to the model's files
    """
    files = files_behind(weights.values())
    refuse_changed(files)
    B, T = len(windows), windows.shape[1] - offsets - 1
    entering_head = "final_norm" if config.final_norm else f"layers.{config.layers - 1}.resid_post"
    seen = {}

    def tap(name, tensor):
        if name == entering_head:
            seen[name] = tensor

    cache = BatchCache(config, B, T + offsets)
    logits = forward(weights, config, windows[:, :T], cache, tap)
    if distill:
        tokens = continuations(weights, config, cache, np.argmax(logits, axis=-1), offsets)
    else:
        tokens = sliding_window_view(windows[:, 1:], offsets + 1, axis=1)
    refuse_changed(files)
    with np.errstate(over="ignore"):
        hidden = seen[entering_head].astype(np.float16)
    if not np.isfinite(hidden).all():
        raise ValueError(
            "The model's hidden states are Inf, NaN or beyond what float16 holds, so no drafter "
            "can learn from them."
        )
    return Examples(
        hidden.reshape(B * T, config.width),
        tokens.reshape(B * T, offsets + 1).astype(np.int32),
    )


def continuations(weights, config, cache, first, offsets):
    """How the model goes on after every position of some windows, always by its likeliest token.

    From the last position to the first: each continuation is cached over the tokens behind its
    position, which nobody needs any more.

    cache   : BatchCache of the windows, with room for N tokens more
    first   : int (B, T), the model's choice after each position
    returns : int64 (B, T, N + 1), that choice and the N after it
    """
    B, T = first.shape
    tokens = np.empty((B, T, offsets + 1), dtype=np.int64)
    tokens[..., 0] = first
    for t in reversed(range(T)):
        cache.length = t + 1
        for k in range(offsets):
            logits = forward(weights, config, tokens[:, t, k, None], cache)  # (B, 1, V)
            tokens[:, t, k + 1] = np.argmax(logits[:, 0], axis=-1)
    return tokens


def all_examples(weights, config, windows, offsets, distill):
    """The examples of all windows, in memory: Examples; arguments as for `examples_of`."""
    size = batch_size(config, windows.shape[1] - offsets - 1)
    batches = [windows[start : start + size] for start in range(0, len(windows), size)]

    def compute(batch):
        return examples_of(weights, config, batch, offsets, distill)

    with ThreadPoolExecutor(WORKERS) as executor, OneBlasThread():
        parts = list(executor.map(compute, batches))
    return Examples(
        np.concatenate([part.hidden for part in parts]),
        np.concatenate([part.tokens for part in parts]),
    )


def batch_size(config, T):
    """How many windows of T positions are computed together."""
    return max(1, min(MOST_WINDOWS, MOST_LOGITS // (T * config.vocab_size)))


def record_examples(directory, weights, config, windows, offsets, distill, report=None):
    """The examples of many windows, in two files; what an interrupted call wrote is kept.

    Two workers take a batch each, and BLAS one thread, so that the result does not depend on
    what else the machine does.

    directory : where HIDDEN and TOKENS are, or will be
    report    : function (examples done, examples), or None
    returns   : Examples, mapped
    """
    T = windows.shape[1] - offsets - 1
    size = batch_size(config, T)
    row_bytes = {HIDDEN: 2 * config.width, TOKENS: 4 * (offsets + 1)}
    paths = {name: Path(directory) / name for name in row_bytes}
    held = [written(paths[name]) // (T * nbytes) for name, nbytes in row_bytes.items()]
    done = min(held)  # whole windows
    if done < len(windows):
        done -= done % size  # a batch is computed whole: BLAS may round another size otherwise
        for name, nbytes in row_bytes.items():
            with naming(paths[name], "written"), open(paths[name], "ab") as file:
                file.truncate(done * T * nbytes)

    def compute(start):
        batch = windows[start : start + size]
        return examples_of(weights, config, batch, offsets, distill)

    with ThreadPoolExecutor(WORKERS) as executor, OneBlasThread():
        while done < len(windows):
            last = min(len(windows), done + WORKERS * size)
            made = list(executor.map(compute, range(done, last, size)))
            append(paths[HIDDEN], [examples.hidden for examples in made])
            append(paths[TOKENS], [examples.tokens for examples in made])
            done = last
            if report:
                report(done * T, len(windows) * T)
    n = len(windows) * T
    hidden, tokens = (mapped_array(paths[name]) for name in (HIDDEN, TOKENS))
    return Examples(
        hidden.view(np.float16).reshape(n, config.width),
        tokens.view(np.int32).reshape(n, offsets + 1),
    )


def written(path):
    """Bytes that a file has, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def append(path, arrays):
    """Write arrays behind what a file has, and have them reach the disk."""
    with naming(path, "written"), open(path, "ab") as file:
        for array in arrays:
            file.write(array.tobytes())
        file.flush()
        os.fsync(file.fileno())
