"""How good a predictor is on text that it has not seen, and what a window over it would hold."""

import numpy as np

from tinyflash.flash.counters import TokenCounters

WINDOWS = 12  # lengths for which the held neurons are counted


def measure(predictor, recorded, lengths):
    """Shares of errors, and the size of the sliding window, on held-out text.

        false negatives = |fired, not predicted| / |fired|
        false positives = |predicted, not fired| / |not fired|

    Counted over all (token, neuron) pairs. (LLM in a flash, §3.1, gives 5 and 7 %.)

    recorded : Recorded;  lengths : tokens of each sequence in it, in order
    returns  : dict: false_negatives, false_positives, predicted and active (shares of all pairs),
               window {"mean", "most"}, see `held_by_window`
    """
    fired = predicted_pairs = both = 0
    windows, first = [], 0
    for length in lengths:
        x, active = recorded.batch(slice(first, first + length))
        predicted, _ = predictor.find(x, TokenCounters())
        first += length
        fired += int(np.count_nonzero(active))
        predicted_pairs += int(np.count_nonzero(predicted))
        both += int(np.count_nonzero(active & predicted))
        windows.append(distinct_in_windows(predicted))
    pairs = first * recorded.F
    return {
        "false_negatives": 1 - both / fired if fired else 0.0,
        "false_positives": (predicted_pairs - both) / (pairs - fired) if fired < pairs else 0.0,
        "predicted": predicted_pairs / pairs,
        "active": fired / pairs,
        "window": held_by_window(windows),
    }


def distinct_in_windows(predicted):
    """How many distinct neurons the last 1 … 12 tokens use, after each token.

    predicted : bool (T, F);  returns: int (T, 12)
    """
    T, F = predicted.shape
    used_last = np.full(F, -WINDOWS, dtype=np.int64)
    held = np.empty((T, WINDOWS), dtype=np.int64)
    for t in range(T):
        used_last[predicted[t]] = t
        age = t - used_last
        held[t] = np.cumsum(np.bincount(age[age < WINDOWS], minlength=WINDOWS))
    return held


def held_by_window(windows):
    """Rows that a window of k = 1 … 12 tokens holds: mean over all full windows, and most.

    windows : list of int (T, 12), one a sequence
    returns : {"mean": 12 floats, "most": 12 ints}; sequences shorter than k count as they are
    """
    mean = []
    for k in range(1, WINDOWS + 1):
        full = np.concatenate([held[min(k, len(held)) - 1 :, k - 1] for held in windows])
        mean.append(float(full.mean()))
    return {"mean": mean, "most": np.concatenate(windows).max(axis=0).tolist()}
