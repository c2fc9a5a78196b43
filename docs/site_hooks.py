"""What the site needs beside the pages: the README as its start, and no links out of docs/."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
OUTWARD = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")


def on_page_markdown(markdown, page, config, files):
    """Called by mkdocs for every page before it becomes HTML."""
    if page.file.src_uri == "index.md":
        markdown = README.read_text(encoding="utf-8").replace("](docs/", "](")
    pages = {file.src_uri for file in files}

    def inward(link):
        """A link as it is if it leads to a page of the site; else its text alone."""
        text, target = link.groups()
        return link[0] if target.partition("#")[0] in pages else text

    return OUTWARD.sub(inward, markdown)
