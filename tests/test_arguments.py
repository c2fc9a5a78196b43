"""The command's arguments: defaults in the help, options without effect, completion."""

import argparse
import subprocess
import sys

import pytest
from helpers_models import OPT_CONFIG, write_model

import tinyflash
from tinyflash.cli import main, parser
from tinyflash.commands.effects import RULES
from tinyflash.flash.store.convert import convert


def verbs(of=None, name=""):
    """Every verb of the command: (name, its parser)."""
    for action in (of or parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from verbs(inner, f"{name} {word}".strip())
            return
    yield name, of


VERBS = dict(verbs())


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_every_verb_shows_every_default(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*name.split(), "--help"])
    assert exit.value.code == 0 and "usage: tinyflash" in capsys.readouterr().out
    for action in VERBS[name]._actions:
        assert action.help, action.dest
        if action.option_strings and action.nargs != 0 and not action.required:
            assert "default:" in action.help, f"{name} {action.option_strings}"


def test_every_verb_that_reports_has_json_and_every_verb_debug():
    for name, of in VERBS.items():
        options = {word for action in of._actions for word in action.option_strings}
        assert "--debug" in options
        assert ("--json" in options) == (name != "completion")


def said(capsys, *arguments, code=2):
    """The one line that a command ends with."""
    try:
        assert main([str(argument) for argument in arguments]) == code
    except SystemExit as exit:
        assert exit.code == code
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert out == "" and line.startswith("tinyflash: ")
    return line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["fly"], "fly"),
        ([], "VERB"),
        (["train"], "WHAT"),
        (["generate", "--temperature", "warm"], "invalid float value: 'warm'"),
        (["generate", "--mode", "fast"], "--mode"),
        (["record", "default"], "--out"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(capsys, arguments, words):
    line = said(capsys, *arguments)
    assert words in line and line.endswith("--help.")


IDLE = [
    (["generate", "a", "--window", 3], "--window", "--memory"),
    (["generate", "a", "--mode", "all"], "--mode", "--memory"),
    (["evaluate", "default", "--text", "t", "--mode", "all"], "--mode", "--memory"),
    (["evaluate", "default", "--text", "t", "--window", 3], "--window", "--memory"),
    (["bench", "speculative", "default", "--mode", "naive"], "--mode", "--memory"),
    (["bench", "speculative", "default", "--window", 1], "--window", "--memory"),
    (["generate", "a", "--memory", "50%", "--mode", "naive", "--window", 3], "--window", "mode"),
    (["bench", "flash", "m", "--modes", "naive, hybrid", "--window", 3], "--window", "mode"),
    (["generate", "a", "--temperature", 0, "--top-k", 5], "--top-k", "--temperature 0"),
    (["generate", "a", "--temperature", 0, "--top-p", 0.5], "--top-p", "--temperature 0"),
    (["generate", "a", "--temperature", 0, "--min-p", 0.5], "--min-p", "--temperature 0"),
    (["generate", "a", "--temperature", 0, "--seed", 5], "--seed", "--temperature 0"),
    (["generate", "a", "--system", "Be short."], "--system", "--chat"),
    (["generate", "a", "--chat-template", "FILE"], "--chat-template", "--chat"),
    (["generate", "a", "--memory", "50%", "--stats", "--json"], "--stats", "--json"),
    (["convert", "m", "--check", "--bundling", "row-column"], "--bundling", "--check"),
    (["convert", "m", "--check", "--dtype", "keep"], "--dtype", "--check"),
    (["bench", "speculative", "m", "--drafters", "ngram", "--widths", "1"], "--widths", "ReDraf"),
    (["bench", "speculative", "m", "--drafters", "ngram", "--alphas", "1"], "--alphas", "replay"),
    (["bench", "speculative", "m", "--drafters", "ngram", "--length", 3], "--length", "lookup"),
    (["diff", "a", "b", "--all", "--json"], "--all", "--json"),
]


@pytest.mark.parametrize("arguments, option, words", IDLE, ids=lambda it: str(it)[:40])
def test_an_option_without_effect_is_refused(capsys, arguments, option, words):
    line = said(capsys, *arguments)
    assert line.startswith(f"tinyflash: {option} has no effect") and words in line


def test_every_rule_is_of_an_option_that_is_there():
    for rule in RULES:
        for name in rule.verbs:
            there = {action.dest for action in VERBS[name]._actions}
            assert rule.option in there, (name, rule.option)


def test_a_seed_needs_something_that_is_drawn(tmp_path, capsys):
    model = write_model(tmp_path / "opt", OPT_CONFIG, seed=4)
    few = ["generate", "The", "--model", str(model), "--max-new-tokens", "1", "--seed", "5"]
    assert main(few) == 2
    assert "--seed has no effect where nothing is drawn" in capsys.readouterr().err
    for more in (["--temperature", "0.5"], ["--top-k", "3"], ["--min-p", "0.1"]):
        assert main([*few, *more]) == 0
    (model / "generation_config.json").write_text('{"do_sample": true}')
    assert main(few) == 0


def test_a_window_needs_a_mode_that_keeps_one(tmp_path, capsys):
    """Without trained predictors the mode is hybrid, and that shows when the model is open."""
    convert(write_model(tmp_path / "opt", OPT_CONFIG, seed=4), tmp_path / "flash")
    (tmp_path / "text").write_text("The river rose. " * 40)
    store, text = str(tmp_path / "flash"), str(tmp_path / "text")
    bench = ["bench", "speculative", store, "--text", text, "--prompt", "4", "--tokens", "2"]
    for arguments in (
        ["generate", "The", "--model", store],
        ["evaluate", store, "--text", text],
        [*bench, "--prompts", "1"],
    ):
        line = said(capsys, *arguments, "--window", 3, "--memory", "150%")
        assert "A window of 3 has no effect in mode hybrid" in line
        assert main([*arguments, "--window", "3", "--memory", "150%", "--mode", "window"]) == 0
        capsys.readouterr()


def test_load_refuses_them_as_well(tmp_path):
    with pytest.raises(ValueError, match="mode has no effect; give a memory"):
        tinyflash.load("default", mode="all")
    with pytest.raises(ValueError, match="mode and k have no effect"):
        tinyflash.load("default", mode="all", k=3)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_verbs(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("generate", "speculative", "max-new-tokens"):
        assert word in script


def test_bash_completes(capsys):
    main(["completion", "bash"])
    script = capsys.readouterr().out + (
        "f=$(complete -p tinyflash | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\n"
        "for words in 'tinyflash gen' 'tinyflash generate --mod' 'tinyflash train dra'; do\n"
        "COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); $f\n"
        'echo "${COMPREPLY[@]}"; done\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n") == ["generate", "--model --mode", "drafter", ""]


def test_completion_without_its_package_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert 'pip install -e ".[completion]"' in said(capsys, "completion", "bash")
