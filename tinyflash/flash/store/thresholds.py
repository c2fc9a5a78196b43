"""The thresholds of a flash directory: below which each layer's activations are cut off.

flash.json has one number a layer, or none. training/fatrelu.py finds them.
"""

import math
from contextlib import suppress

import numpy as np

from tinyflash.flash.store.directory import open_store
from tinyflash.flash.store.manifest import MANIFEST, without_predictors, write_manifest
from tinyflash.flash.store.predictor_file import FILE as PREDICTOR
from tinyflash.flash.store.verified import fingerprint, note_verified, noted


def thresholds_of(store):
    """The thresholds that a flash directory has: a list of L floats, or None.

    raises: ValueError if its flash.json holds something else
    """
    thresholds = store.manifest.get("thresholds")
    try:
        return None if thresholds is None else checked(thresholds, store.config.layers)
    except ValueError as error:
        raise ValueError(f"{store.path / MANIFEST}: {error}") from None


def write_thresholds(store, thresholds):
    """Keep thresholds in a flash directory: flash.json is replaced, whole or not at all.

    Predictors that were trained for other thresholds predict another activity: they are removed.

    thresholds : L numbers, or None for a model without
    returns    : the Store, opened again
    raises     : ValueError if there is not one for each layer, or one is no threshold
    """
    if thresholds is not None:
        thresholds = checked(thresholds, store.config.layers)
    store = open_store(store.path)  # as it is now
    manifest, was_verified = store.manifest, noted(store) == fingerprint(store)
    if manifest.get("thresholds") != thresholds:
        manifest = without_predictors(manifest, PREDICTOR)
    write_manifest(store.path, manifest | {"thresholds": thresholds})
    if PREDICTOR not in manifest["files"]:
        with suppress(OSError):  # flash.json tells of none any more
            (store.path / PREDICTOR).unlink(missing_ok=True)
    written = open_store(store.path)
    if was_verified:  # the weights have not changed since
        note_verified(written)
    return written


def checked(thresholds, layers):
    """Thresholds as floats that float32 has, so that every comparison with them agrees.

    raises: ValueError if there is not one for each layer, or one is no number from 0 on
    """
    if not isinstance(thresholds, list) or len(thresholds) != layers:
        raise ValueError(
            f"A model of {layers} layers takes a list of {layers} thresholds, one for each, not "
            f"{f'one of {len(thresholds)}' if isinstance(thresholds, list) else thresholds!r}."
        )
    for i, threshold in enumerate(thresholds):
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not 0 <= threshold < math.inf:
            raise ValueError(
                f"The threshold of layer {i} is {threshold!r}; it must be a number from 0 on."
            )
    return [float(np.float32(threshold)) for threshold in thresholds]
