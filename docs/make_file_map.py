"""Writes docs/file_map.md from the first line of every file's docstring.

python docs/make_file_map.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("file_map.md")
ROOMS = (  # in the order in which they are read
    ("tinyflash", "The door"),
    ("tinyflash/matrices", None),
    ("tinyflash/checkpoint", None),
    ("tinyflash/families", None),
    ("tinyflash/flash", None),
    ("tinyflash/flash/reading", None),
    ("tinyflash/flash/store", None),
    ("tinyflash/flash/training", None),
    ("tinyflash/speculative", None),
    ("tinyflash/speculative/training", None),
    ("tinyflash/training", None),
    ("tinyflash/costs", None),
    ("tinyflash/oracle", None),
    ("tinyflash/commands", None),
    ("tinyflash/bench", None),
    ("benchmarks", None),
)


def first_line(path):
    """What a file's docstring says first."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]


def file_map():
    """The whole page as Markdown."""
    lines = ["# Files", "", "Made by `python docs/make_file_map.py` from the files themselves.", ""]
    for room, title in ROOMS:
        folder = ROOT / room
        lines += [f"## {title or room + '/'}", ""]
        if room != "tinyflash":
            lines += [first_line(folder / "__init__.py"), ""]
        lines += ["| file | what it holds |", "|---|---|"]
        for path in sorted(folder.glob("*.py")):
            if path.stem != "__init__":
                text = first_line(path).replace("|", "\\|")
                lines.append(f"| [`{path.name}`](../{room}/{path.name}) | {text} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(file_map(), encoding="utf-8")
