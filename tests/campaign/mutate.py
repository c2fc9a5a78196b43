"""Files spoiled at random: one change a file, the same for the same random numbers.

mutate_json(b'{"a": 1}', rng)      -> bytes: other values, names, types, or damaged text
mutate_bytes(content, rng)         -> bytes: cut, flipped, moved, overwritten
mutate_safetensors(content, rng)   -> bytes: its header as JSON, or as bytes
mutate_bin(content, rng)           -> bytes: the pickle inside, or the zip around it
mutate_gguf(content, rng)          -> bytes: mostly the metadata
"""

import io
import json
import math
import zipfile

DEEP = 100_000
# What a value is replaced with. 10**400 has fewer digits than Python's limit, 10**5000 has more.
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 3.5, -0.5, 1e-320, 1e308, math.inf, -math.inf, math.nan,
    2**31, 2**33, 2**63, 2**64, 10**8, 10**18, 10**30, 10**400, -(10**18), "", "x", "0", "1e-5",
    "NaN", "\ud800", "a\x00b", "\x1b[31m", "../../x", "a" * 10_000, [], {}, [0], [[]], [None],
    ["x"], {"a": 1}, [1] * 1000,
]  # fmt: skip


def mutate_json(content, rng):
    """A JSON file with one thing changed, in its tree or in its text."""
    if rng.random() < 0.25:
        return mutate_text(content, rng)
    value = json.loads(content)
    places = list(places_in(value))
    if not places:
        return mutate_text(content, rng)
    # a token of a vocabulary is as likely as a setting otherwise
    near = [place for place in places if len(place) <= 2]
    chosen = near if near and rng.random() < 0.5 else places
    *way, key = chosen[rng.integers(len(chosen))]
    container = value
    for step in way:
        container = container[step]
    change(container, key, rng)
    if rng.random() < 0.04:
        return twice(value, rng)
    return json.dumps(value, ensure_ascii=bool(rng.integers(2))).encode("utf-8", "surrogatepass")


def places_in(value, way=()):
    """The ways to everything in a JSON value, as tuples of names and numbers."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in items:
        yield (*way, key)
        if isinstance(inside, dict | list):
            yield from places_in(inside, (*way, key))


def change(container, key, rng):
    """Change one item of a dictionary or list."""
    old, kind = container[key], rng.integers(12)
    if kind < 5:
        container[key] = VALUES[rng.integers(len(VALUES))]
    elif kind == 5:
        del container[key]
    elif kind == 6 and isinstance(container, dict):
        name = str(key)
        other = [name.upper(), name[:-1], name + "s", "surprise", "\ud800", ""][rng.integers(6)]
        container[other] = container.pop(key)
    elif kind == 7 and isinstance(container, dict):
        names = ["surprise", "scale", "rope_scaling", "window", "text_config", "quantization"]
        container[names[rng.integers(6)]] = VALUES[rng.integers(len(VALUES))]
    elif kind == 8:
        container[key] = nudged(old, rng)
    elif kind == 9:
        container[key] = cast(old, rng)
    elif kind == 10:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        other = keys[rng.integers(len(keys))]
        container[key], container[other] = container[other], old
    else:
        container[key] = nested(int(rng.integers(2, 60)))


def nudged(old, rng):
    """Another number near this one; another text; what is neither turns into a list of itself."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return [old + 1, old - 1, -old, old * 2, old / 2, old // 2 if old else 1, old * 1.001][
            rng.integers(7)
        ]
    return f"{old}x" if isinstance(old, str) else [old]


def cast(old, rng):
    """The same in another type."""
    if isinstance(old, bool | int | float):
        return [str(old), float(old), [old], bool(old), {"value": old}, str(old).lower()][
            rng.integers(6)
        ]
    return [[old], {"content": old}, str(old), None, len(str(old))][rng.integers(5)]


