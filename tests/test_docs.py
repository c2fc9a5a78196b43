"""The pages say what is there: links lead somewhere, and the README is short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")
PAGES = sorted(
    path
    for folder in (".", "docs", "docs/reference", "data", "tests/campaign")
    for path in (ROOT / folder).glob("*.md")
)


def headings(path):
    """The anchors that a page offers, as GitHub makes them from its headings."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines)
    return {f"#{word}" for word in words}


def dead_links(path):
    """Links of a page that lead to no file, or to no heading of that file."""
    dead = []
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        place = path.parent / target if target else path
        if not place.exists() or (anchor and anchor not in headings(place)):
            dead.append(target + anchor)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    assert dead_links(path) == []


def test_a_dead_link_is_caught(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Here it is\n[a](page.md#here-it-is) [b](page.md#gone) [c](lost.md) [d](#no)")
    assert dead_links(page) == ["page.md#gone", "lost.md", "#no"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
