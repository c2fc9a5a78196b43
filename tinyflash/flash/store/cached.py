"""The flash directory of a model that was not converted by hand: made once, in the user's cache."""

import hashlib

from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import cache_directory
from tinyflash.flash.store.convert import convert, weight_files
from tinyflash.flash.store.directory import is_store


def store_of(path, progress=None):
    """The model's flash directory: itself if it is one, else one in the cache, converted once.

    It is found again by the path, sizes and times of the model's weight files, so that a model
    that has changed is converted anew.

    path     : Path of a flash directory, a model directory or a GGUF file
    progress : function (bytes done, bytes in all), or None
    returns  : Path
    raises   : as `convert`
    """
    if is_store(path):
        return path
    open_checkpoint(path)  # says in a sentence what a directory that is no model lacks
    identity = hashlib.sha256(str(path.resolve()).encode())
    for file in weight_files(path):
        status = file.stat()
        identity.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    out = cache_directory() / "flash" / f"{path.stem}-{identity.hexdigest()[:12]}.flash"
    if not is_store(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        convert(path, out, progress=progress)
    return out
