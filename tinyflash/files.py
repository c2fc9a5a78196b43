"""Files that nobody vouches for, read with one sentence of refusal; and their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def printable(text: str) -> str:
    """A name from a file that nobody vouches for, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


def digest(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_object(text: bytes, path: Path, unique_keys: bool = False) -> dict:
    """A JSON dictionary from a file. Raises ValueError if it is not one, or has a name twice."""

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict:
        values = {}
        for name, value in pairs:
            if name in values:
                raise ValueError(f"the name {printable(name)} occurs twice")
            values[name] = value
        return values

    try:
        value = json.loads(text, object_pairs_hook=no_duplicates if unique_keys else None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged JSON: a dictionary is expected")
    return value
