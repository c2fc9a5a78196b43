"""The cost model: interpolation, projections and energy by hand, and the paper's own inputs."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tinyflash.costs.cost_model import (
    ENERGY,
    TokenWork,
    elements_of,
    energy,
    project,
    reads_of,
)
from tinyflash.costs.device_profile import (
    LONG_READ,
    DeviceProfile,
    Figure,
    disk_profile,
    load_profile,
    smallest_read,
    throughput,
)
from tinyflash.costs.paper_tables import (
    DEVICES,
    DRAM_SHARES,
    FFN_SHARE,
    MODEL_BYTES,
    NEURON_SHARES,
    T2,
    T3,
    WINDOW_BYTES,
    work_of,
)

KIB = 1024
SOURCES = ("measured", "paper's table", "cited", "assumed")


def figure(value):
    return Figure(value, "assumed: a test")


def device(**others):
    """8 KiB at 1 GB/s and 32 KiB at 2 GB/s with 4 threads, long reads at 4."""
    table = {(8 * KIB, 4): figure(1.0), (32 * KIB, 4): figure(2.0)}
    return DeviceProfile("a device", table, figure(4.0), **others)


# Throughput


@pytest.mark.parametrize(
    "chunk, expected",
    [
        (8 * KIB, 1.0),
        (16 * KIB, 1.5),  # half-way between 8 and 32 by the logarithm
        (32 * KIB, 2.0),
        (32 * KIB * 2, 2.4),  # a fifth of the way to 1024 KiB, by the logarithm
        (LONG_READ, 4.0),
        (1, 1.0),  # not extrapolated
        (100 * LONG_READ, 4.0),
    ],
)
def test_throughput_is_a_line_over_the_logarithm_of_the_size(chunk, expected):
    assert throughput(device(), chunk, 4) == pytest.approx(expected)


@pytest.mark.parametrize("threads, expected", [(1, 1.0), (2, 1.5), (4, 2.0), (32, 2.0)])
def test_throughput_is_a_line_over_the_logarithm_of_the_threads(threads, expected):
    table = {(8 * KIB, 1): figure(1.0), (8 * KIB, 4): figure(2.0)}
    profile = DeviceProfile("a device", table, figure(9.0))
    assert throughput(profile, 8 * KIB, threads) == pytest.approx(expected)


def test_a_table_that_knows_long_reads_is_not_continued():
    table = {(8 * KIB, 1): figure(1.0), (2 * LONG_READ, 1): figure(3.0)}
    profile = DeviceProfile("a device", table, figure(9.0))
    assert throughput(profile, 2 * LONG_READ, 1) == 3.0
    assert throughput(profile, LONG_READ, 1) < 3.0
    assert smallest_read(profile) == 8 * KIB


def test_a_measured_disk_becomes_a_profile(tmp_path):
    cells = [
        {"chunk": 8 * KIB, "threads": 4, "bytes_per_second": 5e8},
        {"chunk": LONG_READ, "threads": 4, "bytes_per_second": 3e9},
        {"chunk": LONG_READ, "threads": 1, "bytes_per_second": 2e9},
        {"chunk": 8 * KIB, "threads": 1, "bytes_per_second": 1e8},
    ]
    cold = [cell | {"bytes_per_second": 9e9} for cell in cells]
    path = tmp_path / "disk.json"
    measured = {"name": "mine", "date": "2026-01-02", "cold": cold, "sustained": cells}
    path.write_text(json.dumps(measured))
    profile = disk_profile(load_profile(path), multiplications=figure(7.0))
    assert profile.name == "mine" and profile.sequential.value == 3.0
    assert throughput(profile, 8 * KIB, 4) == pytest.approx(0.5)
    assert throughput(profile, LONG_READ, 1) == pytest.approx(2.0), "one thread stays one thread"
    assert profile.multiplications.value == 7.0 and profile.memory is None
    assert profile.throughput[8 * KIB, 4].source == "measured on mine, 2026-01-02, sustained"
    assert throughput(disk_profile(measured, "cold"), 8 * KIB, 4) == pytest.approx(9.0)


# Projections


def test_a_projection_is_the_sum_of_quotients():
    profile = device(memory=figure(10.0), multiplications=figure(5.0), management=figure(0.5))
    work = TokenWork(
        reads={8 * KIB: 1000, 32 * KIB: 500, LONG_READ: 10},
        loaded_bytes=4_096_000,
        dram_bytes=2e9,
        multiplications=3e8,
        threads=4,
    )
    projected = project(work, profile)
    io = 1000 * 8 * KIB / 1e9 + 500 * 32 * KIB / 2e9 + 10 * LONG_READ / 4e9
    assert projected.io_ms == pytest.approx(1000 * io)
    assert projected.memory_ms == pytest.approx(8.192)  # 4.096 MB at 0.5 GB/s
    assert projected.compute_ms == pytest.approx(200)  # 2 GB at 10 GB/s; multiplying takes 60
    assert projected.total_ms == pytest.approx(1000 * io + 208.192)
    assert projected.flattered == 0 and projected.device == "a device"
    assert work.flash_bytes == 1000 * 8 * KIB + 500 * 32 * KIB + 10 * LONG_READ
    slow = project(work, replace(profile, multiplications=figure(0.5)))
    assert slow.compute_ms == pytest.approx(600)


def test_what_a_device_is_not_known_for_is_left_out():
    work = TokenWork(reads_of(1e9), loaded_bytes=1e9, dram_bytes=1e9, multiplications=1e9)
    projected = project(work, device())
    assert projected.memory_ms is None and projected.compute_ms is None
    assert projected.total_ms == projected.io_ms == pytest.approx(250)
    only = project(work, device(multiplications=figure(4.0)))
    assert only.compute_ms == pytest.approx(250) and only.total_ms == pytest.approx(500)


def test_reads_smaller_than_any_known_are_told():
    work = TokenWork({4 * KIB: 2, 8 * KIB: 3}, threads=4)
    assert project(work, device()).flattered == pytest.approx(8 / 32)
    nothing = project(TokenWork(), device())
    assert nothing.flattered == 0 and nothing.io_ms == 0


# The paper


@pytest.mark.parametrize("mode", T2)
def test_the_papers_inputs_give_its_io_column(mode):
    """T2's bytes, in reads of the size that §3.2 describes, on the M1 Max: within 10 %."""
    io_ms = T2[mode][3]
    assert work_of(mode).flash_bytes == pytest.approx(T2[mode][1] * 1e9)
    for name in ("M1 Max", "M1 Max, CPU"):
        assert project(work_of(mode), DEVICES[name]).io_ms == pytest.approx(io_ms, rel=0.1)


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_gives_back_the_cells_that_it_is_derived_from(name):
    row = {
        "M1 Max, CPU": "OPT-6.7B, M1 Max, CPU",
        "M1 Max": "OPT-6.7B, M1 Max, Metal",
        "M2": "OPT-6.7B, M2, Metal",
        "RTX 4090": "OPT-6.7B, RTX 4090",
    }[name]
    naive = project(work_of("naive"), DEVICES[name])
    assert naive.io_ms == pytest.approx(T3[row]["naive"][0], rel=0.01)
    assert naive.compute_ms == pytest.approx(T3[row]["naive"][2], rel=0.01)
    assert naive.memory_ms == 0
    one_token = replace(work_of("all"), loaded_bytes=WINDOW_BYTES)
    assert project(one_token, DEVICES[name]).memory_ms == pytest.approx(T3[row]["all"][1])


