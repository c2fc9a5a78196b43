"""What several verbs share: opening a model, and saying what it took."""

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import tinyflash
from tinyflash import terminal
from tinyflash.describe import describe_memory, describe_model
from tinyflash.flash.engine import refuse_idle_window
from tinyflash.flash.store.directory import is_store


def open_model(source, **settings):
    """Load a model, saying so while it lasts and what is kept in DRAM afterwards."""
    with warnings_as_notes():
        model = tinyflash.load(source, **settings, progress=terminal.progress)
    if model.flash:
        refuse_idle_window(model.flash, settings.get("k"))
    if model.flash and not is_store(Path(source).expanduser()):
        terminal.note(f"{source} is read from the flash directory {model.path}")
    terminal.note(describe_model(model))
    if model.flash:
        terminal.note(describe_memory(model.flash))
    return model


def flash_settings(options):
    """What `--memory`, `--mode` and `--window` mean for `tinyflash.load`."""
    return {"memory": options.memory, "mode": options.mode, "k": options.window}


def standard_input(what):
    """All of standard input as a text; ValueError if it is closed."""
    if sys.stdin is None:
        raise ValueError(f"Standard input is closed; give the {what} as an argument.")
    return sys.stdin.read()


def ids_of(text, option):
    """Token ids from an argument such as 1,2,3.

    raises: ValueError that names the option
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas, not {text[:60]!r}.") from None


@contextmanager
def warnings_as_notes():
    """What the library warns of is said in one line on standard error, each sentence once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning)
        warnings.showwarning = lambda message, *place, **more: terminal.note(str(message))
        yield
