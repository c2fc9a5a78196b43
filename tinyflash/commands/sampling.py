"""How the next token is chosen: the arguments of `generate`, and what the model recommends."""

from dataclasses import fields

from tinyflash import terminal
from tinyflash.commands.common import ids_of
from tinyflash.settings import Sampling


def add_sampling(add):
    """Arguments that say how the next token is chosen; what is left out the model recommends."""
    add("--temperature", type=float, metavar="T", help=f"0: the likeliest token; {said(0)}")
    add("--top-k", type=int, metavar="K", help=f"draw among the K likeliest; {said('0, all')}")
    add("--top-p", type=float, metavar="P", help=f"draw among the fewest that reach P; {said(1)}")
    add("--min-p", type=float, metavar="P", help=f"draw among those P times as likely; {said(0)}")
    add("--repetition-penalty", type=float, metavar="X", help=f"of all that was said; {said(1)}")
    add("--presence-penalty", type=float, metavar="X", help=f"of what was answered; {said(0)}")
    add("--frequency-penalty", type=float, metavar="X", help=f"for each time it was; {said(0)}")
    add("--no-repeat-ngram", type=int, metavar="N", help=f"say no N tokens twice; {said(0)}")
    add("--suppress-tokens", metavar="ID,ID", help=f"never said; {said('none')}")
    add("--seed", type=int, metavar="S", help="of the random draws; default: another each time")


def said(otherwise):
    """The default of a setting that the model's makers may recommend."""
    return f"default: the model's, or {otherwise}"


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
    recommended.sampling(given)  # refuses what means nothing, before it is said to be in force
    held = recommended.in_force(given)
    if held:
        said = ", ".join(f"{name} {value}" for name, value in held.items())
        terminal.note(f"As {recommended.source} recommends: {said}")
