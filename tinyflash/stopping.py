"""Stop strings: a text ends before the first that appears, and nobody sees it begin."""


class StopStrings:
    """Holds back the end of a text as long as a stop string may begin there.

    stop  : tuple of strings
    held  : text that was added and not yet given out
    found : whether a stop string appeared; what is held then stays so

    >>> text = StopStrings(("\\n\\n",))
    >>> [text.add(piece) for piece in ("one\\n", "two\\n", "\\nthree")], text.found
    (['one', '\\ntwo', ''], True)
    """

    def __init__(self, stop: tuple[str, ...]):
        self.stop = stop
        self.held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text, of that held back and this, which surely stands before every stop string."""
        self.held += text
        cut = first_stop(self.held, self.stop)
        self.found = cut is not None
        ready = cut if self.found else len(self.held) - possible_stop(self.held, self.stop)
        piece, self.held = self.held[:ready], self.held[ready:]
        return piece


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in `text`, or None.

    >>> first_stop("one. Two! Three.", ("!", "."))
    3
    """
    places = [text.find(stop_text) for stop_text in stop if stop_text in text]
    return min(places) if places else None


def possible_stop(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` with which a stop string begins.

    >>> possible_stop("this is the EN", ("END",))
    2
    """
    longest = 0
    for stop_text in stop:
        for length in range(1, min(len(stop_text), len(text)) + 1):
            if text.endswith(stop_text[:length]):
                longest = max(longest, length)
    return longest


def stop_strings(stop: object) -> tuple[str, ...]:
    """Stop strings as a tuple; one string is one of them.

    raises: ValueError if one is empty, or no string

    >>> stop_strings("END"), stop_strings(["a", "b"])
    (('END',), ('a', 'b'))
    """
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
        raise ValueError(f"Stop strings are a list of texts, not {stop!r}.")
    if any(stop_text == "" for stop_text in stop):
        raise ValueError("An empty stop string would stop before the first letter; leave it out.")
    return tuple(stop)


def stop_tokens(stop, tokenizer):
    """Stop strings that are special tokens, which no text ever holds, are found by their ids.

    stop   : tuple of strings;  tokenizer: a Tokenizer, or None
    returns: the strings that are to be found in the text, a tuple; the ids, a frozenset
    raises : ValueError if a special token is only a part of one
    """
    texts, ids = [], []
    for stop_text in stop:
        special = [] if tokenizer is None else tokenizer.special_tokens_in(stop_text)
        if special and stop_text != tokenizer.backend.id_to_token(special[0]):
            raise ValueError(
                f"The stop text {stop_text!r} has a special token in it, "
                f"{tokenizer.backend.id_to_token(special[0])!r}, and these are never part of a "
                "text; give the token alone."
            )
        ids += special
        texts += [] if special else [stop_text]
    return tuple(texts), frozenset(ids)
