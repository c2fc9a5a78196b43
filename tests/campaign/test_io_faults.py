"""Every I/O call of every verb and mode fails once; see README.md.

After a failure the command ends with one sentence that names a file and exit code 2, or does what
it should have done; nothing half-written is left; and the same command then works.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
from failing_calls import Calls
from helpers_models import CONFIGS, TOKENIZER_TEXT, write_model
from helpers_sources import write_source

from tinyflash.bench import disk
from tinyflash.cli import main
from tinyflash.files import UNFINISHED

pytestmark = pytest.mark.campaign
CODES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EINTR)
ALL_CODES = bool(os.environ.get("ALL_CODES"))  # each call with each code: four times as long
TOTAL = Counter()

LM = "train lm --config @opt/config.json --text @text --steps 2 --batch 2 --length 16 --json --out "
DRAFTER = "train drafter @opt --text @text --tokens 900 --steps 2 --batch 8 --layers 1 --json "
DRAFTER += "--exit-width 8 --out "
PREDICTOR = "train predictor --text @text --ranks 2 --epochs 1 --tokens 2400 --json "
GENERATE = {  # @ stands before what becomes a whole path, so that a message that names one shows
    "dense": "@opt",
    "bin": "@bin",
    "shards": "@shards",
    "gguf": "@model.gguf",
    "from cache": "@opt --memory 90%",
    "store": "@store",
    "with a drafter": "@opt --drafter @old-drafter",
    "with a smaller model": "@opt --drafter @bin",
} | {
    f"mode {mode}": f"@told --memory 98% --mode {mode}"
    for mode in ("naive", "hybrid", "predictor", "window", "all")
}
COMMANDS = {
    f"generate, {name}": f"generate Once --max-new-tokens 4 --temperature 0 --json --model {words}"
    for name, words in GENERATE.items()
} | {
    "convert": "convert @opt @out",
    "convert from GGUF": "convert --dtype float16 @model.gguf @out",
    "convert --check": "convert @store --check",
    "evaluate": "evaluate @opt --text @short --json",
    "evaluate choices": "evaluate @opt --choices @choices --json",
    "record": "record @opt --ids 2,5,7 --out @nine.safetensors",
    "record again": "record @opt --ids 2,5,9 --out @old.safetensors",
    "record from flash": "record @store --ids 2,5,7 --out @nine.safetensors",
    "diff": "diff @old.safetensors @old.safetensors --json",
    "train lm": LM + "@new-lm",
    "train lm again": LM + "@old-lm",
    "train predictor": PREDICTOR + "@store",
    "train predictor again": PREDICTOR + "@told",
    "train predictor --sparsity": PREDICTOR + "@store --sparsity 0.8",
    "train drafter": DRAFTER + "@new-drafter",
    "train drafter --distill": DRAFTER + "@new-drafter --distill",
    "bench disk": "bench disk @. --seconds 0.01 --json --out @disk.json --plot @disk.png",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with all that the commands need."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "opt", CONFIGS["opt"])
    for name, family, kind in (("bin", "opt", "bin"), ("shards", "opt", "shards")):
        write_source(folder / name, family, kind)
    model, _ = write_source(folder / "model", "llama", "gguf-Q8_0")
    model.rename(folder / "model.gguf")
    (folder / "text").write_text(TOKENIZER_TEXT * 40)
    (folder / "short").write_text(TOKENIZER_TEXT[:150])
    question = {"context": "The river", "choices": [" rose", " sang"], "answer": 0}
    (folder / "choices").write_text(json.dumps(question) + "\n")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    for words in (
        "convert @opt @store",
        "convert @opt @told",
        PREDICTOR + "@told",
        "record @opt --ids 2,5,7 --out @old.safetensors",
        LM + "@old-lm",
        DRAFTER + "@old-drafter",
    ):
        seen = run(words, folder)
        assert seen[0] == 0, (words, seen)
    shutil.rmtree(folder / "cache")
    shutil.rmtree(folder / "old-lm.training")
    return folder


def run(command, cwd):
    """Exit code, standard output and the last line of standard error."""
    os.chdir(cwd)
    os.environ["XDG_CACHE_HOME"] = str(cwd / "cache")
    out, err = io.StringIO(), io.StringIO()
    measure = disk.measure_disk
    disk.measure_disk = partial(measure, file_bytes=1 << 20, chunks=(4096,), threads=(1, 2))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(cwd / w[1:]) if w[0] == "@" else w for w in command.split()])
    except SystemExit as error:
        code = error.code
    except BaseException:
        code, _ = 70, err.write(traceback.format_exc())
    finally:
        disk.measure_disk = measure
    lines = err.getvalue().splitlines()
    return code, out.getvalue(), lines[-1] if lines else "", err.getvalue()


CHANGING = re.compile(  # what differs from run to run
    r'"(seconds|prompt_seconds|tokens_per_second|peak_dram_bytes|draft_seconds|out|store)": '
    r'("[^"]*"|[-\d.e]+|null)|"flash": \{.*?\}\}?'
)


def same_output(command, text):
    """Standard output without what differs from run to run."""
    if command.startswith("bench"):
        return ""
    return CHANGING.sub("", re.sub(r"/\S*/(trial|reference)/", "/", text))


def tree(cwd):
    """What lies in a place, without the cache: dict of names -> digests."""
    found = {}
    for path in sorted(cwd.rglob("*")):
        name = str(path.relative_to(cwd))
        if name.startswith("cache") or not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".json" or ".training" in name:
            content = CHANGING.sub("", content.decode("utf-8", "replace")).encode()
            content = re.sub(rb'"(sha256|command|name|date)": "[^"]*"', b"", content)
        if name.startswith("disk.") or name.endswith("training_curve.json"):
            content = b"some"
        if name.endswith("model.safetensors") and name.startswith(("new-lm", "old-lm")):
            content = b"trained"
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def judge(command, cwd, before, reference, seen):
    """What is wrong with how a command ended, or ''."""
    code, out, last, err = seen
    after = {name: of for name, of in tree(cwd).items() if ".training/" not in name}
    if "Traceback" in err or code not in (0, 2):
        return f"exit {code}: {err[-600:]}"
    left = [name for name in after if UNFINISHED.fullmatch(Path(name).name) or ".part/" in name]
    if left:
        return f"left behind: {left}"
    if code == 0:
        if same_output(command, out) != reference["out"]:
            return f"other output: {out[:300]}"
        return (
            "" if after == reference["tree"] else f"other files: {differ(after, reference['tree'])}"
        )
    if not last.startswith("tinyflash: "):
        return f"no sentence: {last}"
    if not re.search(r"[ ']/", last):  # all paths are whole ones
        return f"no file is named: {last}"
    if after not in (before, reference["tree"]):
        return f"half done: {differ(after, before)} ({last})"
    return ""


def differ(one, other):
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def in_child(work):
    """What a function returns in a child process, by way of JSON."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = json.dumps(work())
        except BaseException:
            answer = json.dumps({"verdict": traceback.format_exc(), "kind": "crash"})
        with os.fdopen(write, "w") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else {"verdict": "the process ended", "kind": "crash"}


