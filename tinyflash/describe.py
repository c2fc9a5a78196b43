"""What a model keeps in DRAM and what it reads, each in a line for people."""

from __future__ import annotations

from typing import Any

from tinyflash.costs.paper_tables import DRAM_SHARES
from tinyflash.flash.store.directory import FFN
from tinyflash.matrices.half import HalfMatrix


def describe_model(model: Any) -> str:
    """What of the weights is kept, in which format, in how many bytes; and with flash, how.

    returns: one line, or with flash two

    >>> import tinyflash
    >>> print(describe_model(tinyflash.load("default")))
    default: 6.3 MB float16 + 0.1 MB float32 in DRAM, computed in float32
    """
    by_format = {}
    for weight in {id(w): w for w in model.weights.values()}.values():
        kind = weight.format if isinstance(weight, HalfMatrix) else str(weight.dtype)
        by_format[kind] = by_format.get(kind, 0) + weight.nbytes
    parts = [f"{nbytes / 1e6:,.1f} MB {kind}" for kind, nbytes in by_format.items()]
    if model.flash:
        kept = model.flash.components()["feed-forward rows"]
        parts.append(f"{kept / 1e6:,.1f} MB {model.flash.store.dtype} feed-forward rows")
    line = f"{model.name}: {' + '.join(parts)} in DRAM, computed in {model.dtype}"
    return f"{line}\n{describe_flash(model.flash)}" if model.flash else line


def describe_flash(engine: Any) -> str:
    """One line: what stays in DRAM and what is read. engine: FlashEngine."""
    F, layers = engine.store.config.ffn_width, engine.feed_forwards
    if engine.mode == "naive":
        return "naive: every neuron is read for every token"
    if engine.mode == "hybrid":
        kept = len(layers[0].resident)
        return f"hybrid: {kept:,} of {F:,} neurons a layer kept, the others read each token"
    most, least = max(engine.budget.rows), min(engine.budget.rows)
    rows = f"{most:,}" if most == least else f"{least:,} to {most:,}"
    told = {
        "predicted": "who fires is told by a trained predictor",
        "resident": "who fires is told by a projection that is kept",
        "read": "who fires is told by a projection that is read",
    }[engine.budget.activity]
    told = layers[0].exact_note or told
    if engine.mode == "predictor":
        return f"predictor: nothing kept from token to token, {rows} of {F:,} rows; {told}"
    tokens = f"{engine.k} tokens" if engine.k else "tokens"
    fits = f" (about {engine.budget.k} of them)" if engine.budget.k and not engine.k else ""
    kept = f"the last {tokens}' neurons kept{fits}"
    return f"{engine.mode}: {kept}, in {rows} of {F:,} rows a layer; {told}"


def describe_memory(engine: Any) -> str:
    """One line: DRAM by component in percent of the model, beside the paper's OPT-6.7B."""
    budget = engine.budget
    whole = budget.resident + engine.store.manifest["files"][FFN]["bytes"]
    shares = []
    for name, nbytes in engine.components().items():
        paper = f" (the paper: {DRAM_SHARES[name]:g})" if name in DRAM_SHARES else ""
        shares.append(f"{name} {100 * nbytes / whole:.1f}{paper}")
    on_top = "" if budget.kv_inside else ", which comes on top,"
    return (
        f"DRAM in percent of the model: {', '.join(shares)}{on_top} of {budget.tokens} tokens; "
        f"allowed: {100 * budget.memory / whole:.1f}"
    )
