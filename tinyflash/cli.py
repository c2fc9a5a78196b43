"""The command `tinyflash`: arguments in, text, tables and progress out.

Every verb takes `--json`. Exit codes: 0 done, 1 a comparison differs, 2 bad input (one sentence
on standard error). Results go to standard output, everything else to standard error.
"""

import argparse
import os
import sys

import tinyflash
from tinyflash.commands import bench, convert, evaluate, generate, oracle, train


def main(arguments=None):
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.verb(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our pipe has seen enough; the rest goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        return refuse(f"A text is not in UTF-8 ({error.reason}); convert it and try again.")
    except (ValueError, OSError) as error:
        return refuse(error)


def refuse(reason):
    """Say in one line what is wrong; returns the exit code for bad input."""
    print("tinyflash:", " ".join(str(reason).split("\n")), file=sys.stderr)
    return 2


def parser():
    """The command with every verb, in the order of its help."""
    top = argparse.ArgumentParser(
        prog="tinyflash",
        description="Run, measure and take apart language models, larger than memory or not.",
        epilog="MODEL: a directory, a flash directory, a GGUF file, a hub id, default or smollm2.",
    )
    top.add_argument("--version", action="version", version=f"tinyflash {tinyflash.__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    for module in (generate, evaluate, convert, train, bench, oracle):
        module.arguments(verbs)
    return top