def trial(command, cwd, before, reference, fail, code):
    """Run a command of which one call fails, then again without; what came of both."""
    with Calls(fail, code) as calls:
        seen = run(command, cwd)
    if calls.failed is None:
        return {"kind": "none"}
    verdict = judge(command, cwd, before, reference, seen)
    if not verdict:
        kind = "refused" if seen[0] else "right"
        whole = {name: of for name, of in tree(cwd).items() if ".training/" not in name}
        if not ("@out" in command or "@new-drafter" in command) or whole == before:  # OUT is new
            again = run(command, cwd)
            verdict = judge(command, cwd, before, reference, again)
            if again[0] != 0 or verdict:
                kind, verdict = "wrong", f"afterwards: {verdict or again[2]}"
    else:
        kind = "traceback" if "Traceback" in verdict or "exit 70" in verdict else "wrong"
    sentence = seen[2].replace(str(cwd), "")
    return {"kind": kind, "verdict": verdict, "at": calls.failed, "sentence": sentence}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_call_fails_once(place, tmp_path, name):
    command = COMMANDS[name]

    def copy(label):
        return Path(shutil.copytree(place, tmp_path / str(label), symlinks=True))

    def first():
        cwd = copy("reference")
        warm = copy("warm")
        run(command, warm)  # imports what it imports
        with Calls() as calls:
            seen = run(command, cwd)
        sites = sorted({f"{what} {site}" for what, site in calls.sites})
        return {"seen": seen, "count": calls.count, "sites": sites, "tree": tree(cwd)}

    base = in_child(first)
    assert base["seen"][0] == 0, base["seen"]
    whole = {name: of for name, of in base["tree"].items() if ".training/" not in name}
    reference = {"out": same_output(command, base["seen"][1]), "tree": whole}
    before = {name: of for name, of in tree(place).items() if ".training/" not in name}
    found, bad = Counter(), []
    for fail in range(1, 2 * base["count"] + 50):
        codes = CODES if ALL_CODES else [CODES[(fail + len(name)) % len(CODES)]]
        for code in codes:
            cwd = copy("trial")
            said = in_child(partial(trial, command, cwd, before, reference, fail, code))
            shutil.rmtree(cwd)
            if said["kind"] == "none":
                break
            found[said["kind"]] += 1
            if said["kind"] not in ("refused", "right"):
                bad.append((fail, errno.errorcode[code], said))
        if said["kind"] == "none":
            break
    found["sites"] = len(base["sites"])
    found["calls"] = base["count"]
    TOTAL.update(found)
    print(f"\n{name}: {dict(found)}", file=sys.__stderr__)
    for fail, code, said in bad:
        print(f"  call {fail} {code} {said.get('at')}: {said['verdict']}", file=sys.__stderr__)
    assert not bad, f"{len(bad)} of {sum(found.values())}"


def test_the_sum(place):
    """Last: what came of all calls together."""
    print(f"\nall: {dict(TOTAL)}", file=sys.__stderr__)