def nested(depth):
    """A list in a list, so many times."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def twice(value, rng):
    """JSON text in which a name of the outermost dictionary stands twice."""
    text = json.dumps(value)
    if not isinstance(value, dict) or not value or not text.startswith("{"):
        return text.encode()
    name = list(value)[rng.integers(len(value))]
    again = json.dumps({name: VALUES[rng.integers(len(VALUES))]})[1:-1]
    return f"{text[:-1]}, {again}}}".encode()


def mutate_text(content, rng):
    """A text file damaged as text: cut, deep, in another encoding, with something before or after.

    What is a number's worth of digits too long, and NaN, come in here too.
    """
    kind = rng.integers(12)
    if kind < 3:
        return content[: rng.integers(len(content) + 1)]
    if kind == 3:
        return content.decode("utf-8", "replace").encode(["utf-16", "utf-32", "latin-1"][
            rng.integers(3)
        ], "replace")  # fmt: skip
    if kind == 4:
        return [b"\xef\xbb\xbf", b"\x00", b"[", b"\xff"][rng.integers(4)] + content
    if kind == 5:
        return content + [b"}", b"\x00", b"\xff", b",", content][rng.integers(5)]
    if kind == 6:
        whole = [b"", b"null", b"0", b"[]", b"{}", b'"x"', b"NaN", b"1" * 5000, b"\xed\xa0\x80"]
        return whole[rng.integers(len(whole))]
    if kind == 7:
        return [b"[" * DEEP, b'{"a":' * DEEP, b"[" * 3000 + b"]" * 3000][rng.integers(3)]
    if kind == 8:
        digits = [b": 1" + b"0" * 5000, b": 1e999", b": -Infinity", b': "\\ud800"', b": [1"]
        return content.replace(b":", digits[rng.integers(5)] + b', "x":', 1)
    return mutate_bytes(content, rng)


def mutate_bytes(content, rng, limit=None):
    """Bytes cut, lengthened, flipped, moved or overwritten, before `limit` if one is given."""
    size = len(content) if limit is None else min(limit, len(content))
    if size == 0:
        return rng.bytes(8)
    kind, at = rng.integers(10), int(rng.integers(size))
    length = int(rng.integers(1, 65))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content + rng.bytes(length)
    changed = bytearray(content)
    if kind < 6:
        for _ in range(int(rng.integers(1, 4))):
            changed[rng.integers(size)] ^= 1 << int(rng.integers(8))
    elif kind == 6:
        wide = [b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", (1 << 33).to_bytes(8, "little")]
        put = wide[rng.integers(4)][: [1, 2, 4, 8][rng.integers(4)]]
        changed[at : at + len(put)] = put
    elif kind == 7:
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == 8:
        del changed[at : at + length]
    else:
        changed[at:at] = changed[at : at + length]
    return bytes(changed)


def mutate_safetensors(content, rng):
    """A safetensors file with another header, other bytes of the header, or other numbers."""
    length = int.from_bytes(content[:8], "little")
    kind = rng.integers(4)
    if kind < 2:
        header = mutate_json(content[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    return mutate_bytes(content, rng, limit=8 + length if kind == 2 else None)


def mutate_header(content, rng):
    """A safetensors file with another header, and JSON texts in it changed as JSON."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    texts = header.get("__metadata__", {})
    if texts and rng.random() < 0.6:
        key = list(texts)[rng.integers(len(texts))]
        texts[key] = mutate_json(texts[key].encode(), rng).decode("utf-8", "replace")
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]
    return mutate_bytes(content, rng, limit=8 + length)


def mutate_bin(content, rng):
    """A PyTorch file with another pickle in it, or another zip around it."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    rewritten = io.BytesIO()
    with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(name, mutate_bytes(data, rng) if name.endswith(".pkl") else data)
    return rewritten.getvalue()


def mutate_gguf(content, rng):
    """A GGUF file with other metadata, or other bytes anywhere."""
    end = content.rfind(b"output_norm.weight")  # among the last of the header
    keys = [b"llama.", b"general.", b"tokenizer.", b"blk.", b"token_embd", b"rope"]
    key = keys[rng.integers(len(keys))]
    places = [i for i in range(end) if content.startswith(key, i)] if rng.random() < 0.4 else []
    if not places:
        return mutate_bytes(content, rng, limit=end if rng.random() < 0.8 else None)
    at = places[rng.integers(len(places))]
    changed = bytearray(content)
    window = bytearray(mutate_bytes(bytes(changed[at - 8 : at + 64]), rng))
    changed[at - 8 : at + 64] = window
    return bytes(changed)
