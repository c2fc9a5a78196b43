"""A conversation at the keyboard: editing, history, commands, Ctrl-C and Ctrl-D."""

import io
import json
import os
import re
import stat
import sys

import pytest
from helpers_models import OPT_CONFIG, write_model
from helpers_terminal import Terminal, needs_pty, plain
from safetensors.numpy import load_file, save_file

import tinyflash
from tinyflash.commands import chat as typed
from tinyflash.commands import editing

PROMPT = r"\n>[ \x08]"  # prompt_toolkit goes back and two forward
WITHOUT = (  # a Python in which prompt_toolkit is not installed
    "-c",
    "import sys; sys.modules['prompt_toolkit'] = None\n"
    "from tinyflash.cli import main; sys.exit(main())",
)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model that goes on for minutes: a long context, and the end of text is never likeliest."""
    directory = tmp_path_factory.mktemp("talker") / "model"
    write_model(directory, OPT_CONFIG | {"max_position_embeddings": 60_000}, seed=4, chat=True)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.decoder.embed_tokens.weight"][2] = 0
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tinyflash"


def history(cache):
    return [json.loads(line) for line in (cache / "chat_history").read_text().splitlines()]


@needs_pty
@pytest.mark.parametrize("program", [("-m", "tinyflash"), WITHOUT], ids=["toolkit", "readline"])
def test_a_conversation_at_a_terminal(talker, cache, program):
    arguments = ("generate", "--chat", "--model", talker, "--max-new-tokens", "50000")
    toolkit = program != WITHOUT
    with Terminal(*arguments, program=program, XDG_CACHE_HOME=str(cache.parent)) as terminal:
        terminal.until(PROMPT)
        terminal.type("half a li")
        terminal.until("half a li")
        terminal.interrupt(PROMPT)  # clears the line
        terminal.type("Why")
        terminal.type("\x1b\r" if toolkit else "\\\r")  # a second line
        terminal.until("·[ \x08]")
        terminal.type("is it?\r")
        terminal.until(r"is it\?(?s:.){200}")  # it answers, and would for minutes
        terminal.type("\x03")
        terminal.until("Stopped")
        terminal.until(PROMPT)
        terminal.type("/system Be short.\r")
        terminal.until("Told before all else: Be short.")
        terminal.type("/clear\r")
        terminal.until("begins anew")
        terminal.type("/nothing\r")
        terminal.until("no /nothing; /help lists")
        terminal.type("/help\r")
        terminal.until("Ctrl-D leaves. Questions are kept in")
        terminal.until(PROMPT)
        terminal.type("\x1b[A\x1b[A\x1b[A\x1b[A")  # up, to an earlier line
        terminal.until("system Be short")  # what differs is drawn
        terminal.interrupt(PROMPT)
        terminal.type("\x04")
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.seen
    said = ["Why\nis it?", "/system Be short.", "/clear", "/nothing", "/help"]
    assert history(cache) == said
    assert stat.S_IMODE(os.stat(cache / "chat_history").st_mode) == 0o600


def test_what_was_said_before_ctrl_c_is_the_answer(talker, monkeypatch, capsys):
    """The next question sees it, and what comes is what the model says to that conversation."""
    model = tinyflash.load(talker)
    chat, pieces = model.chat(), []

    def answer(question):
        for piece in chat.say(question, max_new_tokens=30):
            pieces.append(piece)
            if len(pieces) == 9:
                raise KeyboardInterrupt

    typed.at_the_keyboard(chat, "Why?", answer, "")
    assert "Stopped" in capsys.readouterr().err
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    before = len(pieces)
    typed.at_the_keyboard(chat, "And who?", answer, "")
    fresh = model.chat()
    fresh.answered = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "".join(pieces[:before])},
    ]
    assert "".join(pieces[before:]) == "".join(fresh.say("And who?", max_new_tokens=30))


def test_ctrl_c_within_a_pass_keeps_the_conversation(talker, monkeypatch):
    model = tinyflash.load(talker)
    chat, logits, passes = model.chat(), model.logits, []

    def interrupted(*arguments):
        def tap(name, tensor):
            arguments[2](name, tensor)
            if len(passes) == 4 and name == "layers.1.attn.k":  # some layers have appended
                raise KeyboardInterrupt

        passes.append(0)
        return logits(*arguments[:2], tap, *arguments[3:])

    def answer(question):
        for _ in chat.say(question, max_new_tokens=8):
            pass

    monkeypatch.setattr(model, "logits", interrupted, raising=False)
    typed.at_the_keyboard(chat, "Why?", answer, "")
    assert len(passes) == 4
    monkeypatch.setattr(model, "logits", logits)
    said = chat.messages
    assert said[-1]["role"] == "assistant"
    typed.at_the_keyboard(chat, "And who?", answer, "")
    fresh = model.chat()
    fresh.answered = said
    assert chat.messages[-1]["content"] == "".join(fresh.say("And who?", max_new_tokens=8))


def test_a_refusal_does_not_end_a_typed_conversation(tmp_path, capsys):
    model = tinyflash.load(write_model(tmp_path / "opt", OPT_CONFIG, seed=4, chat=True))
    chat = model.chat()

    def answer(question):
        list(chat.say(question, max_new_tokens=2))

    typed.at_the_keyboard(chat, "Why? " * 100, answer, "")
    assert "context is 96; shorten" in capsys.readouterr().err
    typed.at_the_keyboard(chat, "Why?", answer, "")
    assert len(chat.messages) == 2
    typed.at_the_keyboard(chat, "/clear", answer, "")
    assert chat.messages == [] and chat.cache.length == 0
    typed.at_the_keyboard(chat, "Why?", answer, "")
    assert chat.messages == [*chat.answered, chat.messages[-1]] and len(chat.answered) == 1


def test_a_system_message_that_the_template_leaves_out_is_not_kept(tmp_path, capsys):
    model = tinyflash.load(write_model(tmp_path / "opt", OPT_CONFIG, seed=4, chat=True))
    chat = model.chat(template="{{ messages[-1]['content'] }}")
    typed.at_the_keyboard(chat, "/system Be short.", None, "")
    assert chat.system is None and "leaves a system message out" in capsys.readouterr().err
    chat = model.chat()
    typed.at_the_keyboard(chat, "/system Be short.", None, "")
    assert chat.system == "Be short."
    typed.at_the_keyboard(chat, "/system", None, "")
    assert chat.system is None


def test_in_a_pipe_a_slash_is_a_question(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n\nWhy?\n"))
    asked = []
    typed.converse(None, asked.append)
    assert asked == ["/help", "Why?"]


def test_the_history_is_private_bounded_and_does_without_a_place(cache, monkeypatch, capsys):
    monkeypatch.setattr(editing, "KEPT", 3)
    for n in range(8):
        editing.remember(f"question\n{n}")
    assert editing.remembered() == [f"question\n{n}" for n in (5, 6, 7)]
    assert len(history(cache)) == 3  # cut when it was more than twice as long
    (cache / "chat_history").chmod(0o644)
    editing.remember("more")
    assert stat.S_IMODE(os.stat(cache / "chat_history").st_mode) == 0o600
    with open(cache / "chat_history", "a") as file:
        file.write("{half\n5\n")
    assert editing.remembered()[-1] == "more"
    target = cache / "target"
    (cache / "chat_history").rename(target)
    (cache / "chat_history").symlink_to(target)
    before = target.read_text()
    editing.remember("through a link")
    assert editing.remembered() == [] and target.read_text() == before
    assert "not kept" in capsys.readouterr().err


@needs_pty
def test_the_prompt_stays_out_of_a_result(talker, cache, tmp_path):
    """With standard output in a file a person types all the same."""
    out = tmp_path / "out"
    program = (
        "-c",
        f"import sys, os; os.dup2(os.open({str(out)!r}, os.O_WRONLY | os.O_CREAT), 1)\n"
        "from tinyflash.cli import main; sys.exit(main())",
    )
    arguments = ("generate", "--chat", "--model", talker, "--max-new-tokens", "3")
    with Terminal(*arguments, program=program, XDG_CACHE_HOME=str(cache.parent)) as terminal:
        terminal.until("> ")
        terminal.type("Why?\r")
        terminal.until("ended by: length")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
    said = "".join(tinyflash.load(talker).chat().say("Why?", max_new_tokens=3))
    assert out.read_text().rstrip("\n") == said
    assert "Why?" in plain(terminal.seen) and re.search("> ", terminal.seen)
