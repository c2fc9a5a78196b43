"""The standard streams: harmless on a terminal, untouched in a pipe, and closed or full."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_models import OPT_CONFIG, write_model
from helpers_terminal import ENVIRONMENT, Terminal, needs_pty
from safetensors.numpy import load_file, save_file

import tinyflash
from tinyflash import streams

EVIL = "\x1b]0;renamed\x07\x1b[2J\x9b31m"
SHOWN = "\\x1b]0;renamed\\x07\\x1b[2J\\x9b31m"


def on_a_terminal(*arguments):
    """Exit code and what a terminal gets from both streams of the command."""
    with Terminal(*arguments) as terminal:
        code = terminal.ended()
        return code, terminal.seen


def in_a_shell(command):
    """Exit code, output and errors of `python -m tinyflash` with a shell's redirections."""
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m tinyflash {command}'],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A model that says an escape sequence, refuses a chat with one, in a place with one."""
    directory = tmp_path_factory.mktemp("hostile") / "m\x1b[31mred"
    write_model(directory, OPT_CONFIG, seed=4, chat=True)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": 304, "content": EVIL, **flags})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = tinyflash.load(directory).tokenizer.backend.token_to_id(EVIL)
    tensors = load_file(directory / "model.safetensors")
    row = tensors["model.decoder.embed_tokens.weight"][said].astype("f4")
    bias = tensors["model.decoder.final_layer_norm.bias"]
    tensors["model.decoder.final_layer_norm.bias"] = bias + (row * 90).astype(bias.dtype)
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = f"{{{{ raise_exception('{EVIL}') }}}}"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def foreign_codes(seen):
    """Control characters on a terminal but those of rich's colors and bars, and of line ends."""
    seen = re.sub(r"\x1b\[(?!31m)[\d;?]*[mhlKA]", "", seen).replace("\r", "")
    return [letter for letter in seen if ord(letter) in streams.SHOWN]


@needs_pty
def test_what_a_model_says_does_not_reach_the_terminal_as_a_command(hostile):
    arguments = ("generate", "The", "--model", hostile, "--max-new-tokens", "2")
    code, seen = on_a_terminal(*arguments)
    assert code == 0 and SHOWN * 2 in seen
    assert foreign_codes(seen) == []
    said = "".join(tinyflash.load(hostile).generate("The", max_new_tokens=2))
    assert said == EVIL * 2
    running = [sys.executable, "-m", "tinyflash", *map(str, arguments)]
    piped = subprocess.run(running, capture_output=True, env=ENVIRONMENT, timeout=60)
    assert piped.stdout.decode() == said + "\n"  # untouched
    assert "m\x1b[31mred" in piped.stderr.decode()
    as_json = subprocess.run([*running, "--json"], capture_output=True, env=ENVIRONMENT, timeout=60)
    assert json.loads(as_json.stdout)["text"] == said


@needs_pty
def test_messages_and_names_do_not_reach_it_either(hostile, tmp_path):
    code, seen = on_a_terminal("generate", "hi", "--chat", "--model", hostile)
    assert code == 2 and SHOWN in seen and foreign_codes(seen) == []
    other = tmp_path / "other"
    shutil.copytree(hostile, other)
    tensors = load_file(other / "model.safetensors")
    save_file(tensors | {"\x1b[31mevil": tensors["model.decoder.final_layer_norm.bias"]},
              other / "model.safetensors")  # fmt: skip
    code, seen = on_a_terminal("generate", "hi", "--model", other)
    assert code == 2 and "evil" in seen and foreign_codes(seen) == []
    code, seen = on_a_terminal("generate", "hi", "--model", other, "--debug")
    assert code == 2 and "Traceback" in seen and foreign_codes(seen) == []
    code, seen = on_a_terminal("convert", hostile, tmp_path / "\x9b31mstore")
    assert code == 0 and "\\x9b31mstore" in seen and foreign_codes(seen) == []


