"""Interrupts at every line, between bytecodes, and by signals; see interrupts.py.

    nice pytest -m campaign -s tests/campaign/test_campaign_interrupts.py --basetemp DIR

DIR should be on a disk that has direct reads. EVERY=1 in the environment takes every point instead
of every tenth.
One line for each combination says how many points there were, and what came of them.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers_interrupts import write_stores

CHILD = Path(__file__).parent / "interrupts.py"
PLAIN = [(mode, "none", "small") for mode in ("dense", "naive", "hybrid", "predictor", "window")]
DRAFTED = [
    ("dense", "draft", "small"),
    ("hybrid", "redrafter", "small"),
    ("window", "ngram", "small"),
    ("all", "none", "small"),
    ("all", "ngram", "small"),
    ("all", "draft", "small"),
    ("all", "redrafter", "small"),
]
OTHER = [("hybrid", "none", "small-threads"), ("all", "none", "small-threads")]
LARGE = [("hybrid", "none", "wide"), ("all", "draft", "wide")]
ALL = [*PLAIN, *DRAFTED, *OTHER, *LARGE]
TRIALS = [
    *(("lines", *combination) for combination in [*PLAIN, *DRAFTED, *OTHER]),
    *(("events", *combination) for combination in ALL),
    *(("signals", *combination) for combination in ALL),
    *(("storms", *combination) for combination in ALL),
    *(("threads", *combination) for combination in OTHER),
    ("threads", "all", "none", "small"),
    ("threads", "dense", "none", "small"),
]
TOTAL = Counter()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield write_stores(folder)
    print("\nall:", dict(TOTAL))


def run(folder, kind, mode, drafter, store):
    """Counter of results, and the lines that are neither right nor a refusal.

    A process that hangs is ended by itself; another one begins with the next point.
    """
    counts, wrong, first = Counter(), [], 0
    every = os.environ.get("EVERY", "10")
    while True:
        arguments = [folder, mode, drafter, store, kind, str(first), every]
        child = subprocess.run(
            [sys.executable, str(CHILD), *map(str, arguments)], capture_output=True, text=True
        )
        lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
        points = [line for line in lines if "point" in line]
        for line in points:
            result = line["result"].partition(":")[0].partition(" ")[0]
            result = "not reached" if line["result"] == "not hit" else result
            counts[result] += 1
            if result not in ("right", "refused", "not reached"):
                wrong.append(line)
        if child.returncode == 0:
            return counts, wrong
        counts["hang or crash"] += 1
        last = points[-1]["point"] if points else first - int(every)
        wrong.append({"after": last, "said": child.stderr[-3000:]})
        first = last + 2 * int(every)
        if counts["hang or crash"] > 5 or not lines:
            return counts, wrong


@pytest.mark.campaign
@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: "-".join(trial))
def test_a_model_is_right_after_interruptions(folder, trial):
    counts, wrong = run(folder, *trial)
    TOTAL.update(counts)
    print(f"\n{' '.join(trial)}: {sum(counts.values())} points, {dict(counts)}", flush=True)
    assert not wrong, "\n".join(map(str, wrong[:5]))
    assert counts["right"] + counts["refused"] > 0
