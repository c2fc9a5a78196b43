"""Directories that hold an adapter (peft: LoRA and its like), a change of another model."""

from __future__ import annotations

from pathlib import Path

from tinyflash.files import read_json

ADAPTER = "adapter_config.json"


def refuse_adapter(directory: Path) -> None:
    """Raise a ValueError that names the base model, if a directory holds an adapter.

    With weights beside it, too: the numbers alone do not say whether it has been merged into them.
    """
    file = directory / ADAPTER
    if not file.is_file():
        return
    settings = read_json(file)
    base, kind = settings.get("base_model_name_or_path"), settings.get("peft_type")
    named = repr(base)[:200] if isinstance(base, str) and base else "one that it does not name"
    kind = f"{kind} " if isinstance(kind, str) and kind.isalnum() and len(kind) < 20 else ""
    raise ValueError(
        f"{directory} holds a {kind}adapter of the model {named}, and tinyflash reads whole "
        "models: give that model, or merge the adapter into it (peft's merge_and_unload and "
        f"save_pretrained); if the weights here are merged already, take {ADAPTER} away."
    )
