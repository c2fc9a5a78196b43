"""What an index and an editor are told of the package, and what its messages tell people to get."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

import tinyflash
from tinyflash import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_metadata_says_who_where_and_for_whom():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for author in PROJECT["authors"]:
        assert author["name"] in citation
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
    classifiers = PROJECT["classifiers"]
    assert len(set(classifiers)) == len(classifiers) and "Typing :: Typed" in classifiers
    assert not any(line.startswith("License ::") for line in classifiers)  # it is an expression
    assert (Path(tinyflash.__file__).parent / "py.typed").is_file()
    for extra in ("chat", "completion", "gguf"):
        assert PROJECT["optional-dependencies"][extra]


def texts():
    """All that people may read: the package's messages, and the pages."""
    for pattern in ("*.md", "docs/*.md", "tinyflash/**/*.py", "notebooks/*.ipynb"):
        yield from ROOT.glob(pattern)


def test_nobody_is_told_to_install_a_name_that_they_cannot_get():
    """tinyflash is on no index: it is installed from a clone, `pip install -e`."""
    wrong = re.compile(r"(pip|uv|pipx|conda) +(\w+ +)*[\"']?tinyflash\b")
    assert wrong.search('pip install "tinyflash[gguf]"') and wrong.search("pip install tinyflash")
    found = [path for path in texts() if wrong.search(path.read_text(encoding="utf-8"))]
    assert found == []
    extras = set(PROJECT["optional-dependencies"])
    for path in texts():
        for named in re.findall(r"-e \\?[\"']?\.\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= extras, path


@pytest.mark.parametrize("address", [None, "https://example.org/issues"])
def test_where_to_report_is_what_the_metadata_says(monkeypatch, address):
    class Metadata:
        def get_all(self, name):
            return [f"Issues, {address}", "Other, https://a"] if address else ["Other, https://a"]

    monkeypatch.setattr(cli, "metadata", lambda name: Metadata())
    assert cli.where_to_report() == (f"at {address}" if address else "where you got it from")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cli, "metadata", missing)
    assert cli.where_to_report() == "where you got it from"
