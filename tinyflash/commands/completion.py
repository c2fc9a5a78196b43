"""`tinyflash completion`: prints the script with which a shell completes words and options."""

import argparse

from tinyflash import terminal
from tinyflash.commands.arguments import verb
from tinyflash.files import to_install

SHELLS = ("bash", "zsh", "tcsh")
FILES = ("FILE", "MODEL", "STORE", "DIR", "PATH", "OUT", "PROFILE", "REFERENCE", "OTHER")


def arguments(verbs, whole):
    """Add the verb; `whole` is the parser of the command, which it completes."""
    add = verb(verbs, "completion", completion, "print a shell's completion script", json=False)
    add("shell", choices=SHELLS, help='as in: eval "$(tinyflash completion bash)"')
    verbs.choices["completion"].set_defaults(whole=whole)


def completion(options):
    """`tinyflash completion`"""
    try:
        import shtab
    except ImportError:
        raise ValueError(
            f"Completion needs one more package: {to_install('shtab', 'completion')}."
        ) from None
    complete_files(options.whole, shtab.FILE)
    terminal.say(shtab.complete(options.whole, options.shell))


def complete_files(parser, how):
    """Have file names be proposed for every argument that takes one, in all verbs."""
    for action in parser._actions:  # argparse has no public way to them, nor to the verbs
        if str(action.metavar).partition(".")[0] in FILES:
            action.complete = how
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                complete_files(inner, how)
