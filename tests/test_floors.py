"""The house rules that a program can check: floors, length of files, docstrings, dtypes."""

import ast
from pathlib import Path

import numpy as np
import pytest

import tinyflash

PACKAGE = Path(tinyflash.__file__).parent
FILES = sorted(  # a wheel carries data/ inside the package
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "data"
)

# DESIGN.md: nobody imports from above. The package itself (`import tinyflash`) offers the model.
FLOORS = (
    "config checks erfc ops taps files directories progress low_rank streams turns workers "
    "settings stopping penalties token_ids native template_prices template_sandbox",
    "matrices checkpoint chat_template tokenizer families weights",
    "transformer places kv_cache sampling",
    "training costs",
    "flash speculative compress",
    "generate chat generation_config evaluate choices model describe "
    "oracle bench plan terminal tinyflash",
    "cli commands course __main__",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
PAPERS = ("flash", "speculative", "compress")  # these do not import one another
LONGEST = 320  # lines
CONSTRUCTORS = ("zeros", "empty", "ones", "arange", "full", "array")


def part_of(path):
    """The word of FLOORS under which a file falls: `oracle/diff.py` is of `oracle`."""
    inside = path.relative_to(PACKAGE)
    if len(inside.parts) > 1:
        return inside.parts[0]
    return "tinyflash" if inside.stem == "__init__" else inside.stem


def imported_parts(source):
    """The words of FLOORS that a file imports, wherever in it, as (line, word)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: name the whole module instead of dots"
            modules = [node.module]
            if node.module == "tinyflash":  # a module, or something that __init__ offers
                modules = [f"tinyflash.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "tinyflash":
                word = rest.partition(".")[0]
                found.append((node.lineno, word if word in FLOOR else "tinyflash"))
    return found


def wrong_imports(part, source):
    """A line for each import from a floor above, or from another paper."""
    wrong = []
    for line, imported in imported_parts(source):
        if part == "one_page":
            wrong.append(f"line {line}: one_page stands alone, and imports {imported}")
        elif FLOOR[imported] > FLOOR[part]:
            wrong.append(f"line {line}: {part} (floor {FLOOR[part]}) imports {imported} above it")
        elif part in PAPERS and imported in PAPERS and imported != part:
            wrong.append(f"line {line}: {part} imports {imported}")
    return wrong


def imported_files(source, names):
    """The files among `names` (dotted, such as "tinyflash.ops") that a file imports, wherever."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(names)


def circle(imports):
    """Files that import one another, each the next and the last the first; or an empty list.

    imports : dict file -> set of the files that it imports
    """
    left = {file: set(others) for file, others in imports.items()}
    while free := {file for file, others in left.items() if not others}:
        left = {file: others - free for file, others in left.items() if file not in free}
    way = [next(iter(left))] if left else []
    while way and way[-1] not in way[:-1]:
        way.append(min(left[way[-1]]))
    return way[way.index(way[-1]) + 1 :] if way else []


def constructors_without_dtype(source):
    """A line for each NumPy constructor that leaves its dtype to chance."""
    return [
        f"line {node.lineno}: {ast.unparse(node)[:80]}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "np"
        and node.func.attr in CONSTRUCTORS
        and not any(keyword.arg == "dtype" for keyword in node.keywords)
    ]


def without_docstring(source, known=lambda name: False):
    """Names of public classes, functions and methods that nothing describes."""
    missing = []

    def look(body, prefix):
        for node in body:
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            if not isinstance(node, kinds) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and not known(prefix + node.name):
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{node.name}.")

    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        missing.append("the file itself")
    look(tree.body, "")
    return missing


def numpys_own(name):
    """Whether NumPy's documentation says what it does: a rule or method of the tape."""
    method = name.removeprefix("Traced.")
    return hasattr(np.ndarray if method != name else np, method.removesuffix("_"))


def named(path):
    return str(path.relative_to(PACKAGE))


def test_every_file_has_a_floor():
    assert FILES
    parts = {part_of(path) for path in FILES} - {"one_page"}
    assert parts <= set(FLOOR), "give the new module a place in FLOORS, as DESIGN.md says"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nobody_imports_from_above(path):
    assert wrong_imports(part_of(path), path.read_text()) == []


def test_no_two_files_import_one_another():
    names = {
        ".".join(("tinyflash", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in FILES
    }
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    imports = {
        name: imported_files(path.read_text(encoding="utf-8"), names) - {name, "tinyflash"}
        for name, path in names.items()
    }
    # A package's own file is imported with each file in it; only what it offers makes a circle.
    for name, others in imports.items():
        imports[name] = {other for other in others if not name.startswith(f"{other}.")}
    assert circle(imports) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=named)
def test_everything_public_has_a_docstring(path):
    the_tape = path.name in ("derivatives.py", "tape.py")
    known = numpys_own if the_tape else lambda name: False
    assert without_docstring(path.read_text(), known) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_constructor_says_its_dtype(path):
    assert constructors_without_dtype(path.read_text()) == []


# The checks can fail.


@pytest.mark.parametrize(
    "part, line, wrong",
    [
        ("ops", "from tinyflash.matrices.half import HalfMatrix", True),
        ("weights", "import tinyflash.generate", True),
        ("training", "def late():\n    from tinyflash.flash.window import Window", True),
        ("families", "from tinyflash import cli", True),
        ("transformer", "from tinyflash import Model", True),  # what the package offers
        ("transformer", "import tinyflash", True),
        ("flash", "from tinyflash.compress.quantize import QuantizedMatrix", True),
        ("one_page", "from tinyflash.ops import relu", True),
        ("oracle", "import tinyflash\nfrom tinyflash.oracle.diff import compare", False),
        (
            "flash",
            "from tinyflash.flash import window\nfrom tinyflash.matrices.half import decode",
            False,
        ),
        ("cli", "from tinyflash import terminal", False),
        ("config", "import math\nfrom dataclasses import dataclass", False),
    ],
)
def test_planted_imports_are_caught(part, line, wrong):
    assert bool(wrong_imports(part, line)) == wrong


def test_planted_circles_are_caught():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["c", "b"]
    late = "def f():\n    from tinyflash.flash import window"
    assert imported_files(late, {"tinyflash.flash.window"}) == {"tinyflash.flash.window"}


def test_planted_constructors_are_caught():
    source = "a = np.zeros(3)\nb = np.arange(4, dtype=np.int64)\nc = f(np.array([1.0]))\n"
    assert [line[:6] for line in constructors_without_dtype(source)] == ["line 1", "line 3"]


def test_planted_silence_is_caught():
    source = (
        '"""A file."""\ndef a(): pass\ndef _b(): pass\nclass C:\n    """C."""\n    def d(self): 3'
    )
    assert without_docstring(source) == ["a", "C.d"]
    assert without_docstring("x = 1") == ["the file itself"]
    assert numpys_own("where") and numpys_own("Traced.reshape") and not numpys_own("value_and_grad")
