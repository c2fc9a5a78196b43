"""The standard streams: what goes to a terminal is made harmless, and a stream may be closed.

A model's words, a tensor's name or a template's message may hold escape sequences, with which a
terminal can be renamed, cleared or made to answer. A terminal is shown them as `\\x1b`; a pipe or a
file gets the text as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

CONTROLS = (*range(32), *range(127, 160))  # C0, DEL and C1; a new line and a tab do no harm
SHOWN = {code: f"\\x{code:02x}" for code in CONTROLS if chr(code) not in "\n\t"}


def harmless(text: str) -> str:
    """A text whose control characters are spelled instead of obeyed.

    >>> harmless("red: \\x1b[31m")
    'red: \\\\x1b[31m'
    """
    return text.translate(SHOWN)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at what is written to a stream.

    >>> import io
    >>> is_terminal(io.StringIO()), is_terminal(None)
    (False, False)
    """
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it was closed
        return False


def fit_for(stream: TextIO | None, text: str) -> str:
    """A text as a stream may have it: harmless on a terminal, untouched elsewhere.

    >>> import io
    >>> fit_for(io.StringIO(), "\\x1b[31mred") == "\\x1b[31mred"  # no terminal: as it is
    True
    """
    if not is_terminal(stream):
        return text
    encoding = stream.encoding or "utf-8"
    return harmless(text).encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, end: str = "\n") -> None:
    """Write a result to standard output, at once.

    raises: BrokenPipeError if nobody reads it any more; OSError, one sentence, if it cannot be
            written; ValueError if the stream's encoding lacks a letter

    >>> say("A result")
    A result
    """
    write_out(fit_for(sys.stdout, text) + end)


def write_out(text: str) -> None:
    """Write to standard output as it is, at once; raises as `say` does.

    >>> write_out("as it is: no new line")
    as it is: no new line
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon(sys.stdout)
        raise
    except OSError as error:
        abandon(sys.stdout)
        raise OSError(f"Standard output cannot be written: {error.strerror or error}.") from None
    except UnicodeEncodeError as error:
        letters = ascii(error.object[error.start : error.end][:20])
        raise ValueError(
            f"Standard output is in {error.encoding}, which lacks {letters}; set PYTHONUTF8=1, or "
            "take --json."
        ) from None


def note(line: str, end: str = "\n") -> None:
    """Write a line beside the result, to standard error; where nobody can read it, it is lost.

    >>> note("Fetching 98 MB")  # to standard error, which examples do not show
    """
    if sys.stderr is None:  # and print would take standard output
        return
    try:
        sys.stderr.write(fit_for(sys.stderr, line) + end)
        sys.stderr.flush()
    except (OSError, ValueError):
        abandon(sys.stderr)


def abandon(stream: TextIO | None) -> None:
    """Let what a stream still holds, and what it will get, go nowhere.

    >>> abandon(None)
    """
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (AttributeError, OSError, ValueError):  # it has no descriptor, or no longer
        pass


def occupy_closed_streams() -> None:
    """Put nothing in the place of standard streams that were closed, as by `>&-`.

    Otherwise the next file that is opened gets their number, and what others write there.

    >>> occupy_closed_streams()  # all three are open: nothing to do
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


@contextmanager
def natives_quiet(quiet: bool = True) -> Iterator[None]:
    """Let what native libraries write to standard error by themselves go nowhere.

    A panic in Rust prints its message and its stack before Python hears of it, and the message may
    hold what a file says. Python's own standard error goes on.

    >>> with natives_quiet():
    ...     print("Python's own words are heard")
    Python's own words are heard
    """
    if not quiet or os.name != "posix":
        yield
        return
    before, kept = sys.stderr, os.dup(2)
    try:
        with suppress(OSError):  # where that cannot be had, they are heard
            if descriptor_of(before) == 2:
                before.flush()
                form = {"encoding": before.encoding, "errors": before.errors}
                sys.stderr = open(os.dup(kept), "w", buffering=1, **form)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        with suppress(OSError):
            os.close(kept)
        sys.stderr = before


def descriptor_of(stream: TextIO | None) -> int | None:
    """The number under which the system knows a stream; None for one of Python's alone.

    >>> import io
    >>> descriptor_of(io.StringIO()) is None
    True
    """
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def pipes_in_utf8() -> None:
    """Read and write pipes and files in UTF-8 where the system would take another encoding.

    Windows has its code page there, a C locale has ASCII. A terminal keeps what it understands, and
    whoever sets PYTHONIOENCODING has decided.
    """
    if os.environ.get("PYTHONIOENCODING"):
        return
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if not is_terminal(stream) and hasattr(stream, "reconfigure"):
            errors = "backslashreplace" if stream is sys.stderr else "strict"
            stream.reconfigure(encoding="utf-8", errors=errors)
