"""Verifying a flash directory once: its digests when it is first used, and when a file changed."""

from tinyflash.checkpoint import noted as notes
from tinyflash.checkpoint.noted import settled, state_of
from tinyflash.flash.store.directory import check_store
from tinyflash.flash.store.manifest import MANIFEST, again, seal_of


def verify_once(store, progress=None):
    """Check the digests of a store unless it is as it was when they were last checked.

    What changes meanwhile is not noted as right, so that the next one looks again.

    progress : function (bytes done, bytes in all), or None
    raises   : ValueError that names the file if it is not what was written
    """
    before = fingerprint(store)
    if noted(store) != before:
        check_anew(store, progress)


def check_anew(store, progress=None):
    """Check the digests of a store and note that they are right; arguments as `verify_once`."""
    refuse_changed_manifest(store)
    before = fingerprint(store)
    lasting = settled([state for state in before.values() if isinstance(state, list)])
    check_store(store, progress)
    if lasting:
        note_verified(store, before)


def note_verified(store, found=None):
    """Note that a store's digests are right in the state that was found: see `fingerprint`.

    Nothing is noted if that is not the present state, nor without a cache.
    """
    now = fingerprint(store)
    if found is None or found == now:
        notes.note(store.path, now)


def noted(store):
    """The fingerprint at the last verification, or None."""
    return notes.noted(store.path)


def fingerprint(store):
    """The state of each file that flash.json has a digest of: dict name -> `state_of`.

    A flash.json without a digest of its own stands there with what it says, as digest.
    """
    states = {name: state_of(store.path / name) for name in sorted(store.manifest["files"])}
    if not store.sealed:
        states[MANIFEST] = seal_of(store.manifest)
    return states


def refuse_changed_manifest(store):
    """Raise a ValueError if a flash.json that has no digest of its own was edited.

    Directories of an earlier tinyflash have such ones; what they said is noted when they are first
    verified. With other weights it is another directory.
    """
    if store.sealed:
        return
    before, now = noted(store) or {}, fingerprint(store)
    same = [name for name in now if before.get(name) == now[name]]
    if MANIFEST in before and MANIFEST not in same and same:
        raise ValueError(
            f"{store.path / MANIFEST} was changed after the directory was verified; "
            f"{again(store.path)}."
        )


def refuse_changed_store(store):
    """Raise an OSError if a file of a store is not in the state in which `open_store` found it."""
    for name, state in store.states.items():
        if state_of(store.path / name) != state:
            raise OSError(f"{store.path / name} was changed while it was opened; try again.")
