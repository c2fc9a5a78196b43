"""FlashReader: the right bytes at any alignment, exact counts, no wrong data after a fault."""

import errno
import os
import threading
import time
from contextlib import suppress
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyflash.flash.counters import ReadCounters
from tinyflash.flash.reading import direct_io, reads
from tinyflash.flash.reading.direct_io import BLOCK, aligned_empty
from tinyflash.flash.reading.read_queue import open_queue
from tinyflash.flash.reading.reader import FlashReader, read_plainly

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE_BYTES = 40 * BLOCK + 1234  # its end is in the middle of a block
ROW_BYTES = (1, 768, 1536, 2304, 4096, 8192, 12_288, 16_384)
REAL_OPEN, REAL_READ = os.open, direct_io.read_some
linux_only = pytest.mark.skipif(
    fcntl is None or not hasattr(os, "O_DIRECT"), reason="there are no direct reads to refuse"
)


def refuse_direct(path, flags, *rest, **more):
    """What tmpfs does on older kernels."""
    if flags & getattr(os, "O_DIRECT", 0):
        raise OSError(errno.EINVAL, "Invalid argument")
    return REAL_OPEN(path, flags, *rest, **more)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).integers(0, 256, FILE_BYTES, dtype=np.uint8)


@pytest.fixture
def path(tmp_path, data):
    data.tofile(tmp_path / "ffn")
    return tmp_path / "ffn"


@pytest.fixture(scope="module", params=["queued", "direct", "plain"])
def opened(request, tmp_path_factory, data):
    """A reader of the file: by Linux's queue where there is one, by direct reads, by plain ones."""
    path = tmp_path_factory.mktemp("reader") / "ffn"
    data.tofile(path)
    refusal = refuse_direct if request.param == "plain" else REAL_OPEN
    queue = open_queue() if request.param == "queued" else None
    with mock.patch.object(os, "open", refusal):
        opened = FlashReader(path, threads=3, queue=queue)
    with opened:
        yield opened


def destination(nbytes, misplaced):
    """Memory of bytes 0xEE, on a page or `misplaced` bytes off it, and whether it is intact."""
    memory = aligned_empty((nbytes + 2 * BLOCK,), np.uint8)
    memory.fill(0xEE)
    inside = slice(BLOCK + misplaced, BLOCK + misplaced + nbytes)

    def intact():
        outside = np.ones(memory.shape, dtype=bool)
        outside[inside] = False
        return bool((memory[outside] == 0xEE).all())

    return memory[inside], intact


