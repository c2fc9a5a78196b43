"""What test_portable.py runs in a Python of its own.

    python portable_child.py DIR together|alone THING,… generate|every

Uses tinyflash in DIR/model, or copies of it, without some things of elsewhere.py, and says `done`.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import elsewhere


def run(*arguments, code=0, text=""):
    """One command; returns what it printed."""
    from tinyflash.cli import main

    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    with contextlib.redirect_stdout(printed):
        ended = main([str(argument) for argument in arguments])
    printed.flush()
    shown = printed.buffer.getvalue().decode()
    assert ended == code, f"{arguments} ended with {ended}, not {code}: {shown}"
    return shown


def import_and_generate(directory):
    """Text by a model in DRAM and by one on flash, in all modes."""
    model, text = directory / "opt", "Once upon a time"
    dense = run("generate", text, "--model", model, "--max-new-tokens", 4, "--json")
    dense = json.loads(dense.splitlines()[-1])
    run("convert", model, directory / "opt.flash", "--dtype", "float32")
    for mode in ("naive", "all"):
        flash = ("--model", directory / "opt.flash", "--memory", "70%", "--mode", mode, "--json")
        shown = run("generate", text, "--max-new-tokens", 4, *flash)
        assert json.loads(shown.splitlines()[-1])["text"] == dense["text"], mode


def every_verb(directory):
    """All the others."""
    model, text = directory / "opt", directory / "text.txt"
    a, b = directory / "a.safetensors", directory / "b.safetensors"
    run("convert", directory / "opt.flash", "--check")
    run("evaluate", model, "--text", text)
    run("evaluate", model, "--choices", directory / "choices.jsonl")
    for file in (a, b, b):
        run("record", model, "--ids", "5,6,7", "--out", file)
    assert "Equal: all" in run("diff", a, b)
    run("diff", a, a.with_name("nowhere.safetensors"), code=2)
    learn = ("--text", text, "--steps", 2, "--batch", 2)
    lm = ("--config", model / "config.json", "--length", 8, "--out", directory / "lm")
    run("train", "lm", *learn, *lm)
    run("train", "lm", *learn, *lm, "--from", directory / "lm")
    run("train", "drafter", model, *learn, "--out", directory / "drafter", "--distill")
    run("train", "predictor", directory / "opt.flash", "--text", text, "--ranks", 4, "--epochs", 1)
    run("generate", "Once", "--model", directory / "opt.flash", "--memory", "70%", "--stats")
    for drafter in ("ngram", directory / "drafter"):
        run("generate", "Once", "--model", model, "--drafter", drafter, "--max-new-tokens", 5)
    chat = ("--chat", "--model", directory / "chat", "--max-new-tokens", 3)
    assert len(run("generate", *chat, text="Hi\nSo?\n")) > 2
    run("bench", "flash", model, "--tokens", 2, "--prompt", 20, "--text", text, "--modes", "all")
    run("bench", "speculative", model, "--drafters", "ngram", "--tokens", 2, "--text", text)
    disk()


def disk():
    """A short measurement of the disk; the verb's own file takes 2 GiB."""
    from tinyflash.bench.disk import measure_disk

    measure_disk(".", seconds=0.01, chunks=(4096,), threads=(1, 2), file_bytes=1 << 20)


def each_alone(directory, things, verbs):
    """Take one thing after the other away, each in a child that begins without tinyflash."""
    import numpy, rich.progress, safetensors, threadpoolctl, tokenizers  # noqa: E401, F401, I001

    for number, thing in enumerate(things):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                own = directory / str(number)
                shutil.copytree(directory / "model", own)
                elsewhere.take_away([thing])
                use(own, verbs)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, f"without {thing}"


def use(directory, verbs):
    """Use tinyflash, and demand that it names the encoding of every text."""
    elsewhere.encodings_are_named()
    import_and_generate(directory)
    if verbs == "every":
        every_verb(directory)


if __name__ == "__main__":
    directory, how, things, verbs = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    if how == "alone":
        each_alone(directory, things.split(","), verbs)
    else:
        elsewhere.take_away(things.split(",") if things else [])
        use(directory / "model", verbs)
    print("done")
