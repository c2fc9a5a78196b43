"""How the next token is chosen: the arguments of `generate`, and what the model recommends."""

from dataclasses import fields

from tinyflash import terminal
from tinyflash.commands.common import ids_of
from tinyflash.settings import Sampling


def add_sampling(add):
    """Arguments that say how the next token is chosen; what is left out the model recommends."""
    add("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    add("--top-k", type=int, metavar="K", help="draw among the K likeliest; 0: among all")
    add("--top-p", type=float, metavar="P", help="draw among the fewest that reach P")
    add("--min-p", type=float, metavar="P", help="draw among those P times as likely as the first")
    add("--repetition-penalty", type=float, metavar="X", help="of all that was said; 1: none")
    add("--presence-penalty", type=float, metavar="X", help="of what was answered; 0: none")
    add("--frequency-penalty", type=float, metavar="X", help="for each time it was; 0: none")
    add("--no-repeat-ngram", type=int, metavar="N", help="say no N tokens twice; 0: no such rule")
    add("--suppress-tokens", metavar="ID,ID", help="never said; '': none")
    add("--seed", type=int, metavar="S", help="of the random draws")


def sampling_of(options):
    """The settings of settings.Sampling that were given on the command line."""
    given = {field.name: getattr(options, field.name) for field in fields(Sampling)}
    given = {name: value for name, value in given.items() if value is not None}
    if "suppress_tokens" in given:
        ids = given["suppress_tokens"]
        given["suppress_tokens"] = ids_of(ids, "--suppress-tokens") if ids else []
    Sampling(**given)  # refused before a model is opened
    return given


def say_recommended(recommended, given):
    """Which of the settings that the model's makers recommend are in force, if any is."""
    held = recommended.in_force(given)
    if held:
        said = ", ".join(f"{name} {value}" for name, value in held.items())
        terminal.note(f"As {recommended.source} recommends: {said}")
