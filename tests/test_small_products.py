"""Small products are made by one thread of BLAS, wherever many of them are made."""

import sys

import pytest
from helpers_models import OPT_CONFIG, TOKENIZER_TEXT, write_model

from tinyflash import workers
from tinyflash.cli import main
from tinyflash.ops import linear
from tinyflash.workers import SMALL, blas_libraries, blas_threads_for


@pytest.fixture
def two_threads():
    """BLAS with two threads; gives a function that says how many it has now."""
    before = [library.num_threads for library in blas_libraries()]
    for library in blas_libraries():
        workers.set_threads(library, 2)
    if {library.num_threads for library in blas_libraries()} != {2}:
        pytest.skip("this BLAS cannot be told how many threads to use")
    yield lambda: max(library.num_threads for library in blas_libraries())
    for library, threads in zip(blas_libraries(), before, strict=True):
        workers.set_threads(library, threads)


@pytest.fixture
def seen(two_threads, monkeypatch):
    """The numbers of threads that BLAS had at any `linear`, by the file that called it."""
    seen = {}

    def watched(x, weight, bias=None):
        caller = sys._getframe(1).f_globals["__name__"]
        seen.setdefault(caller, set()).add(two_threads())
        return linear(x, weight, bias)

    for name, module in list(sys.modules.items()):
        if name.startswith("tinyflash.") and getattr(module, "linear", None) is linear:
            monkeypatch.setattr(module, "linear", watched)
    return seen


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a model and a text, which is the current one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "opt", OPT_CONFIG | {"ffn_dim": 200}, seed=4)
    (tmp_path / "text").write_text(20 * TOKENIZER_TEXT, encoding="utf-8")
    return tmp_path


LEARN = ["--text", "text", "--steps", "2", "--batch", "2"]
LONG = 15 * "the river "
VERBS = {
    "train lm": [
        [*LEARN, "--config", "opt/config.json", "--out", "lm", "--length", "8", "--heldout", "text"]
    ],
    "train drafter": [["opt", *LEARN, "--out", "drafter", "--distill"]],
    "train predictor": [
        ["opt", "--text", "text", "--ranks", "4", "--epochs", "1", "--sparsity", "0.9"]
    ],
    "evaluate": [["opt", "--text", "text"]],
    "generate": [
        [LONG, "--model", "opt", "--max-new-tokens", "3"],
        [LONG, "--model", "opt", "--max-new-tokens", "3", "--memory", "70%"],
        [LONG, "--max-new-tokens", "3", "--drafter", "redrafter", "--draft-width", "8"],
    ],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_makes_small_products_by_one_thread(verb, seen, here, two_threads, capsys):
    for arguments in VERBS[verb]:
        assert main([*verb.split(), *arguments]) == 0, capsys.readouterr().err
    assert seen and set.union(*seen.values()) == {1}, seen
    assert two_threads() == 2  # as it was


def test_large_products_keep_their_threads(two_threads):
    with blas_threads_for(SMALL + 1):
        assert two_threads() == 2
    with blas_threads_for(SMALL):
        assert two_threads() == 1
    assert two_threads() == 2
