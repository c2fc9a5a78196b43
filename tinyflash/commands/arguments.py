"""How verbs add their arguments to the command."""

from tinyflash.flash.feed_forward import MODES

DEBUG = "--debug"


def verb(verbs, name, function, help):
    """Add a verb; returns the function that adds its arguments."""
    this = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    this.set_defaults(verb=function)
    this.add_argument("--json", action="store_true", help="one JSON object, on the last line")
    this.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
    return this.add_argument


def group_of_verbs(verbs, name, help):
    """Add a word that stands before other verbs, as in `train lm`; returns where they go."""
    return verbs.add_parser(name, help=help).add_subparsers(required=True, metavar="WHAT")


def add_memory(add):
    """Arguments of verbs that can run a model from flash."""
    add("--memory", metavar="M", help="DRAM for weights and KV cache, as 50%% or 6.65GB")
    add("--mode", choices=MODES, help="how flash is used; default: the best there is")
    add("--window", type=int, metavar="K", help="tokens it is long; default: as many as fit")
