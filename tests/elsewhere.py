"""Takes away what other systems lack, so that Linux shows what Windows and macOS would.

    TINYFLASH_WITHOUT=all PYTHONPATH=tests pytest -p elsewhere     the fast tests without all of it
    TINYFLASH_WITHOUT=fcntl,os.preadv PYTHONPATH=tests pytest -p elsewhere

What stays different: paths have slashes, and ends of lines are Linux's.
"""

import mmap
import os
import re
import sys
import warnings
from pathlib import Path

MODULES = ("fcntl", "resource", "termios", "tty", "readline", "pwd", "grp", "syslog")
NAMES = {
    "os": (
        *("preadv", "pread", "readv", "pwrite", "pwritev", "writev", "sendfile", "mkfifo"),
        *("O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_NOATIME"),
        *("posix_fallocate", "posix_fadvise", "fdatasync", "fchmod", "fchown", "chown"),
        *("fork", "forkpty", "register_at_fork", "setsid", "killpg", "getpgid", "nice"),
        *("getuid", "geteuid", "getgid", "getgroups", "sched_getaffinity", "getloadavg"),
    ),
    "signal": (
        *("SIGALRM", "SIGVTALRM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGCHLD"),
        *("alarm", "setitimer", "getitimer", "ITIMER_REAL", "pthread_sigmask", "pthread_kill"),
    ),
    "mmap": tuple(name for name in dir(mmap) if name.startswith(("MADV_", "MAP_"))),
    "time": ("clock_gettime", "clock_gettime_ns"),
}
BY_NAME = {f"{module}.{name}" for module, names in NAMES.items() for name in names}
HABITS = ("mmap.madvise", "binary", "open files")  # what Windows does in another way
EVERYTHING = (*MODULES, *sorted(BY_NAME), *HABITS)


def take_away(things):
    """Make Python look as if the system lacked some of EVERYTHING."""
    for thing in things:
        module, _, name = thing.partition(".")
        if thing in MODULES:
            sys.modules[thing] = None
        elif thing in HABITS:
            {"mmap.madvise": no_madvise, "binary": text_files, "open files": keep_open}[thing]()
        elif hasattr(__import__(module), name):
            delattr(__import__(module), name)


def no_madvise():
    """Mappings of memory as on Windows: nobody can be advised about them."""
    original = mmap.mmap

    class Mapping(original):
        madvise = property(lambda self: object.__getattribute__(self, "there is no madvise"))

    mmap.mmap = Mapping


def text_files():
    """Files that tinyflash opens without O_BINARY are refused: they would change ends of lines."""
    original, binary = os.open, 1 << 30
    os.O_BINARY = binary

    def opened(path, flags, *arguments, **settings):
        ours = sys._getframe(1).f_globals.get("__name__", "").startswith("tinyflash")
        no_text = flags & binary or path == os.devnull or os.path.isdir(path)
        if ours and not no_text:
            raise AssertionError(f"{path} is opened as a text")
        return original(path, flags & ~binary, *arguments, **settings)

    os.open = opened


def keep_open():
    """Files that this process has open or mapped cannot be deleted, replaced or renamed."""

    read, listdir, readlink = open, os.listdir, os.readlink  # a test may put others there

    def in_use():
        with read("/proc/self/maps", "rb") as maps:
            used = {line.split(maxsplit=5)[-1].decode().strip() for line in maps}
        for number in listdir("/proc/self/fd"):
            try:
                used.add(readlink(f"/proc/self/fd/{number}"))
            except OSError:
                continue
        return used

    def refusing(function, count):
        def refused(*paths, **settings):
            named = [os.path.abspath(os.fspath(path)) for path in paths[:count]]
            for used in in_use() - {path for path in named if os.path.isdir(path)}:
                if any(used == path or used.startswith(path + os.sep) for path in named):
                    raise PermissionError(13, "it is open in this process", used)
            return function(*paths, **settings)

        return refused

    for name, count in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1)):
        setattr(os, name, refusing(getattr(os, name), count))


def encodings_are_named():
    """Whoever in tinyflash leaves a text's encoding to the system is told so by an error."""
    assert sys.flags.warn_default_encoding, "run this Python with -X warn_default_encoding"
    warnings.filterwarnings("error", category=EncodingWarning, module=r"tinyflash\b")


def used():
    """The things that tinyflash speaks of; what it never names it cannot miss."""
    package = Path(__file__).parents[1] / "tinyflash"
    text = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    words = set(re.findall(r"\w+", text))
    named = [thing for thing in EVERYTHING if thing.rpartition(".")[2] in words]
    return [*named, *(set(HABITS) - set(named))]


def pytest_configure():
    """What TINYFLASH_WITHOUT names is taken away: `all` that tinyflash speaks of, or some."""
    text = os.environ.get("TINYFLASH_WITHOUT", "")
    all_but_pytests = [thing for thing in used() if thing != "os.getuid"]  # it asks for that
    take_away(all_but_pytests if text == "all" else filter(None, text.split(",")))
