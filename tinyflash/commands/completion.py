"""`tinyflash completion`: prints the script with which a shell completes words and options."""

import argparse

from tinyflash import terminal
from tinyflash.commands.arguments import verb
from tinyflash.files import to_install

SHELLS = ("bash", "zsh", "tcsh")
FILES = ("FILE", "MODEL", "STORE", "DIR", "PATH", "OUT", "PROFILE", "REFERENCE", "OTHER")


def arguments(verbs):
    """Add the verb."""
    add = verb(verbs, "completion", completion, "print a shell's completion script", json=False)
    add("shell", choices=SHELLS, help='as in: eval "$(tinyflash completion bash)"')


def completion(options):
    """`tinyflash completion`"""
    from tinyflash.cli import parser

    try:
        import shtab
    except ImportError:
        raise ValueError(
            f"Completion needs one more package: {to_install('shtab', 'completion')}."
        ) from None
    whole = parser()
    complete_files(whole, shtab.FILE)
    terminal.say(shtab.complete(whole, options.shell))


def complete_files(parser, how):
    """Have file names be proposed for every argument that takes one, in all verbs."""
    for action in parser._actions:  # argparse has no public way to them, nor to the verbs
        if str(action.metavar).partition(".")[0] in FILES:
            action.complete = how
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                complete_files(inner, how)
