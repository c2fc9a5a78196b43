"""What long work tells those who watch: which step it is at, and how much of it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Report(Protocol):
    """Is told how far a step is; numbers, such as loss=2.1, may come with it.

    >>> report: Report = lambda done, total, **numbers: print(f"{done} of {total}", numbers)
    >>> report(3, 10, loss=2.1)
    3 of 10 {'loss': 2.1}
    """

    def __call__(self, done: int, total: int, **numbers: float) -> None: ...


class Progress(Protocol):
    """A step of the work as a `with`, as `terminal.progress` shows it.

    what : a few words;  unit : of what is counted, or None where nobody knows how long it takes

    >>> shown: Progress = quiet
    >>> with shown("Training", "steps") as report:
    ...     report(1, 2, loss=2.1)
    """

    def __call__(self, what: str, unit: str | None = None) -> AbstractContextManager[Report]: ...


@contextmanager
def quiet(what: str, unit: str | None = None) -> Iterator[Report]:
    """The Progress that shows nothing.

    >>> with quiet("Opening") as report:
    ...     report(1, 1)
    """
    yield lambda done, total, **numbers: None
