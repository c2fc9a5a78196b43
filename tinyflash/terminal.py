"""What people see: progress and tables by rich on a terminal, nothing extra in a pipe."""

import sys
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

ERRORS = Console(stderr=True, highlight=False)


def note(line):
    """A line beside the result: on standard error."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def waiting(what):
    """A spinner while something of unknown length goes on."""
    if not ERRORS.is_terminal:
        yield
        return
    with ERRORS.status(what):
        yield


@contextmanager
def progress(what, unit):
    """A bar with the time left; gives the function report(done, total, **numbers).

    Numbers (loss=2.1) stand behind the bar.
    """
    if not ERRORS.is_terminal:
        yield lambda done, total, **numbers: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=ERRORS, transient=True) as bar:
        task = bar.add_task(what, numbers="")

        def report(done, total, **numbers):
            text = "  ".join(f"{name} {value:,.4g}" for name, value in numbers.items())
            bar.update(task, completed=done, total=total, numbers=text)

        yield report


def table(title, header, rows):
    """A table on standard output."""
    drawn = Table(title=title, title_justify="left")
    for column in header:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*map(str, row))
    width = None if sys.stdout.isatty() else 120
    Console(width=width, highlight=False).print(drawn)


def questions():
    """What a person types, line by line, until the end of input."""
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                print()
            return
        if line.strip():
            yield line
