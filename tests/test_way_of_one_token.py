"""docs/way_of_one_token.md lists the calls from the command to the kernel's read, in order."""

import re
import sys
import threading
from pathlib import Path

import pytest

import tinyflash
from tinyflash.cli import main

PACKAGE = Path(tinyflash.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "way_of_one_token.md"
ROW = re.compile(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", flags=re.MULTILINE)
COMMAND = "generate Once --memory 50% --mode all --max-new-tokens 3".split()


def calls_of(run):
    """The functions of tinyflash that `run()` calls, in all threads, by their first calls."""
    called = {}

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            file = Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix()
            called.setdefault((file, frame.f_code.co_qualname), None)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(called)


def out_of_order(listed, called):
    """What the page lists and was not called, or only before something listed above it."""
    wrong, place = [], 0
    for row in listed:
        if row not in called[place:]:
            wrong.append(row)
        else:
            place = called.index(row, place) + 1
    return wrong


def test_the_page_lists_the_calls_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(listed) > 40
    assert main(COMMAND) == 0  # converts the model, once
    called = calls_of(lambda: main(COMMAND))
    if ("flash/reading/by_queue.py", "ByQueue.read") not in called:
        pytest.skip("this system has no queue for direct reads, so threads read")
    assert out_of_order(listed, called) == []


def test_a_wrong_order_is_seen():
    called = [("a.py", "f"), ("b.py", "g"), ("a.py", "h")]
    assert out_of_order([("a.py", "f"), ("a.py", "h")], called) == []
    assert out_of_order([("b.py", "g"), ("a.py", "f")], called) == [("a.py", "f")]
    assert out_of_order([("c.py", "f")], called) == [("c.py", "f")]
