"""Native libraries: what they raise, of whatever kind, as one sentence of refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native(sentence: str) -> Iterator[None]:
    """What a library raises in this block becomes a ValueError of one sentence.

    `tokenizers` raises bare Exceptions, and its panics are BaseExceptions of no name.

    sentence: with a `{}` for what it says
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, OSError):
        raise
    except BaseException as error:
        raise ValueError(sentence.format(" ".join(str(error).split())[:300])) from None
