"""Threads, texts by turns and forks; see shared.py.

    nice pytest -m campaign -s tests/campaign/test_campaign_shared.py

One line for each combination says what came of how many texts. ROUNDS=40 in the environment
makes it ten times as long.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers_interrupts import DRAFTERS, MODES, write_stores

CHILD = Path(__file__).parent / "shared.py"
KINDS = ("threads", "own", "interrupted", "company", "turns", "forks", "pool")
COMBINATIONS = [(mode, "none") for mode in MODES] + [("all", drafter) for drafter in DRAFTERS[1:]]
TOTAL = Counter()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield write_stores(folder, ["small"])
    print("\nall:", dict(TOTAL))


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda pair: "-".join(pair))
def test_a_shared_model_is_right(folder, combination, kind):
    rounds = os.environ.get("ROUNDS", "4")
    arguments = [folder, *combination, kind, rounds]
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(CHILD), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, error = child.communicate(timeout=120 + 20 * int(rounds))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)  # which says where it hangs
        os.killpg(child.pid, signal.SIGKILL)
        out, error = child.communicate()
    assert child.returncode == 0, error.decode()[-3000:]
    result = json.loads(out.splitlines()[-1])
    TOTAL.update(result["counts"])
    print(f"\n{kind} {' '.join(combination)}: {result['counts']}", flush=True)
    assert not result["wrong"], result["wrong"]
    assert result["counts"]["right"] > 0
