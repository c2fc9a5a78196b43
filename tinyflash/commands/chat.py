"""`--chat` without a question: a conversation, typed at a terminal or from a pipe."""

import sys

from tinyflash import terminal
from tinyflash.commands.editing import history_file, reader, remember
from tinyflash.streams import is_terminal

HELP = """/system TEXT  what the model is told before all else; without TEXT: nothing
/clear        forget the conversation, but for /system
/help         this
Enter sends; {how}.
Ctrl-C ends an answer, and what was said so far stays; at the prompt it clears the line.
Ctrl-D leaves. Questions are kept in {history}."""


def converse(chat, answer):
    """Put the questions of standard input to the model, until it ends.

    chat  : Chat
    answer: function (question) that says the answer
    raises: ValueError if standard input is closed, or for a question from a pipe that cannot be
            answered; a person is told so and may ask another
    """
    if sys.stdin is None:
        raise ValueError("Standard input is closed; give the question as an argument.")
    if not is_terminal(sys.stdin):
        for question in lines():
            answer(question)
        return
    read, how = reader()
    terminal.note("Ask something; /help says what else there is, Ctrl-D leaves.")
    while True:
        try:
            question = read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if question.strip():
            remember(question)
            at_the_keyboard(chat, question, answer, how)


def lines():
    """The lines of standard input that are not empty."""
    while True:
        try:
            line = input()
        except EOFError:
            return
        if line.strip():
            yield line


def at_the_keyboard(chat, question, answer, how):
    """Answer a question or obey a command; neither Ctrl-C nor a refusal ends the conversation."""
    try:
        if question.startswith("/"):
            obey(chat, question, how)
        else:
            answer(question)
    except KeyboardInterrupt:
        terminal.say("")
        terminal.note("Stopped; what was said so far is the answer.")
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        terminal.note(f"tinyflash: {' '.join(str(error).splitlines())}")


def obey(chat, line, how):
    """Do what a line that begins with / says."""
    command, _, rest = line.partition(" ")
    if command == "/system":
        chat.tell(rest.strip() or None)
        terminal.note(f"Told before all else: {chat.system or 'nothing'}")
    elif command == "/clear":
        chat.clear()
        terminal.note("The conversation begins anew.")
    elif command == "/help":
        terminal.note(HELP.format(how=how, history=history_file()))
    else:
        terminal.note(
            f"There is no {command}; /help lists what there is. A question that begins with / "
            "takes a space before it."
        )
