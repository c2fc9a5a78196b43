"""Lines that a person types: with history and editing, several at once.

prompt_toolkit edits them where it is installed (the extra `chat`), else Python's readline where
there is one. The history is a JSON text a line, in the user's cache and readable by them alone.
"""

import json
import os
import sys

from tinyflash.checkpoint.cache import cache_directory, private_directory
from tinyflash.files import json_value
from tinyflash.streams import is_terminal, note, say

PROMPT, CONTINUED = "> ", "· "
KEPT = 1000  # questions of the history
ONLY_MINE = 0o600
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def reader():
    """The best there is to read what a person types, and how it begins a new line.

    returns: function () -> text, raising EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C; and
             a phrase for the help
    """
    if not is_terminal(sys.stdout):
        return read_beside_the_result, "A question is one line"
    try:
        return with_prompt_toolkit(remembered()), "Alt-Enter begins a new line (or paste several)"
    except ImportError:
        return with_readline(remembered()), "a line that ends in \\ goes on in the next"


def with_prompt_toolkit(past):
    """Reads with prompt_toolkit: Enter sends, Alt-Enter begins a line. ImportError without it."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event):
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event):
        event.current_buffer.insert_text("\n")

    session = PromptSession(
        history=InMemoryHistory(past),
        multiline=True,
        key_bindings=keys,
        prompt_continuation=CONTINUED,
        enable_suspend=True,
    )
    return lambda: session.prompt(PROMPT)


def with_readline(past):
    """Reads with Python's input, which readline edits where the system has it."""
    try:
        import readline
    except ImportError:  # Windows: its console edits by itself
        pass
    else:
        for text in past:
            readline.add_history(text.replace("\n", " "))

    def read():
        try:
            lines = [input(PROMPT)]
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(input(CONTINUED))
        except (EOFError, KeyboardInterrupt):
            say("")  # ends the line
            raise
        return "\n".join(lines)

    return read


def read_beside_the_result():
    """Reads a line where standard output is no terminal: the prompt stays out of it."""
    note(PROMPT, end="")
    return input()


def history_file():
    """Where the questions are kept."""
    return cache_directory() / "chat_history"


def remembered():
    """The questions of earlier conversations, the oldest first; what cannot be read is left out."""
    try:
        with open(os.open(history_file(), os.O_RDONLY | NO_LINKS), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    texts = []
    for line in lines[-KEPT:]:
        try:
            text = json_value(line)
        except ValueError:
            continue
        texts += [text] if isinstance(text, str) else []
    if len(lines) > 2 * KEPT:
        write_history(texts, os.O_TRUNC)
    return texts


def remember(text):
    """Keep a question for the next conversation."""
    write_history([text], os.O_APPEND)


def write_history(texts, how):
    """Write texts to the history, replacing or adding; where that cannot be, do without."""
    try:
        private_directory(cache_directory())
        flags = os.O_WRONLY | os.O_CREAT | NO_LINKS | how
        with open(os.open(history_file(), flags, ONLY_MINE), "w", encoding="utf-8") as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), ONLY_MINE)  # it may be older than this rule
            file.write("".join(json.dumps(text) + "\n" for text in texts))
    except OSError as error:
        note_once(f"The history is not kept: {error}")


SAID = set()


def note_once(line):
    """Say a line beside the result, the first time."""
    if line not in SAID:
        SAID.add(line)
        note(line)
