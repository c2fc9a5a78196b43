"""The command `tinyflash`: arguments in, text, tables and progress out.

Every verb takes `--json`. Exit codes: 0 done, 1 a comparison differs, 2 bad input (one sentence
on standard error), 70 a fault of tinyflash (one sentence, and a traceback with `--debug`). Results
go to standard output, everything else to standard error.
"""

import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import tinyflash
from tinyflash.commands import bench, completion, convert, evaluate, generate, oracle, train
from tinyflash.commands.arguments import DEBUG, Parser, with_defaults
from tinyflash.commands.common import warnings_as_notes
from tinyflash.commands.effects import refuse_idle
from tinyflash.streams import (
    abandon,
    natives_quiet,
    note,
    occupy_closed_streams,
    pipes_in_utf8,
    say,
)

PACKAGE = Path(tinyflash.__file__).parent


def main(arguments=None):
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    occupy_closed_streams()
    pipes_in_utf8()
    with natives_quiet(DEBUG not in arguments):
        return run(arguments)


def run(arguments):
    """Run one command; the exit code, whatever ends it. Its help and its refusals exit."""
    try:
        try:
            options = with_defaults(parser().parse_args(arguments))
            refuse_idle(options)
            with warnings_as_notes():
                code = options.verb(options) or 0
        finally:
            say("", end="")  # what is still held back; of argparse, too, which then exits
        return code
    except SystemExit:
        raise
    except BaseException as error:  # panics of native libraries are no Exceptions
        if DEBUG in arguments:
            note("".join(traceback.format_exception(error)).rstrip())
        return ended_by(error)


def ended_by(error):
    """Say in one sentence what ended a command; returns its exit code."""
    if isinstance(error, KeyboardInterrupt):
        note("")
        return 130
    if isinstance(error, BrokenPipeError):  # the reader of our pipe has seen enough
        abandon(sys.stdout)
        return 0
    if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return refuse(f"A text is not in UTF-8 ({error.reason}); convert it and try again.")
    if isinstance(error, ValueError | OSError):
        return refuse(error)
    return own_fault(error)


def refuse(reason):
    """Say in one line what is wrong; returns the exit code for bad input."""
    note("tinyflash: " + " ".join(str(reason).splitlines()))
    return 2


def own_fault(error):
    """Say that a fault is ours, and how to report it; returns the exit code for that."""
    kind, reason = type(error).__name__, " ".join(str(error).split())[:200]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    last = (ours or frames)[-1]
    place = f"{last.filename.removeprefix(f'{PACKAGE}{os.sep}')}, line {last.lineno}"
    fault = f"{kind}{f': {reason}' if reason else ''} ({place})"
    if isinstance(error, MemoryError):
        note(
            f"tinyflash: Memory was not enough: {fault}; take a smaller model or text, or less "
            f"--memory. If there should be enough, please report it {where_to_report()}."
        )
    else:
        note(
            f"tinyflash: This is a fault of tinyflash: {fault}. Please report it "
            f"{where_to_report()}, with your command and what it prints with {DEBUG}."
        )
    return 70


def where_to_report():
    """The address that this installation's metadata has for reports, if any."""
    try:
        addresses = metadata("tinyflash").get_all("Project-URL") or ()
    except PackageNotFoundError:
        addresses = ()
    found = [line.partition(", ")[2] for line in addresses if line.startswith("Issues,")]
    return f"at {found[0]}" if found else "where you got it from"


def parser():
    """The command with every verb, in the order of its help."""
    top = Parser(
        prog="tinyflash",
        description="Run, measure and take apart language models, larger than memory or not.",
        epilog="MODEL: a directory, a flash directory, a GGUF file, a hub id, default or smollm2.",
    )
    top.add_argument("--version", action="version", version=f"tinyflash {tinyflash.__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    for module in (generate, evaluate, convert, train, bench, oracle):
        module.arguments(verbs)
    completion.arguments(verbs, top)
    return top