def blocks_touched(begins, nbytes):
    return {block for b in begins for block in range(b // BLOCK, -(-(b + nbytes) // BLOCK))}


# The right bytes


@settings(deadline=None, max_examples=150)
@given(
    base=st.one_of(st.sampled_from([0, BLOCK, 2 * BLOCK]), st.integers(0, 20_000)),
    row_bytes=st.one_of(st.sampled_from(ROW_BYTES), st.integers(1, 20_000)),
    misplaced=st.sampled_from([0, 0, 1, 512]),
    largest=st.sampled_from([BLOCK, 3 * BLOCK, 1 << 20]),
    seed=st.integers(0, 1 << 30),
)
def test_rows_are_what_a_plain_read_gives(opened, data, base, row_bytes, misplaced, largest, seed):
    rng = np.random.default_rng(seed)
    there = (FILE_BYTES - base) // row_bytes
    rows = rng.permutation(there)[: rng.integers(0, min(there, 60) + 1)]
    out, intact = destination(len(rows) * row_bytes, misplaced)
    out = out.reshape(len(rows), row_bytes)
    opened.counters.take()

    with mock.patch.object(reads, "LARGEST_READ", largest):
        opened.read_rows(base, row_bytes, rows, out)

    matrix = data[base : base + there * row_bytes].reshape(there, row_bytes)
    assert np.array_equal(out, matrix[rows])
    assert intact(), "something was written beside the destination"
    counters = opened.counters.take()
    assert counters.bytes_wanted == len(rows) * row_bytes
    assert counters.bytes_read == sum(n * size for size, n in counters.chunk_sizes.items())
    assert counters.reads == sum(counters.chunk_sizes.values())
    if largest == 1 << 20 and len(rows):  # nothing is cut: each block comes once
        blocks = blocks_touched((base + rows * row_bytes).tolist(), row_bytes)
        behind_the_end = BLOCK - FILE_BYTES % BLOCK if FILE_BYTES // BLOCK in blocks else 0
        assert counters.bytes_read == len(blocks) * BLOCK - behind_the_end
        assert counters.reads == sum(block - 1 not in blocks for block in blocks)


@settings(deadline=None, max_examples=60)
@given(
    offset=st.one_of(st.sampled_from([0, BLOCK]), st.integers(0, FILE_BYTES)),
    nbytes=st.one_of(st.just(FILE_BYTES), st.integers(0, FILE_BYTES)),
    misplaced=st.sampled_from([0, 1]),
    largest=st.sampled_from([BLOCK, 5 * BLOCK, 1 << 20]),
)
def test_blocks_are_what_a_plain_read_gives(opened, data, offset, nbytes, misplaced, largest):
    nbytes = min(nbytes, FILE_BYTES - offset)
    out, intact = destination(nbytes, misplaced)
    with mock.patch.object(reads, "LARGEST_READ", largest):
        opened.read_block(offset, nbytes, out)
    assert np.array_equal(out, data[offset : offset + nbytes])
    assert intact()


@settings(deadline=None, max_examples=100)
@given(
    cuts=st.sets(
        st.one_of(st.integers(0, FILE_BYTES), st.integers(0, 40).map(BLOCK.__mul__)), min_size=2
    ),
    gap=st.integers(0, 100),
    aligned=st.booleans(),
    largest=st.sampled_from([BLOCK, 3 * BLOCK, 1 << 20]),
    seed=st.integers(0, 1 << 30),
)
def test_pieces_are_what_read_plainly_gives(opened, cuts, gap, aligned, largest, seed):
    """Pieces of any length, in any order, some of the file left out, with gaps between places."""
    rng = np.random.default_rng(seed)
    cuts = np.array(sorted(cuts), dtype=np.int64)
    chosen = rng.permutation(len(cuts) - 1)[: 1 + rng.integers(len(cuts))]
    begins, ends = cuts[chosen], cuts[chosen + 1]
    room = ends - begins + gap
    room += -room % BLOCK * aligned
    places = np.cumsum(room) - room
    out, intact = destination(int(room.sum()), misplaced=0 if aligned else gap)
    expected = np.full(len(out), 0xEE, dtype=np.uint8)
    read_plainly(opened.path, begins, ends, places, expected)
    with mock.patch.object(reads, "LARGEST_READ", largest):
        counted = opened.read_extents(begins, ends, places, out)
    assert np.array_equal(out, expected) and intact()
    assert counted.bytes_wanted == (ends - begins).sum()


def test_pieces_of_different_lengths_go_where_they_belong(path, data):
    begins = np.array([90_000, 5, 4096], dtype=np.int64)
    ends = np.array([90_001, 4000, 12_288], dtype=np.int64)
    places = np.array([0, 1, 4000], dtype=np.int64)
    out = np.zeros(13_000, dtype=np.uint8)
    with FlashReader(path) as opened:
        opened.read_extents(begins, ends, places, out)
    expected = np.concatenate([data[90_000:90_001], data[5:4000]])
    assert np.array_equal(out[:3996], expected)
    assert np.array_equal(out[4000:12_192], data[4096:12_288])
    assert not out[3996:4000].any() and not out[12_192:].any()


# How it reads


class Spy:
    """Stands in for `read_some`; notes (offset, bytes asked for, number of buffers)."""

    def __init__(self):
        self.calls = []

    def __call__(self, descriptor, buffers, offset):
        self.calls.append((offset, sum(len(buffer) for buffer in buffers), len(buffers)))
        return REAL_READ(descriptor, buffers, offset)


def test_counts_are_exact(path):
    with FlashReader(path) as opened:
        rows = np.array([6, 0, 1], dtype=np.int64)
        opened.read_rows(BLOCK, 16_384, rows, np.empty((3, 16_384), dtype=np.uint8))
        counted = opened.counters.take()
        assert counted == ReadCounters(3 * 16_384, 3 * 16_384, 2, counted.chunk_sizes, mock.ANY)
        assert counted.chunk_sizes == {32_768: 1, 16_384: 1} and counted.seconds > 0
        assert opened.counters == ReadCounters()

        rows = np.array([0, 2, 21], dtype=np.int64)  # two in block 0; bytes 16128 to 16895: 3, 4
        opened.read_rows(0, 768, rows, np.empty((3, 768), dtype=np.uint8))
        opened.read_block(FILE_BYTES - 1235, 1235, np.empty(1235, dtype=np.uint8))
        counted = opened.counters.take()
        assert counted.chunk_sizes == {BLOCK: 1, 2 * BLOCK: 1, BLOCK + 1234: 1}
        assert counted.bytes_wanted == 3 * 768 + 1235
        assert counted.bytes_read == 4 * BLOCK + 1234 and counted.reads == 3


def test_reads_are_sorted_and_scatter_rows_straight_into_aligned_memory(path, data, monkeypatch):
    out = aligned_empty((4, 8192), np.uint8)
    with FlashReader(path, threads=1) as opened:
        spy = Spy()
        monkeypatch.setattr(direct_io, "read_some", spy)
        opened.read_rows(BLOCK, 8192, np.array([9, 4, 8, 0], dtype=np.int64), out)
        assert spy.calls == [
            (BLOCK, 8192, 1),
            (BLOCK + 4 * 8192, 8192, 1),
            (BLOCK + 8 * 8192, 16_384, 2),  # rows 8 and 9: one read, two destinations
        ]
        assert opened.by_threads.buffers.size == 0, "nothing had to be copied"
    assert np.array_equal(out[2], data[BLOCK + 8 * 8192 : BLOCK + 9 * 8192])


def test_buffers_grow_with_the_reads(path, data):
    with FlashReader(path, threads=64) as opened:
        for nbytes in (10, FILE_BYTES - 1, 10):
            out = np.empty(nbytes, dtype=np.uint8)
            opened.read_block(1, nbytes, out)
            assert np.array_equal(out, data[1 : 1 + nbytes])
            assert opened.counters.take().reads == 1  # in one read, which the buffer must hold


def test_long_runs_are_cut_for_the_threads(path, monkeypatch):
    monkeypatch.setattr(reads, "LARGEST_READ", 4 * BLOCK)
    rows = np.arange(10, dtype=np.int64)
    with FlashReader(path) as opened:
        opened.read_rows(0, 8192, rows, np.empty((10, 8192), dtype=np.uint8))
        assert opened.counters.take().chunk_sizes == {4 * BLOCK: 5}
        opened.read_block(100, 9 * BLOCK, np.empty(9 * BLOCK, dtype=np.uint8))
        assert opened.counters.take().chunk_sizes == {4 * BLOCK: 2, 2 * BLOCK: 1}


def test_as_many_reads_are_in_flight_as_there_are_threads(path, monkeypatch):
    together = threading.Barrier(8)

    def wait_for_the_others(*arguments):
        together.wait(timeout=20)  # BrokenBarrierError if fewer than eight ever come
        return REAL_READ(*arguments)

    with FlashReader(path, threads=8) as opened:
        monkeypatch.setattr(direct_io, "read_some", wait_for_the_others)
        rows = np.arange(16, dtype=np.int64) * 2
        opened.read_rows(0, BLOCK, rows, np.empty((16, BLOCK), dtype=np.uint8))
    assert opened.counters.reads == 16


def test_two_callers_do_not_disturb_each_other(path, data):
    matrix = data[: 200 * 768].reshape(200, 768)
    wrong = []

    def caller(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            rows = rng.permutation(200)[:50]
            out = np.empty((50, 768), dtype=np.uint8)
            opened.read_rows(0, 768, rows, out)
            if not np.array_equal(out, matrix[rows]):
                wrong.append(seed)

    with FlashReader(path, threads=4) as opened:
        callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(3)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
    assert wrong == []


# Faults


class ShortReads:
    """Brings less than was asked for, and rubbish in the rest of the buffers."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, descriptor, buffers, offset):
        got = REAL_READ(descriptor, buffers, offset)
        if got == 0 or self.rng.random() < 0.3:
            return got
        kept = left = int(self.rng.integers(1, got + 1))
        for buffer in buffers:
            np.frombuffer(buffer, dtype=np.uint8)[left:] = 0xAA
            left = max(0, left - len(buffer))
        return kept


@pytest.mark.parametrize("make", [aligned_empty, np.empty])
@pytest.mark.parametrize("row_bytes", [768, 8192])
def test_short_reads_are_continued(path, data, monkeypatch, make, row_bytes):
    there = FILE_BYTES // row_bytes
    rows = np.random.default_rng(1).permutation(there)
    out = make((there, row_bytes), np.uint8)
    monkeypatch.setattr(reads, "LARGEST_READ", 4 * BLOCK)
    with FlashReader(path, threads=4) as opened:
        monkeypatch.setattr(direct_io, "read_some", ShortReads(seed=2))
        opened.read_rows(0, row_bytes, rows, out)
        counted = opened.counters.take()
    assert np.array_equal(out, data[: there * row_bytes].reshape(there, row_bytes)[rows])
    assert counted.bytes_wanted == there * row_bytes
    assert counted.reads == sum(counted.chunk_sizes.values()) > there * row_bytes / (4 * BLOCK) + 5
    assert counted.bytes_read == sum(n * size for size, n in counted.chunk_sizes.items())


def test_a_file_that_gives_one_block_at_a_time_is_read_to_the_end(path, data, monkeypatch):
    def one_block(descriptor, buffers, offset):
        return REAL_READ(descriptor, [buffers[0][:BLOCK]], offset)

    out = np.empty(FILE_BYTES, dtype=np.uint8)
    with FlashReader(path, threads=2) as opened:
        monkeypatch.setattr(direct_io, "read_some", one_block)
        opened.read_block(0, FILE_BYTES, out)
        assert opened.counters.take().chunk_sizes == {BLOCK: 40, 1234: 1}
    assert np.array_equal(out, data)


def test_a_file_that_gives_nothing_is_not_waited_for(path, monkeypatch):
    with FlashReader(path, threads=2) as opened:
        monkeypatch.setattr(direct_io, "read_some", lambda *arguments: 0)
        with pytest.raises(OSError, match="ffn: cannot read at byte 4096: .* brought nothing"):
            opened.read_block(BLOCK, 100, np.empty(100, dtype=np.uint8))


def test_an_error_stops_all_threads_and_the_reader_can_go_on(path, data, monkeypatch):
    calls = []

    def broken(descriptor, buffers, offset):
        calls.append(offset)
        raise OSError(errno.EIO, "Input/output error")

    rows = np.arange(18, dtype=np.int64) * 2
    out = np.empty((18, BLOCK), dtype=np.uint8)
    with FlashReader(path, threads=3) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(direct_io, "read_some", broken)
            with pytest.raises(OSError, match="ffn: cannot read at byte .*Input/output error"):
                opened.read_rows(0, BLOCK, rows, out)
        assert len(calls) <= 3, "each thread stops at the first error"
        assert opened.counters == ReadCounters()

        opened.read_rows(0, BLOCK, rows, out)
        assert np.array_equal(out, data[: 36 * BLOCK].reshape(36, BLOCK)[rows])


def test_a_single_error_among_many_reads_is_not_lost_and_stops_the_others(path, monkeypatch):
    calls = []

    def broken(descriptor, buffers, offset):
        calls.append(offset)
        if offset == 2 * BLOCK:
            raise OSError(errno.EIO, "Input/output error")
        time.sleep(0.05)  # the others would be at work for half a second
        return REAL_READ(descriptor, buffers, offset)

    rows = np.arange(20, dtype=np.int64) * 2
    with FlashReader(path, threads=3) as opened:
        monkeypatch.setattr(direct_io, "read_some", broken)
        with pytest.raises(OSError, match="at byte 8192: Input/output error"):
            opened.read_rows(0, BLOCK, rows, np.empty((20, BLOCK), dtype=np.uint8))
        assert len(calls) < 20


def test_a_file_cut_during_a_read_is_refused(path, monkeypatch):
    calls = []

    def cut_at_the_third(descriptor, buffers, offset):
        calls.append(offset)
        if len(calls) == 3:
            os.truncate(path, 10 * BLOCK + 7)
        return REAL_READ(descriptor, buffers, offset)

    rows = np.arange(20, dtype=np.int64) * 2
    with FlashReader(path, threads=1) as opened:
        monkeypatch.setattr(direct_io, "read_some", cut_at_the_third)
        with pytest.raises(OSError, match="ffn: cannot read .* it ends before"):
            opened.read_rows(0, BLOCK, rows, np.empty((20, BLOCK), dtype=np.uint8))


def test_a_file_cut_behind_what_is_read_is_refused_too(path):
    with FlashReader(path) as opened:
        os.truncate(path, 30 * BLOCK)
        with pytest.raises(OSError, match="was changed while it was read"):
            opened.read_block(0, 100, np.empty(100, dtype=np.uint8))


def test_a_file_that_was_written_to_is_refused(path):
    with FlashReader(path) as opened:
        os.utime(path, ns=(0, 0))  # what writing does, without waiting for the clock
        with pytest.raises(OSError, match="was changed while it was read"):
            opened.read_block(0, 100, np.empty(100, dtype=np.uint8))


def test_a_file_that_was_removed_stays_readable(path, data):
    with FlashReader(path) as opened:
        with suppress(PermissionError):  # Windows keeps a file that is open
            path.unlink()
        out = np.empty(FILE_BYTES, dtype=np.uint8)
        opened.read_block(0, FILE_BYTES, out)
    assert np.array_equal(out, data)


# Opening


def open_descriptors():
    return len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0  # Windows does not say


def test_what_cannot_be_opened(tmp_path):
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        FlashReader(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        FlashReader(tmp_path)
    with pytest.raises(ValueError, match="at least one thread"):
        FlashReader(tmp_path / "nothing", threads=0)
    assert open_descriptors() == before


def test_closing_lets_go_of_file_and_threads(path):
    before, threads = open_descriptors(), threading.active_count()
    with FlashReader(path) as opened:
        opened.read_block(0, 10, np.empty(10, dtype=np.uint8))
    opened.close()
    assert open_descriptors() == before and threading.active_count() == threads
    with pytest.raises(ValueError, match="closed"):
        opened.read_block(0, 10, np.empty(10, dtype=np.uint8))


def refuse_at_reading(descriptor, buffers, offset):
    """What some file systems do that accept O_DIRECT at opening."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
        raise OSError(errno.EINVAL, "Invalid argument")
    return REAL_READ(descriptor, buffers, offset)


@linux_only
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_where_direct_reads_are_refused_plain_ones_are_made_and_it_is_said_once(
    path, data, monkeypatch, capsys, when
):
    direct_io._say_once.cache_clear()
    if when == "opening":
        monkeypatch.setattr(os, "open", refuse_direct)
    else:
        monkeypatch.setattr(direct_io, "read_some", refuse_at_reading)
    before = open_descriptors()
    for _ in range(2):
        with FlashReader(path) as opened:
            out = np.empty(5000, dtype=np.uint8)
            opened.read_block(3, 5000, out)
            assert np.array_equal(out, data[3:5003])
    said = capsys.readouterr().err
    assert said.count("refuses direct reads") == 1 and str(path.parent) in said
    assert open_descriptors() == before


@linux_only
def test_other_errors_are_not_taken_for_a_missing_o_direct(path, monkeypatch, capsys):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(direct_io, "read_some", broken)
    with pytest.raises(OSError, match="Input/output error"):
        FlashReader(path)
    assert capsys.readouterr().err == ""


@linux_only
def test_macos_is_told_not_to_cache(path, data, monkeypatch, capsys):
    monkeypatch.delattr(os, "O_DIRECT")
    monkeypatch.setattr(fcntl, "F_NOCACHE", 48, raising=False)
    told = []
    monkeypatch.setattr(fcntl, "fcntl", lambda *arguments: told.append(arguments))
    with FlashReader(path) as opened:
        assert told == [(opened.descriptor, 48, 1)]
        out = np.empty(100, dtype=np.uint8)
        opened.read_block(1, 100, out)
    assert np.array_equal(out, data[1:101]) and capsys.readouterr().err == ""


# Bad input


@pytest.mark.parametrize(
    "rows, shape, dtype, sentence",
    [
        ([0, 165], (2, 1000), np.uint8, "has 165074 bytes, and bytes 0 to 166000 were asked for"),
        ([-1, 3], (2, 1000), np.uint8, "bytes -1000 to 4000 were asked for"),
        ([5, 2, 5], (3, 1000), np.uint8, "twice"),
        ([5, 2], (3, 1000), np.uint8, "2 rows of 1000 bytes do not fit"),
        ([5, 2], (2, 999), np.uint8, "2 rows of 1000 bytes do not fit"),
        ([5, 2], (2, 1000), np.float16, "uint8"),
    ],
)
def test_impossible_rows_are_refused(path, rows, shape, dtype, sentence):
    with FlashReader(path) as opened, pytest.raises(ValueError, match=sentence):
        opened.read_rows(0, 1000, np.array(rows, dtype=np.int64), np.empty(shape, dtype=dtype))


def test_impossible_destinations_are_refused(path):
    with FlashReader(path) as opened:
        with pytest.raises(ValueError, match="contiguous"):
            opened.read_block(0, 5, np.empty(10, dtype=np.uint8)[::2])
        with pytest.raises(ValueError, match="6 bytes do not fit"):
            opened.read_block(0, 6, np.empty(5, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(0,), (3, 5), (2 << 20,), (1025, 4096)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_aligned_memory_is_aligned_zero_and_writable(shape, dtype):
    array = aligned_empty(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
    assert not array.size or array.ctypes.data % BLOCK == 0
    assert not array.any()
    array[...] = 1
    assert array.all()
