"""The flash directory of a model that was not converted by hand: made once, in the user's cache."""

import hashlib
import os

from tinyflash.checkpoint.cache import cache_directory, one_at_a_time
from tinyflash.checkpoint.hub import SMALL_FILES
from tinyflash.checkpoint.noted import state_of
from tinyflash.files import digest
from tinyflash.flash.store.convert import convert_source, open_source, weight_files
from tinyflash.flash.store.directory import Store, is_store, open_store
from tinyflash.progress import Progress, quiet


def open_or_convert(path, name: str, progress: Progress = quiet) -> Store:
    """The model's flash directory, opened: see `store_of`. `name` is what its user calls it."""
    with progress(f"Converting {name} for flash", "bytes") as report:
        return open_store(store_of(path, report))


def store_of(path, progress=None):
    """The model's flash directory: itself if it is one, else one in the cache, converted once.

    It is found again by all that its text depends on (see `identity_of`), so that a model that has
    changed is converted anew. If another process is converting it, this one waits.

    path     : Path of a flash directory, a model directory or a GGUF file
    progress : function (bytes done, bytes in all), or None
    returns  : Path
    raises   : as `convert`
    """
    if is_store(path):
        return path
    source = open_source(path)  # or says in a sentence what it lacks
    out = cache_directory() / "flash" / f"{path.stem}-{identity_of(path)[:12]}.flash"
    if not is_store(out):
        with one_at_a_time(out, f"converting {path.name} for flash"):
            if not is_store(out):
                convert_source(source, path, out, progress=progress)
                keep_private(out)
    return out


def identity_of(path):
    """A digest of a model's path, of the state of its weights, and of all its small files.

    The small ones are those that a flash directory has copies of: config, tokenizer, chat template,
    generation settings. One that is absent counts, too.
    """
    identity = hashlib.sha256(str(path.resolve()).encode())
    for file in weight_files(path):
        identity.update(f"{file.name} {state_of(file)}".encode())
    for name in SMALL_FILES if path.is_dir() else ():
        there = (path / name).is_file()
        identity.update(f"{name} {digest(path / name) if there else 'absent'}".encode())
    return identity.hexdigest()


def keep_private(out):
    """Let nobody but the user read or write a flash directory of the cache."""
    for file in out.iterdir():
        os.chmod(file, 0o600)
    os.chmod(out, 0o700)