def test_square_brackets_in_a_name_are_no_markup(tmp_path, capsys):
    from tinyflash import terminal

    terminal.table("[b]a[/c]", ("[x]", "b"), [("[/red]", 1)])
    out = capsys.readouterr().out
    assert "[b]a[/c]" in out and "[x]" in out and "[/red]" in out


GENERATE = "generate Once --temperature 0 --max-new-tokens 3"


@needs_pty  # nor a shell like this one
@pytest.mark.parametrize(
    "command, code",
    [
        (f"{GENERATE} >&-", 0),
        (f"{GENERATE} 2>&-", 0),
        (f"{GENERATE} 2>/dev/full", 0),
        (f"{GENERATE} >&- 2>&- <&-", 0),
        (f"{GENERATE} >/dev/full", 2),
        (f"{GENERATE} --json >/dev/full", 2),
        (f"{GENERATE} >/dev/full 2>/dev/full", 2),
        ("--help >/dev/full", 2),
        ("generate - <&-", 2),
        ("generate --chat --model hostile <&-", 2),
        ("diff no.safetensors no.safetensors 2>&-", 2),
    ],
)
def test_closed_and_full_streams_are_no_traceback(command, code):
    seen, out, err = in_a_shell(command)
    assert seen == code
    assert "Traceback" not in err and "Exception" not in err and "lost sys" not in err
    if code == 2 and ">&-" not in command and "2>" not in command:
        assert err.splitlines()[-1].startswith("tinyflash: ")
    if "2>&-" in command and ">&- 2" not in command:
        assert "tinyflash:" not in out  # notes do not fall into the result


@needs_pty
def test_a_closed_stream_gives_its_number_to_no_file():
    """What others write to descriptor 1 or 2 must not end in a file of ours."""
    program = (
        "import sys; from tinyflash.cli import main; assert main(['diff', 'a', 'b']) == 2;"
        "sys.exit(open('/dev/null').fileno())"
    )
    shell = ["bash", "-c", f'"{sys.executable}" -c "{program}" >&- 2>&- <&-']
    assert subprocess.run(shell, env=ENVIRONMENT, timeout=60).returncode > 2


def test_a_letter_that_the_stream_lacks_is_said():
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", "from tinyflash import streams; streams.say('é')"],
        capture_output=True,
        env=environment,
        timeout=60,
    )
    assert b"ValueError: Standard output is in ascii" in done.stderr


def test_a_native_panic_is_one_sentence_and_shows_itself_with_debug(tmp_path):
    """Rust writes to descriptor 2 by itself, and what it writes may hold what a file says."""
    model = write_model(tmp_path / "m", OPT_CONFIG, seed=4)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["continuing_subword_prefix"] = "4.0"
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    running = [sys.executable, "-m", "tinyflash", "generate", "hi", "--model", str(model)]
    settings = {"capture_output": True, "text": True, "timeout": 60}
    settings["env"] = ENVIRONMENT | {"RUST_BACKTRACE": "1"}
    done = subprocess.run(running, **settings)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "tokenizer.json" in done.stderr
    shown = subprocess.run([*running, "--debug"], **settings).stderr
    assert "panicked at" in shown and "Traceback" in shown
    assert shown.splitlines()[-1] == done.stderr.strip()


def test_standard_error_is_as_it_was_after_a_command(capfd):
    from tinyflash.cli import main

    before = sys.stderr
    assert main(["diff", "no.safetensors", "no.safetensors"]) == 2
    assert sys.stderr is before
    os.write(2, b"mine\n")
    said, mine = capfd.readouterr().err.splitlines()
    assert "no such recording" in said and mine == "mine"


WRITERS = {"streams.py", "terminal.py", "one_page.py"}  # the last stands alone


def test_nothing_else_writes_to_the_streams():
    """So that no name or message reaches a terminal past `fit_for`."""
    package = Path(tinyflash.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] == "data" or path.name in WRITERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            wrong = called == "print" or called.startswith(("sys.stdout.w", "sys.stderr.w"))
            assert not wrong, f"{path.name}, line {node.lineno}: use terminal.say or note"
