"""How verbs add their arguments to the command: what is given, its default, and how it refuses."""

import argparse
from dataclasses import fields

from tinyflash.flash.feed_forward import MODES
from tinyflash.streams import note

DEBUG = "--debug"


class Parser(argparse.ArgumentParser):
    """argparse's parser, which refuses in one sentence."""

    def error(self, message):
        """Say what is wrong with the arguments, and exit with 2."""
        note(f"tinyflash: {' '.join(message.splitlines())}; see {self.prog} --help.")
        raise SystemExit(2)


def verb(verbs, name, function, help, json=True):
    """Add a verb; returns the function that adds its arguments, as argparse's does.

    What the parsed arguments hold afterwards is seen to by `with_defaults`.
    """
    this = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    defaults = {}
    this.set_defaults(verb=function, name=this.prog.partition(" ")[2], defaults=defaults)

    def add(*flags, help, default=None, **settings):
        if default is not None and "default:" not in help:
            help += f"; default: {default}".replace("%", "%%")
        action = this.add_argument(*flags, help=help, default=argparse.SUPPRESS, **settings)
        defaults[action.dest] = False if action.nargs == 0 else default

    if json:
        add("--json", action="store_true", help="one JSON object, on the last line")
    add(DEBUG, action="store_true", help="show the traceback of an error")
    return add


def with_defaults(options):
    """The parsed arguments with the defaults of those left out; `given` names the others."""
    given = {name for name in vars(options) if name in options.defaults}
    return argparse.Namespace(**{**options.defaults, **vars(options)}, given=given)


def chosen(options, settings):
    """What the parsed arguments say of the fields of a dataclass: dict name -> value."""
    return {field.name: getattr(options, field.name) for field in fields(settings)}


def group_of_verbs(verbs, name, help):
    """Add a word that stands before other verbs, as in `train lm`; returns where they go."""
    return verbs.add_parser(name, help=help).add_subparsers(required=True, metavar="WHAT")


def add_memory(add):
    """Arguments of verbs that can run a model from flash."""
    add("--memory", metavar="M", help="DRAM for weights and KV cache, as 50%% or 6.65GB; "
        "default: as much as the model has")  # fmt: skip
    add("--mode", choices=MODES, help="how flash is used; default: the best there is")
    add("--window", type=int, metavar="K", help="tokens it is long; default: as many as fit")
