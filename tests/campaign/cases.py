"""Runs every `run.sh` of the shared cases and judges what it printed: one line a case.

    tests/campaign/cases.sh DIR [PART OF A NAME…] [--show]

DIR holds `checkpoints/` and `reliability/`. They are copied first, because many write beside
themselves. The package tested is the one of this repository, whatever is installed; the Python is
the one that runs this file. `--show` prints what each case said. Exit code 0: every case gives
what its expected.txt says.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cases_judged import JUDGES

REPOSITORY = Path(__file__).parents[2]
SECONDS = 900  # for one case
# The cases name modules by where they were when the cases were written.
MOVED = {
    r"tinyflash\.flash\.read_queue": "tinyflash.flash.reading.read_queue",
    r"tinyflash\.flash\.verified": "tinyflash.flash.store.verified",
    r"tinyflash\.flash\.convert": "tinyflash.flash.store.convert",
    r"tinyflash\.flash\.store import open_store": "tinyflash.flash.store.directory import open_store",  # noqa: E501
    r"flash\.reader\.queue": "flash.reader.by_queue.queue",
    r"PYTHONPATH=\$PWD/\.\./common": f"PYTHONPATH=$PWD/../common:{REPOSITORY}",
}


def copied(cases, directory):
    """A copy of the cases in which today's modules, and this repository, are named."""
    for part in ("checkpoints", "reliability"):
        shutil.copytree(cases / part, directory / part)
    for script in directory.glob("*/*/run.sh"):
        script.chmod(0o644)
        text = script.read_text()
        for old, new in MOVED.items():
            text = re.sub(old, lambda _, new=new: new, text)
        script.write_text(text)
    return sorted(directory.glob("*/*/run.sh"))


def run(script):
    """What a case prints, both streams as one text; ends with HANGS if its time is over."""
    for parent in (script.parent.parent, script.parent):
        parent.chmod(0o755)
    binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": binaries, "PY": sys.executable}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1"}
    running = subprocess.Popen(
        ["bash", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        out, _ = running.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        out = running.communicate()[0] + b"\nHANGS\n"
    return out.decode("utf-8", "backslashreplace")


def judged(name, out):
    """What is wrong with the output of a case; '' if nothing is."""
    if name.startswith("c"):  # Python without `try`: a ValueError is how it is refused
        out = re.sub(r"Traceback \(most.*?^ValueError: ", "refused: ", out, flags=re.M | re.S)
    if "Traceback (most recent call last)" in out:
        return "a traceback"
    if missing := re.search("command not found|ModuleNotFoundError.*", out):
        return f"not run: {missing.group()}"
    if "HANGS" in out:
        return "hangs"
    try:
        return JUDGES[name](out) or ""
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # other lines than known
        return f"the output cannot be judged ({type(error).__name__}: {error})"


def main():
    """Run the cases that were asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="PART OF A NAME")
    parser.add_argument("--show", action="store_true", help="print what each case said")
    options = parser.parse_args()
    wrong = asked = 0
    with tempfile.TemporaryDirectory(prefix="cases-") as temporary:
        for script in copied(options.cases, Path(temporary)):
            name = f"{script.parent.parent.name[0]}{script.parent.name}"
            if options.names and not any(part in name for part in options.names):
                continue
            begun = time.monotonic()
            out = run(script)
            why = judged(name[:3], out)
            asked, wrong = asked + 1, wrong + bool(why)
            seconds = f"{time.monotonic() - begun:5.0f} s"
            print(f"{'WRONG' if why else 'right'} {seconds}  {name}  {why}", flush=True)
            if options.show:
                print("    " + ascii(out).replace("\\n", "\n    ")[1:-1], flush=True)
    print(f"{asked - wrong} of {asked} cases give what their expected.txt says")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
