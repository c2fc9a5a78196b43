"""Verifying a flash directory once: its digests when it is first used, and when a file changed.

A flipped bit in the weights makes no error by itself, only other text. Hashing 13 GB takes long,
so what was verified is noted in the user's cache by the size and the times of each file.
"""

import hashlib

from tinyflash.checkpoint.sources import cache_directory
from tinyflash.files import read_json, write_json
from tinyflash.flash.store.directory import check_store


def verify_once(store, progress=None):
    """Check the digests of a store unless it is as it was when they were last checked.

    progress : function (bytes done, bytes in all), or None
    raises   : ValueError that names the file if it is not what was written
    """
    if noted(store) != fingerprint(store):
        check_store(store, progress)
        note_verified(store)


def note_verified(store):
    """Note that a store's digests are right as it stands now; without a cache, nothing is noted."""
    note = note_of(store)
    try:
        write_json(note, fingerprint(store), parents=True)
    except OSError:  # a cache that cannot be written costs time, not correctness
        return


def noted(store):
    """The fingerprint at the last verification, or None."""
    try:
        return read_json(note_of(store))
    except (OSError, ValueError):
        return None


def note_of(store):
    """Where the note of a store lies, by the path of the store."""
    name = hashlib.sha256(str(store.path.resolve()).encode()).hexdigest()[:24]
    return cache_directory() / "verified" / f"{name}.json"


def fingerprint(store):
    """What changes when a file does: its number, size, and times of change, as JSON has it."""
    fingerprint = {}
    for name in sorted(store.manifest["files"]):
        status = (store.path / name).stat()
        times = [status.st_mtime_ns, status.st_ctime_ns]
        fingerprint[name] = [status.st_ino, status.st_size, *times]
    return fingerprint
