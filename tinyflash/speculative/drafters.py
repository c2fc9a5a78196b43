"""Which drafter is meant: none, prompt lookup, ReDrafter, or a smaller model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyflash.checkpoint.sources import embedded
from tinyflash.speculative.draft_model import DraftModel
from tinyflash.speculative.drafter import Drafter, NoDrafter
from tinyflash.speculative.drafter_files import MODEL_TYPE, load_drafter
from tinyflash.speculative.ngram import PromptLookup
from tinyflash.speculative.redrafter import ReDrafter, embedder
from tinyflash.tokenizer import read_json

EMBEDDED = "tiny-opt-drafter"  # the default model's, in data/


def drafter_for(
    model: Any,
    drafter: Drafter | str | Path | None,
    load: Callable[..., Any],
    width: int | None = None,
    length: int | None = None,
) -> Drafter:
    """The drafter that a word means, at work for `model`.

    drafter : None or "none"; "ngram", prompt lookup; "redrafter", the embedded one; the directory
              of a ReDrafter drafter; MODEL, a smaller model; or a drafter, which is returned
    load    : function (word, dtype=) that opens a smaller model, which is `tinyflash.load`
    width   : beams of ReDrafter;  length : of a draft, see each drafter; None for what it likes
    raises  : ValueError or FileNotFoundError, one sentence, if there is none such, it was made
              for another model, or width or length mean nothing to it

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> drafter_for(model, "ngram", tinyflash.load, length=5)
    PromptLookup(longest=3, length=5)
    """
    if drafter is not None and not isinstance(drafter, str | Path):
        return drafter
    wanted = {"width": width, "length": length}
    sizes = {name: size for name, size in wanted.items() if size is not None}
    if drafter is None or drafter == "none":
        if sizes:
            raise ValueError("Nothing is drafted without a drafter; leave width and length out.")
        return NoDrafter()
    if not model.config.causal:
        raise ValueError(f"{model.name} is an encoder: it continues no text, so nothing drafts.")
    if drafter == "redrafter" or is_redrafter(drafter):
        network = load_drafter(redrafter_directory(drafter), model.dtype)
        return ReDrafter(network, embedder(model.config, model.weights, network), **sizes)
    if width is not None:
        raise ValueError("Only ReDrafter searches with several beams; leave the width out.")
    if drafter == "ngram":
        return PromptLookup(**sizes)
    return DraftModel(model, load(drafter, dtype=str(model.dtype)), **sizes)


def is_redrafter(path: str | Path) -> bool:
    """Whether a directory holds a ReDrafter drafter, by its config.json.

    >>> is_redrafter(embedded("tiny-opt-drafter")), is_redrafter(embedded("tiny-opt"))
    (True, False)
    """
    config = Path(path).expanduser() / "config.json"
    return config.is_file() and read_json(config).get("model_type") == MODEL_TYPE


def redrafter_directory(drafter: str | Path) -> Path:
    """Where the drafter lies: the directory given, or the embedded one for "redrafter".

    >>> redrafter_directory("redrafter").name
    'tiny-opt-drafter'
    """
    if drafter != "redrafter":
        return Path(drafter).expanduser()
    try:
        return embedded(EMBEDDED)
    except FileNotFoundError:
        raise FileNotFoundError(
            "No ReDrafter drafter comes with this installation; give the directory of one in "
            "place of the word redrafter."
        ) from None
