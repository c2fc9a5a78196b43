"""What several family files need when they read a config.json."""


def require(hf, key, allowed, why):
    """Refuse a switch whose value we cannot honor.

    allowed : the values that we have; a missing key or None passes
    raises  : ValueError, one sentence
    """
    value = hf.get(key)
    if value is not None and value not in allowed:
        raise ValueError(
            f"config.json sets {key} to {value!r}, {why}; "
            f"tinyflash has {' and '.join(map(repr, allowed))} here."
        )


def token_ids(value):
    """One id, a list of ids or None, as a tuple of ids."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
