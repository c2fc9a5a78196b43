"""Spoils files at random and looks at what becomes of them; prints the figures as JSON.

    python tests/campaign/mutations.py [HOW MANY] [SEED] [PART OF A SCENE'S NAME]

Each mutation is one file of one scene (mutation_scenes.py), read by a command in a process of its
own with little memory, which is killed after 20 seconds. It is refused in one sentence, or right:
nothing that is looked at has changed, or it changed as an independent program says
(mutation_judges.py). All else is a fault, and the first of each kind are printed.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SECONDS = 20  # for one mutation
MEMORY = 700_000_000  # bytes beyond what the process has when it begins
WORKERS = 2


class Worker:
    """A process that answers one task at a time, and is replaced when it hangs or dies."""

    def __init__(self, script, base, memory=None):
        self.command = [sys.executable, str(HERE / script), str(base)]
        self.command += [] if memory is None else [str(memory)]
        self.process = None
        self.complaints = tempfile.TemporaryFile()  # what it writes as it dies

    def ask(self, task, seconds=SECONDS):
        """The answer to a task, or an outcome of `hang` or `crash`."""
        if self.process is None:
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "always"}
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self.complaints, env=environment,
            )  # fmt: skip
            seconds += 60  # to begin
        self.process.stdin.write((json.dumps(task) + "\n").encode())
        self.process.stdin.flush()
        answer = b""
        end = time.monotonic() + seconds
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], end - time.monotonic())
            piece = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                self.close()
                self.complaints.seek(0)
                last = self.complaints.read()[-500:].decode(errors="replace")
                if ready and "what is not spoiled is refused" in last:
                    raise RuntimeError(f"{task['scene']} cannot be spoiled: {last}")
                return {"outcome": "crash" if ready else "hang", "said": last}
            answer += piece
        return json.loads(answer)

    def close(self):
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def drawn(count, seed, part=""):
    """Tasks at random: scenes by their shares, and for each a seed of its own."""
    sys.path.insert(0, str(HERE))
    from mutation_scenes import scenes

    known = {name: scene for name, scene in scenes().items() if part in name}
    shares = np.array([scene.share for scene in known.values()], dtype=np.float64)
    rng = np.random.default_rng(seed)
    names = rng.choice(list(known), count, p=shares / shares.sum())
    return [
        {"scene": str(name), "seed": int(number)}
        for name, number in zip(names, rng.integers(1 << 40, size=count), strict=True)
    ]


def answers_of(tasks, make, seconds=SECONDS):
    """What workers answer to the tasks, in their order."""

    def share(first):
        worker = make()
        try:
            return [worker.ask(task, seconds) for task in tasks[first::WORKERS]]
        finally:
            worker.close()

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(share, range(WORKERS)))
    return [parts[i % WORKERS][i // WORKERS] for i in range(len(tasks))]


def campaign(count, seed, part=""):
    """Run so many mutations; returns the figures and what went wrong, as lists of dictionaries."""
    from mutation_scenes import write_base

    tasks = drawn(count, seed, part)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_base(base)
        answers = answers_of(tasks, lambda: Worker("mutation_worker.py", base, MEMORY))
        changed = [i for i, answer in enumerate(answers) if answer["outcome"] == "changed"]
        judged = answers_of(
            [tasks[i] for i in changed], lambda: Worker("mutation_judges.py", base), 60
        )
    for i, answer in zip(changed, judged, strict=True):
        answers[i] = answer
    figures = Counter(answer["outcome"] for answer in answers)
    figures["right"] = figures.pop("same", 0) + figures.pop("judged right", 0)
    bad = [
        task | answer
        for task, answer in zip(tasks, answers, strict=True)
        if answer["outcome"] not in ("refused", "same", "judged right")
    ]
    return figures, bad


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    figures, bad = campaign(count, seed, sys.argv[3] if len(sys.argv) > 3 else "")
    for fault in bad:
        print(json.dumps(fault), file=sys.stderr)
    print(json.dumps({"mutations": count, "seed": seed, **figures}))
    sys.exit(1 if bad else 0)
