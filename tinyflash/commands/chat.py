"""`--chat` without a question: a conversation, typed or from a pipe."""

import sys

from tinyflash import terminal


def questions():
    """What a person types, line by line, until the end of input."""
    if sys.stdin is None:
        raise ValueError("Standard input is closed; give the question as an argument.")
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                terminal.say("")
            return
        if line.strip():
            yield line