def test_every_figure_says_where_it_is_from():
    figures = [f for device in DEVICES.values() for _, _, f in device.figures()]
    assert len(figures) >= 4 * 5
    for each in [*figures, *ENERGY.values()]:
        assert each.value > 0 and each.source.startswith(SOURCES), each
    speeds = [f.value for f in DEVICES["M1 Max"].throughput.values()]
    assert speeds == [1.25, 2.25] and DEVICES["M1 Max"].sequential.value == 6.10


def test_the_papers_rows_add_up():
    for name, rows in T3.items():
        for mode, row in rows.items():
            if row is not None:
                assert sum(row[:3]) == row[3], (name, mode)
    assert sum(DRAM_SHARES.values()) == pytest.approx(52.1, abs=0.1)
    held = NEURON_SHARES["held"] * FFN_SHARE
    assert held == pytest.approx(DRAM_SHARES["feed-forward rows"], abs=0.1)


def test_the_disagreements_that_are_named_are_there():
    assert pytest.approx(0.208, abs=0.001) == WINDOW_BYTES / 1e9
    assert 0.521 * MODEL_BYTES / 1e9 == pytest.approx(6.98, abs=0.01)
    m2 = DEVICES["M2"]
    assert throughput(m2, 16 * KIB, 32) > m2.sequential.value, "bundles faster than long reads"
    for row in ("OPT-6.7B, M1 Max, Metal", "OPT-6.7B, M2, Metal"):
        assert T3[row]["all"][2] > T3[row]["naive"][2]


# Energy, and what is multiplied


def test_energy_is_bytes_and_multiplications_times_their_constants():
    work = TokenWork({LONG_READ: 1000}, dram_bytes=2e9, multiplications=3e9)
    spent = energy(work)
    assert spent["flash"] == pytest.approx(1000 * LONG_READ * 6.2 / 7e9)
    assert spent["DRAM"] == pytest.approx((1000 * LONG_READ + 2e9) * 162.5e-12)
    assert spent["multiplications"] == pytest.approx(3e9 * 4.6e-12)
    assert spent["total"] == pytest.approx(sum(spent.values()) - spent["total"])
    for constant in ENERGY.values():
        assert "https://" in constant.source and "assumed" in constant.source


def test_looking_up_is_not_multiplying():
    weights = {
        "embed.weight": np.zeros((7, 4), dtype=np.float32),
        "positions.weight": np.zeros((9, 4), dtype=np.float32),
        "layers.0.attn.q.weight": np.zeros((4, 4), dtype=np.float16),
        "layers.0.attn.q.bias": np.zeros(4, dtype=np.float32),
    }
    assert elements_of(weights, tied=True) == (28 + 16, 4 * 28 + 2 * 16)
    assert elements_of(weights, tied=False) == (16, 32)


def test_reads_of_adds_up():
    assert reads_of(5e8, 16 * KIB) == {16 * KIB: 5e8 / 16384}
    assert math.isclose(TokenWork(reads_of(3e9)).flash_bytes, 3e9)
