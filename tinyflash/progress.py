"""What long work tells those who watch: which step it is at, and how much of it is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Report(Protocol):
    """Is told how far a step is; numbers, such as loss=2.1, may come with it."""

    def __call__(self, done: int, total: int, **numbers: float) -> None: ...


class Progress(Protocol):
    """A step of the work as a `with`, as `terminal.progress` shows it.

    what : a few words;  unit : of what is counted, or None where nobody knows how long it takes
    """

    def __call__(self, what: str, unit: str | None = None) -> AbstractContextManager[Report]: ...


@contextmanager
def quiet(what, unit=None):
    """The Progress that shows nothing."""
    yield lambda done, total, **numbers: None
