"""What each operation of a template costs, in letters: see template_sandbox.py."""

from __future__ import annotations

import math
import re
from collections.abc import ItemsView, Iterable

DEEPEST = 100  # lists inside lists
PART = 16  # letters: to look at one part of a list
ITEM = 160  # letters: to ask one for an attribute, or a test about it

# Filters and methods that touch the containers they are given, but not what is inside them.
SHALLOW = frozenset(
    "attr batch count d default first items last length list map reject rejectattr reverse select "
    "selectattr slice copy get keys values namespace dict".split()
)
# Those that make as many letters or items as a number among their arguments says.
SIZED = frozenset(
    "batch center indent round slice tojson truncate expandtabs ljust rjust to_bytes zfill".split()
)
# Those that may put one argument into the others again and again.
REPEATING = frozenset("join replace translate indent tojson expandtabs".split())
# Those that may look at all of their argument for each of its parts.
SQUARED = frozenset("sort dictsort groupby sum striptags urlize xmlattr pprint wordwrap".split())
# Those that ask every item of a list.
ASKING = frozenset("map select reject selectattr rejectattr unique min max join".split())
FORMATTING = frozenset(("format", "format_map", "strftime_now"))
# Tests that look into what they are given.
COMPARING = frozenset("in eq equalto ne lt lessthan le gt greaterthan ge lower upper".split())


class TooMuch(Exception):
    """A template asks for more time or memory than a rendering has.

    >>> deep = []
    >>> for _ in range(DEEPEST + 1):
    ...     deep = [deep]
    >>> weigh(deep)
    Traceback (most recent call last):
        ...
    tinyflash.template_prices.TooMuch
    """


def weigh(value: object, most: float = math.inf) -> int:
    """Letters that a value takes when it is written out, about; at least 1.

    A list that holds the same list twice counts it twice, as writing does, but walks it once.

    raises: TooMuch if they are more than `most`, or lists lie inside lists more than DEEPEST deep

    >>> inner = ["four"] * 3
    >>> weigh(inner), weigh([inner, inner])
    (79, 206)
    """
    return weigh_inside(value, most, {}, 0)


def weigh_inside(value: object, most: float, known: dict[int, int], depth: int) -> int:
    """The same; `known` are the weights of lists by their id, `depth` is how deep this one lies."""
    if isinstance(value, (str, bytes, range)):
        return 1 + len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // 3
    if isinstance(value, (dict, ItemsView)):
        pairs = value.items() if isinstance(value, dict) else value
        parts = (part for pair in pairs for part in pair)
    elif isinstance(value, (list, tuple, set, frozenset)) or type(value) in VIEWS:
        parts = value
    else:
        return 1
    if depth == DEEPEST:
        raise TooMuch
    if id(value) not in known:
        weight = PART
        for part in parts:
            weight += PART + weigh_inside(part, most, known, depth + 1)
            if weight > most:
                raise TooMuch
        known[id(value)] = weight
    return known[id(value)]


VIEWS = (type({}.keys()), type({}.values()))
CONTAINERS = (dict, list, tuple)


def nesting(value: object) -> int:
    """How deep lists and dictionaries lie inside one another; 1 for a plain value.

    >>> nesting(1), nesting([1]), nesting({"a": [1]})
    (1, 2, 3)
    """
    level, deep = [value], 0
    while level:
        deep += 1
        parts = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, CONTAINERS)
        ]
        level = list({id(inner): inner for outer in parts for inner in outer}.values())
    return deep


def length_of(value: object) -> int:
    """How many parts a value has; 1 where it has none.

    >>> length_of("four"), length_of(4)
    (5, 1)
    """
    return 1 + len(value) if hasattr(type(value), "__len__") else 1


def price(name: str, arguments: list, most: float = math.inf) -> int:
    """Letters that a call costs; what costs more than `most` may raise TooMuch instead.

    name     : of the filter, the test or the method
    arguments: all that it is given, a method's own object first

    >>> price("upper", ["four"]), price("sort", ["four"]), price("first", [["four"] * 9])
    (5, 25, 10)
    """
    weights = [length_of(a) if name in SHALLOW else weigh(a, most) for a in arguments]
    if name in ASKING and not (name == "join" and isinstance(arguments[0], str)):
        weights[0] += ITEM * length_of(arguments[0])
    if name in SIZED:
        weights += [abs(a) for a in arguments if isinstance(a, int)]
    if name == "tojson" and any(isinstance(a, (int, str)) for a in arguments[1:]):
        weights.append(nesting(arguments[0]))  # each line is indented so often
    if name in FORMATTING:
        weights += [formatted(a, arguments, most) for a in arguments[:1] if isinstance(a, str)]
    if name in REPEATING:
        return math.prod(weights)
    return sum(weights) ** 2 if name in SQUARED else sum(weights)


def formatted(pattern: str, arguments: Iterable, most: float = math.inf) -> int:
    """Letters that a pattern of `%` or `format` may fill beyond its arguments' own.

    Widths stand in it as numbers, or as `*` and `{:{}}`, which take them from the arguments.

    >>> formatted("%1000d", [7])
    1000
    """
    letters = sum(int(number[:20]) for number in re.findall(r"\d+", pattern))
    if "*" in pattern or re.search(r":[^{}]*\{", pattern):
        letters += sum(abs(a) for a in arguments if isinstance(a, int))
    # `{0}{0}{0}` writes its argument three times
    return letters + pattern.count("{") * weigh(arguments, most)
