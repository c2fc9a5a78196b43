"""What people see: progress and tables by rich on a terminal, nothing extra in a pipe."""

import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tinyflash.progress import Report, quiet
from tinyflash.streams import fit_for, harmless, is_terminal, note, say, write_out

__all__ = ["json_line", "note", "progress", "say", "table", "waiting"]

ERRORS = Console(stderr=True, highlight=False)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner while something of unknown length goes on."""
    if not ERRORS.is_terminal:
        yield
        return
    with ERRORS.status(Text(harmless(what))):
        yield


@contextmanager
def progress(what: str, unit: str | None = None) -> Iterator[Report]:
    """A bar with the time left; gives the function report(done, total, **numbers).

    Without a unit it is a spinner, for what nobody can count. Numbers (loss=2.1) stand behind the
    bar.
    """
    if unit is None or not ERRORS.is_terminal:
        with waiting(what), quiet(what) as report:
            yield report
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
    )
    with Progress(*columns, console=ERRORS, transient=True) as bar:
        task = bar.add_task(harmless(what), total=None, numbers="")

        def report(done, total, **numbers):
            text = "  ".join(f"{name} {value:,.4g}" for name, value in numbers.items())
            bar.update(task, completed=done, total=total, numbers=text)

        yield report


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output.

    >>> table("Sizes", ["what", "MB"], [["weights", 1.5]])  # doctest: +NORMALIZE_WHITESPACE
    Sizes
    ┏━━━━━━━━━┳━━━━━┓
    ┃ what    ┃ MB  ┃
    ┡━━━━━━━━━╇━━━━━┩
    │ weights │ 1.5 │
    └─────────┴─────┘
    """

    def cell(value):  # no markup: a name may hold [brackets]
        return Text(fit_for(sys.stdout, str(value)))

    drawn = Table(title=cell(title), title_justify="left")
    for column in header:
        drawn.add_column(cell(column), overflow="fold")
    for row in rows:
        drawn.add_row(*map(cell, row))
    shown = is_terminal(sys.stdout)
    page = io.StringIO()
    width = None if shown else 120
    Console(file=page, force_terminal=shown, width=width, highlight=False).print(drawn)
    write_out(page.getvalue())


def json_line(result: object) -> None:
    """A result as one JSON object on a line of standard output; what is not finite becomes null.

    >>> json_line({"loss": float("nan"), "steps": 3})
    {"loss": null, "steps": 3}
    """
    write_out(json.dumps(finite(result), allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A JSON value in which None stands for the floats that JSON has no words for.

    >>> finite({"loss": [1.0, float("inf")]})
    {'loss': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
