"""Takes mutations from standard input, one a line, and says what became of each.

    python tests/campaign/mutation_worker.py BASE MEMORY

in : {"scene": "opt/config.json", "seed": 17}
out: {"outcome": …, "said": …}, outcome one of
       refused    exit code 2 and one sentence
       same       accepted, and nothing that is looked at has changed
       changed    accepted, and something else came out: for mutation_judges.py to judge
       fault      another exit code, an exception, or more lines than one sentence
       memory     more than MEMORY bytes of address space were wanted
"""

import contextlib
import io
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from mutation_scenes import main, same, scenes


def spoiled(base, scene, seed, folder):
    """Put a copy of the scene into `folder`, with its file spoiled; returns the bytes of it."""
    shutil.copytree(base / scene.folder, folder)
    file = folder / scene.file
    rng = np.random.default_rng(seed)
    if rng.random() < 0.01:
        file.unlink()
        if rng.random() < 0.5:
            file.mkdir()
        return b""
    content = scene.mutate(file.read_bytes(), rng)
    file.write_bytes(content)
    return content


def command_of(scene, seed):
    """The command that this mutation is read by."""
    return scene.commands[np.random.default_rng([seed, 1]).integers(len(scene.commands))]


def run(command, folder):
    """Run a command in this process; returns exit code, standard output and error."""
    arguments = [str(folder / a[1:]) if a.startswith("@") else a for a in command]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
    return code, out.getvalue(), err.getvalue()


def outcome_of(scene, seed, folder, expected):
    """What becomes of a spoiled copy in `folder`, as (outcome, what was said)."""
    code, out, err = run(command_of(scene, seed), folder)
    told = [line for line in err.splitlines() if line.startswith("tinyflash: ")]
    if code == 2:
        tidy = len(told) == 1 and not out.strip() and err.splitlines()[-1] == told[0]
        return ("refused" if tidy and len(told[0]) < 1200 else "fault"), err[-600:]
    if "Memory was not enough" in err:
        return "memory", err[-600:]
    if code not in (0, 1) or "Warning" in err:
        return "fault", f"exit code {code}: {err[-600:]}"
    try:
        looked = seen_in(out) if scene.judge in ("recordings", "choices") else scene.look(folder)
    except (ValueError, OSError) as error:
        return "refused", f"by load: {error}"
    return ("same" if same(looked, expected) else "changed"), repr(looked)[:300]


def expectation(scene, folder):
    """What is looked at, or what the command shows, of a copy as it is, which must be accepted."""
    if scene.folder == "adapter":  # it is refused as it is, and opens where the adapter is gone
        (folder / scene.file).unlink()
        return scene.look(folder)
    for command in scene.commands:
        code, out, err = run(command, folder)
        assert code == 0, f"what is not spoiled is refused: {err}"
        for written in ("new.safetensors", "new.json", "new.flash"):
            path = folder / written
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return seen_in(out) if scene.judge in ("recordings", "choices") else scene.look(folder)


def seen_in(out):
    """The result that a command shows, without what differs from run to run."""
    shown = json.loads(out.splitlines()[-1])
    return {"shown": {key: v for key, v in shown.items() if key not in ("model", "first")}}


def serve(base, memory):
    """Answer every line of standard input by one line of standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write there
    tasks, sys.stdin = os.fdopen(os.dup(0)), open(os.devnull)
    known, expected = scenes(), {}
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in tasks:
        task = json.loads(line)
        scene = known[task["scene"]]
        with tempfile.TemporaryDirectory() as parent:
            os.environ["XDG_CACHE_HOME"] = f"{parent}/cache"
            if task["scene"] not in expected:
                copy = Path(shutil.copytree(base / scene.folder, Path(parent) / "as_it_is"))
                expected[task["scene"]] = expectation(scene, copy)
            folder = Path(parent) / "spoiled"
            spoiled(base, scene, task["seed"], folder)
            try:
                outcome, said = outcome_of(scene, task["seed"], folder, expected[task["scene"]])
            except MemoryError as error:
                outcome, said = "memory", repr(error)
            except BaseException as error:  # a panic of a native library is no Exception
                outcome, said = "fault", f"{type(error).__name__}: {error}"[:600]
        answers.write(json.dumps({"outcome": outcome, "said": said}) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
