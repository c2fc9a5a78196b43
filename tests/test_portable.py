"""Windows and macOS: everything works without what only Linux has, and with other encodings."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import elsewhere
import pytest
from helpers_models import OPT_CONFIG, TOKENIZER_TEXT, write_model

import tinyflash

HERE = Path(__file__).parent
PACKAGE = Path(tinyflash.__file__).parent
SOURCES = [*PACKAGE.rglob("*.py"), *(HERE.parent / "benchmarks").glob("*.py")]


@pytest.fixture
def directory(tmp_path):
    """What portable_child.py works with."""
    model = tmp_path / "model"
    write_model(model / "opt", OPT_CONFIG | {"ffn_dim": 200}, seed=4, chat=True)
    write_model(model / "chat", OPT_CONFIG, seed=4, chat=True)
    (model / "text.txt").write_text("é — " + 20 * TOKENIZER_TEXT, encoding="utf-8")
    line = {"context": "Once — upon", "choices": [" a", " é"], "answer": 0}
    (model / "choices.jsonl").write_text(json.dumps(line, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def child(directory, how, things, verbs, **environment):
    """portable_child.py in a Python of its own; fails with what it said if it failed."""
    settings = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        "XDG_CACHE_HOME": str(directory / "cache"),
        **environment,
    }
    settings.pop("TINYFLASH_WITHOUT", None)
    command = [sys.executable, "-X", "warn_default_encoding", str(HERE / "portable_child.py")]
    ended = subprocess.run(
        [*command, str(directory), how, ",".join(things), verbs],
        cwd=directory,
        env=settings,
        capture_output=True,
        encoding="utf-8",
    )
    assert ended.returncode == 0 and ended.stdout.endswith("done\n"), ended.stderr[-3000:]
    return ended


def test_what_tinyflash_speaks_of_is_found():
    wanted = {"fcntl", "resource", "os.preadv", "os.O_DIRECT", "os.posix_fallocate"}
    assert wanted <= set(elsewhere.used()) <= set(elsewhere.EVERYTHING)


def test_every_verb_works_without_what_other_systems_lack_in_any_encoding(directory):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    ended = child(directory, "together", elsewhere.EVERYTHING, "every", **ascii_only)
    assert "or this system has none" in ended.stderr


def test_text_is_generated_without_each_thing_that_other_systems_lack(directory):
    child(directory, "alone", elsewhere.used(), "generate")


@pytest.mark.slow
def test_every_verb_works_without_each_thing_that_other_systems_lack(directory):
    child(directory, "alone", elsewhere.used(), "every")


def test_pipes_are_in_utf8_whatever_the_system_says(directory):
    settings = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(HERE.parent)}
    settings.pop("PYTHONIOENCODING", None)
    python = [sys.executable, "-m", "tinyflash"]
    arguments = ["generate", "-", "--model", str(directory / "model" / "opt"), "--temperature", "0"]
    ended = subprocess.run(
        [*python, *arguments], input="é".encode(), capture_output=True, env=settings
    )
    assert ended.returncode == 0, ended.stderr
    expected = tinyflash.load(directory / "model" / "opt").generate("é", temperature=0)
    assert ended.stdout.decode("utf-8").replace("\r\n", "\n") == "".join(expected) + "\n"
    assert not ended.stdout.isascii()


def texts_without_encoding(source):
    """A line for each call that reads or writes a text in the system's encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(
            k.arg in ("encoding", None) for k in node.keywords
        ):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:])
            wrong = not binary
        else:
            as_text = any(k.arg in ("text", "universal_newlines") for k in node.keywords)
            wrong = name in ("read_text", "write_text") or as_text and name in ("run", "Popen")
            wrong = wrong and ast.unparse(node.func) != "files.read_text"  # ours
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_text_names_its_encoding(path):
    assert texts_without_encoding(path.read_text(encoding="utf-8")) == []


def test_planted_texts_are_caught():
    source = (
        "p.read_text()\np.write_text('a')\nopen(p)\nopen(p, 'w')\nopen(p, 'rb')\n"
        "subprocess.run(c, text=True)\np.read_text(encoding='utf-8')\nread_text(p)\n"
    )
    assert [line[5] for line in texts_without_encoding(source)] == ["1", "2", "3", "4", "6"]
