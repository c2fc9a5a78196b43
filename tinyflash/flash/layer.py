"""One layer of a flash directory, as its feed-forward needs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyflash.flash.reading.reader import FlashReader
from tinyflash.flash.store.directory import Store


@dataclass(frozen=True)
class Layer:
    """What of a layer's feed-forward is on flash, and where; and what of it is not.

    store     : Store;  number: which of its layers this is, 0 … L - 1
    reader    : FlashReader of the store's ffn_path
    biases    : dict of "up" and "gate" -> (F,), and "down" -> (D,), where the layer has one
    threshold : below which activations are cut off (`ops.fatrelu`), or None for nowhere
    """

    store: Store
    number: int
    reader: FlashReader
    biases: dict[str, np.ndarray]
    threshold: float | None = None


def biases_of(weights: dict, prefix: str) -> dict:
    """The biases of a feed-forward among the weights of a model, as Layer takes them.

    prefix : of their names, as "layers.0.ffn"
    """
    names = {part: f"{prefix}.{part}.bias" for part in ("up", "gate", "down")}
    return {part: weights[name] for part, name in names.items() if name in weights}
