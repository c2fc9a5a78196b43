"""The flash benchmark: every figure is one that was counted, and the command does as it is told."""

import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_flash import on_flash, random_layer
from helpers_models import CONFIGS, write_model

import tinyflash
from tinyflash.bench import flash, flash_derived, flash_report
from tinyflash.bench.flash import bench_flash
from tinyflash.bench.flash_report import show
from tinyflash.checkpoint.sources import embedded
from tinyflash.costs.paper_tables import T2, T3
from tinyflash.flash.activity import exact_activity
from tinyflash.flash.counters import TokenCounters
from tinyflash.flash.feed_forward import MODES
from tinyflash.flash.layer import Layer
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.store.cached import store_of
from tinyflash.flash.store.directory import open_store
from tinyflash.flash.store.predictor_file import write_predictors
from tinyflash.flash.streamed import Streamed
from tinyflash.matrices.half import HalfMatrix

KIB = 1024
DISK = {
    "name": "mine",
    "date": "2026-01-02",
    "cold": [{"chunk": 8 * KIB, "threads": 4, "bytes_per_second": 1e9}],
    "sustained": [{"chunk": 8 * KIB, "threads": 4, "bytes_per_second": 0.5e9}],
}


def bench(model="default", memory="60%", **settings):
    return bench_flash(model, memory, **{"tokens": 3, "prompt": 8} | settings)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def quick(monkeypatch):
    """The machine's speed in one call, and no more."""
    monkeypatch.setattr(flash, "SPEED_SECONDS", 0.0)
    monkeypatch.setattr(flash, "MATRIX_BYTES", 1 << 16)


# A run with figures that no accident makes: 2 tokens, 3 layers of 100 neurons.


def planted(mode, **changes):
    counters = {
        "calls": 6,
        "bytes_wanted": 150_000,
        "bytes_read": 163_840,  # 10 reads of 16 KiB a token would be 327,680: these are 5
        "reads": 10,
        "chunk_sizes": {16 * KIB: 10},
        "io_ms": 8.0,
        "reading_ms": 10.0,
        "memory_ms": 3.0,
        "compute_ms": 5.0,
        "wanted": 60,
        "fired": 20,
        "loaded": 12,
        "evicted": 11,
        "held": 150,
        "window": 18,
        "slices": 6,
    }
    run = {
        "mode": mode,
        "keeps_rows": mode in ("window", "all"),
        "described": "planted",
        "tokens": 2,
        "seconds": [0.010, 0.020],
        "prompt_seconds": 0.1,
        "counters": counters,
        "dram_bytes": 700_000,
        "components": {"attention": 500_000, "feed-forward rows": 200_000, "KV cache": 33_000},
        "threads": 4,
        "row_bytes": 8000,
        "work": {"multiplications": 4e6, "dram_bytes": 8e6},
        "multiply_speed": 2e9,
        "memory_speed": 10e9,
    }
    return run | changes


def result_of(*runs, disk=None, **changes):
    result = {
        "title": "planted",
        "synthetic": False,
        "model_bytes": 1_000_000,
        "neurons": 300,
        "predictor": None,
        "prompt_tokens": 7,
        "text": "a text",
        "runs": list(runs),
    }
    return flash_derived.with_derived(result | changes, disk)


def test_table_2_and_3_are_the_counters_by_token():
    (run,) = result_of(planted("all"))["runs"]
    assert run["table2"] == pytest.approx(
        {"dram_gb": 0.0007, "flash_gb": 81_920e-9, "gb_per_s": 0.016384, "io_ms": 4.0}
    )
    assert run["table3"] == pytest.approx(
        {
            "io_ms": 4.0,
            "memory_ms": 1.5,
            "compute_ms": 9.5,
            "total_ms": 15.0,
            "feed_forward_ms": 2.5,
        }
    )
    assert run["shares"] == pytest.approx(
        {"fired": 1 / 30, "wanted": 0.1, "held": 0.25, "loaded": 0.02, "window": 3.0}
    )


def test_ratios_are_of_the_totals_in_the_same_run():
    naive = planted("naive", seconds=[0.060, 0.090])
    hybrid = planted("hybrid", seconds=[0.030, 0.030])
    result = result_of(naive, hybrid, planted("all"))
    assert result["runs"][2]["ratios"] == pytest.approx({"naive": 5.0, "hybrid": 2.0})
    assert result["runs"][0]["ratios"] == pytest.approx({"naive": 1.0, "hybrid": 0.4})
    failed = {"mode": "hybrid", "error": "too little"}
    (_, _, run) = result_of(naive, failed, planted("all"))["runs"]
    assert run["ratios"] == {"naive": pytest.approx(5.0), "hybrid": None}


def test_nothing_read_has_no_speed():
    idle = planted("hybrid")
    idle["counters"] |= {"bytes_read": 0, "reading_ms": 0.0, "io_ms": 0.0, "chunk_sizes": {}}
    (run,) = result_of(idle)["runs"]
    assert run["table2"]["gb_per_s"] is None and run["projections"][0]["io_ms"] == 0
    assert "–" in next(flash_report.table2_rows(result_of(idle)))


def test_bounds_are_bytes_and_multiplications_over_their_speeds():
    (run,) = result_of(planted("all"), disk=DISK)["runs"]
    # Beyond 8 KiB the only speed there is counts: 81,920 bytes a token at 0.5 GB/s.
    assert run["bounds"] == {
        "io_ms": pytest.approx(0.16384),
        "io_from": "profile",
        "compute_ms": pytest.approx(2.0),
        "rest_ms": pytest.approx(15 - 0.16384 - 2),
    }
    (run,) = result_of(planted("all"))["runs"]
    assert run["bounds"]["io_from"] == "run" and run["bounds"]["io_ms"] == pytest.approx(4.0)
    assert run["bounds"]["rest_ms"] == pytest.approx(9.0)


def test_energy_and_projections_take_the_runs_work():
    (run,) = result_of(planted("all"), disk=DISK)["runs"]
    assert run["energy"]["flash"] == pytest.approx(81_920 * 6.2 / 7e9)
    assert run["energy"]["multiplications"] == pytest.approx(4e6 * 4.6e-12)
    by_device = {each["device"]: each for each in run["projections"]}
    assert list(by_device) == ["M1 Max, CPU", "M1 Max, Metal", "M2, Metal", "RTX 4090", "mine"]
    assert by_device["M1 Max, Metal"]["io_ms"] == pytest.approx(1000 * 81_920 / 2.25e9)
    # 6 rows of 8000 bytes a token; the mode's own 1.5 ms on this machine.
    assert by_device["mine"]["memory_ms"] == pytest.approx(1.5)
    assert by_device["mine"]["compute_ms"] == pytest.approx(2.0)  # DRAM alone would take 0.8
    (run,) = result_of(planted("predictor"))["runs"]
    assert run["projections"][0]["memory_ms"] == 0, "nothing is put into a cache"


def test_every_row_shows_what_was_measured_and_what_the_paper_has():
    failed = {"mode": "predictor", "error": "no predictor was trained"}
    result = result_of(planted("naive", seconds=[0.3, 0.3]), failed, planted("all"), disk=DISK)
    rows = list(flash_report.table2_rows(result))
    assert rows[0] == ("naive", "this run", 2, "0.0007", "8.19e-05", "0.0164", "4")
    assert rows[1] == ("naive", "paper, OPT-6.7B", "–", "0", "13.4", "6.1", "2,196")
    assert rows[2][1] == "not run: no predictor was trained"
    rows = list(flash_report.table3_rows(result))
    assert ("all", "this run", "4", "1.5", "9.5", "15", "20x", "–") in rows
    assert ("all", "paper, CPU", "105", "58", "506", "669", "4.76x", "–") in rows
    assert ("all", "paper, Metal", "92", "35", "438", "565", "4.23x", "–") in rows
    assert [row[0] for row in rows].count("predictor") == 0
    rows = list(flash_report.neuron_rows(result))
    assert ("all", 2, "3", "3.33", "10", "25", "2") in rows and rows[0][2] == "–"
    assert rows[-1][2:] == ("4 or 5", "3.3", "10.4", "24", "2.4")
    rows = list(flash_report.dram_rows(result))
    assert ("attention", "50", "50", "32.3") in rows and ("KV cache", "3.3", "3.3", "–") in rows
    assert rows[-1] == ("weights together", "70", "70", "52")
    (naive, whole) = flash_report.bound_rows(result)
    assert whole[:5] == ("all", "15", "0.164", "2", "12.8") and naive[1] == "300"
    rows = list(flash_report.projection_rows(result))
    io = f"{1000 * 81_920 / 2.25e9:.3g}"
    assert rows[1][:2] + rows[1][3:4] == ("naive", "M1 Max, Metal", "2,196")
    assert rows[6][:4] == ("all", "M1 Max, Metal", io, "87")
    assert rows[7][:4] == ("all", "M2, Metal", rows[7][2], "26")
    assert len(rows) == 2 * 5


def test_what_flash_json_says_of_predictors_is_shown():
    layer = {"active": 0.03, "predicted": 0.10, "false_negatives": 0.05, "false_positives": 0.07}
    windows = [{"mean": [10.0 * k for k in range(1, 13)]}, {"mean": [20.0 + k for k in range(12)]}]
    layers = [
        layer | {"rank": 8, "window": windows[0]},
        layer | {"rank": 16, "predicted": 0.20, "window": windows[1]},
    ]
    told = flash.heldout({"layers": layers, "text": "x", "tokens": 5}, 200)
    assert told["rank"] == 12 and told["predicted"] == pytest.approx(0.15)
    assert told["s_agg"][:2] == [30 / 200, 41 / 200] and len(told["s_agg"]) == 12
    row = list(flash_report.neuron_rows(result_of(planted("all"), predictor=told)))[1]
    assert row[0].endswith("5 % missed, 7 % for nothing")
    assert row[2:] == (5, "3", "15", "37", "5.5")  # 50 + 24 neurons, and 11 more for k = 6
    assert flash.heldout(None, 200) is None


# Measuring


class Clock:
    """Time passes only where it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class FakeModel:
    """Takes 10 ms for a first token, 20 for a second …; its engine counts as told."""

    dtype = np.dtype(np.float32)

    def __init__(self, clock):
        self.clock = clock
        self.fed = []
        self.config = SimpleNamespace(layers=2, heads=3, kv_heads=1, head_width=5, tied=True)
        store = SimpleNamespace(
            config=SimpleNamespace(layers=2, ffn_width=40, width=6),
            numpy_dtype=np.float16,
            row_bytes=24,
            parts=("up", "down"),
        )
        knowing = SimpleNamespace(knows=("up",), elements=240)
        self.weights = {"embed.weight": np.ones((10, 6), dtype=np.float32)}
        self.flash = SimpleNamespace(
            mode="window",
            store=store,
            nbytes=1234,
            reader=SimpleNamespace(threads=9),
            weights=self.weights,
            feed_forwards=[SimpleNamespace(activity=knowing)] * 2,
            components=lambda: {"feed-forward rows": 34, "attention": 1200},
        )

    def new_cache(self):
        return SimpleNamespace(length=11, keys=[np.zeros(3, dtype=np.float16)])

    def logits(self, ids, cache):
        assert cache.length == 11
        self.fed.append(list(ids))
        self.clock.now += 0.010 * len(self.fed)
        cost = TokenCounters(calls=2, bytes_read=100 * len(self.fed), wanted=8, io_ms=2.5)
        cost.chunk_sizes = Counter({4096: len(self.fed)})
        self.flash.last_cost = cost


def test_a_run_is_what_the_engine_counted_after_the_prompt(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(flash, "time", clock)
    monkeypatch.setattr(flash, "seconds_of", lambda work: 0.5)
    monkeypatch.setattr(flash, "describe_flash", lambda engine: "a fake")
    model, seen = FakeModel(clock), []
    ids = np.array([5, 6, 7, 8, 9], dtype=np.int64)
    cache = model.new_cache()
    run = flash.measure(model, cache, ids, 3, lambda *step, **numbers: seen.append(step), 4, 10)
    assert model.fed == [[5, 6, 7], [8], [9]], "the recorded text, not the model's own"
    assert run["seconds"] == pytest.approx([0.020, 0.030]) and run["tokens"] == 2
    assert run["prompt_seconds"] == pytest.approx(0.010)
    assert run["counters"]["bytes_read"] == 200 + 300, "the prompt's 100 are not counted"
    assert run["counters"]["chunk_sizes"] == {4096: 5} and run["counters"]["io_ms"] == 5.0
    assert run["components"] == {"feed-forward rows": 34, "attention": 1200}
    assert run["dram_bytes"] == 1234 and run["threads"] == 9 and run["keeps_rows"]
    assert run["row_bytes"] == 12, "the part that is known is not read with the row"
    # 60 of the head; 2·2·3·5·11 of attention; 2·40·6 that tell; 8 neurons of 6 numbers.
    assert run["work"]["multiplications"] == 60 + 660 + 480 + 48
    assert run["work"]["dram_bytes"] == 240 + 2 * 2 * 2 * 5 * 11 + 2 * (480 + 48)
    assert run["multiply_speed"] == 60 / 0.5
    assert seen == [(5, 10), (6, 10)]
    json.dumps(run)


def test_sources_of_activity_say_what_they_multiply():
    store, reader = on_flash(random_layer(np.random.default_rng(0), 40, 6))
    layer = Layer(store, 0, reader, {})
    assert exact_activity(layer, "resident", 9).elements == 240
    assert exact_activity(layer, "read", 9).elements == 240
    half = (
        HalfMatrix(np.zeros((4, 6), dtype=np.float16), "down"),
        np.zeros((40, 4), dtype=np.float32),
    )
    assert Predictor(*half, np.zeros(40, dtype=np.float32)).elements == 24 + 160
    model = FakeModel(Clock())
    model.flash.feed_forwards = [Streamed(layer, 9)]  # naive and hybrid ask nobody
    assert model.flash.feed_forwards[0].activity.elements == 0
    assert flash.row_bytes(model.flash) == 24, "up and down are read"


# The command


def test_the_embedded_model_from_end_to_end(quick, capsys):
    result = bench()
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if "refuses direct reads" not in line]
    assert printed.out == "" and said == [], "JSON is the caller's; a pipe sees no progress"
    assert json.loads(json.dumps(result))["title"] == "LLM in a flash: default in 60% of its memory"
    assert not result["synthetic"] and result["prompt_tokens"] == 8
    runs = {run["mode"]: run for run in result["runs"]}
    assert list(runs) == list(MODES)
    for run in runs.values():
        if "error" in run:
            assert run["mode"] == "predictor" and "predictor" in run["error"]
            continue
        assert len(run["seconds"]) == run["tokens"] == 3
        table3 = run["table3"]
        parts = table3["io_ms"] + table3["memory_ms"] + table3["compute_ms"]
        assert parts == pytest.approx(table3["total_ms"]) and table3["compute_ms"] > 0
        assert run["dram_bytes"] <= 0.6 * result["model_bytes"] * 1.01
        weights = sum(run["components"].values()) - run["components"]["KV cache"]
        assert weights == pytest.approx(run["dram_bytes"], rel=0.02)
    assert runs["naive"]["shares"]["wanted"] == 1 == runs["naive"]["shares"]["loaded"]
    assert runs["window"]["shares"]["fired"] == pytest.approx(runs["naive"]["shares"]["fired"])
    assert runs["window"]["shares"]["loaded"] < runs["window"]["shares"]["wanted"] < 0.2
    assert runs["naive"]["table2"]["flash_gb"] > runs["hybrid"]["table2"]["flash_gb"] > 0


def test_predictors_are_measured_where_there_are_some(quick, tmp_path, capsys):
    """Predictors that are as large as the projection, and right: their work is counted."""
    directory = tmp_path / "with-predictors.flash"
    shutil.copytree(store_of(embedded("tiny-opt")), directory)
    store, dense = open_store(directory), tinyflash.load("default")
    L, F, D = store.config.layers, store.config.ffn_width, store.config.width
    predictors, about = [], {"false_negatives": 0.1, "false_positives": 0.2, "active": 0.05}
    about |= {"predicted": 0.25, "window": {"mean": [100.0] * 12, "most": [200] * 12}}
    for i in range(L):
        up = dense.weights[f"layers.{i}.ffn.up.weight"].dense()
        bias = dense.weights[f"layers.{i}.ffn.up.bias"]
        predictors.append(Predictor(np.eye(D, dtype=np.float32), up, bias))
    write_predictors(store, predictors, {"layers": [about] * L, "text": "none", "tokens": 1})

    result = bench(str(directory), "95%")
    show(result)
    runs = {run["mode"]: run for run in result["runs"]}
    assert all("error" not in run for run in runs.values())
    assert runs["predictor"]["components"]["predictors"] > 2 * L * D * (D + F)
    lonely, kept = runs["predictor"], runs["all"]
    assert lonely["counters"]["loaded"] == lonely["counters"]["wanted"] > kept["counters"]["loaded"]
    assert lonely["projections"][1]["memory_ms"] == 0 < kept["projections"][1]["memory_ms"]
    assert lonely["shares"]["wanted"] == pytest.approx(runs["naive"]["shares"]["fired"], rel=0.01)
    used = lonely["counters"]["wanted"] / lonely["tokens"]
    heads = runs["naive"]["work"]["multiplications"] - 2 * L * F * D
    expected = heads + L * D * (D + F) + 2 * used * D
    assert lonely["work"]["multiplications"] == pytest.approx(expected, rel=1e-3)
    assert "10 % missed" in " ".join(capsys.readouterr().out.split())


def test_the_json_has_these_names(quick):
    result = bench(modes="window", tokens=1)
    assert set(result) == set(
        "title synthetic model memory model_bytes prompt_tokens text machine date neurons "
        "predictor runs paper devices energy_constants".split()
    )
    (run,) = result["runs"]
    assert set(run) == set(
        "mode keeps_rows described tokens seconds prompt_seconds counters dram_bytes components "
        "threads row_bytes work multiply_speed memory_speed table2 table3 shares ratios bounds "
        "energy projections".split()
    )
    assert set(run["counters"]) == set(vars(TokenCounters()))
    assert result["paper"]["table2"]["all"]["io_ms"] == T2["all"][3]
    assert result["paper"]["table3"]["Falcon 7B, CPU"]["hybrid"]["total_ms"] == 1947
    assert set(result["paper"]["table3"]) == set(T3)
    for figures in result["devices"].values():
        assert all(figure["source"] and figure["value"] > 0 for figure in figures)


def test_tables_for_people(quick, capsys, tmp_path):
    (tmp_path / "disk.json").write_text(json.dumps(DISK))
    profile = str(tmp_path / "disk.json")
    show(bench(modes="hybrid, naive", tokens=9, profile=profile))
    out = capsys.readouterr().out
    for words in ("Table 2", "Table 3", "s_agg(k)", "paper, OPT-6.7B", "2,196", "mine", "assumed"):
        assert words in out, words
    rows = re.findall(r"│ (naive|hybrid) +│ this run +│ (\d)", out)
    assert rows[:2] == [("naive", "4"), ("hybrid", "4")], "their tokens cost the same: four do"
    assert "synthetic" not in out


def test_synthetic_weights_are_called_that(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_model(tmp_path / "model", CONFIGS["opt"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_synthetic": True}))
    result = bench(str(folder), "90%", modes="naive", tokens=1)
    show(result)
    assert result["synthetic"] is True and result["title"].endswith("(synthetic weights)")
    assert "synthetic" in capsys.readouterr().out


def test_a_mode_that_does_not_fit_is_a_row(quick, monkeypatch):
    whole = tinyflash.load

    def load(path, *, mode, **settings):
        if mode == "window":
            raise ValueError("no room")
        return whole(path, mode=mode, **settings)

    monkeypatch.setattr(tinyflash, "load", load)
    result = bench(modes="naive,window", tokens=1)
    assert result["runs"][1] == {"mode": "window", "error": "no room"}
    assert result["runs"][0]["tokens"] == 1
    with pytest.raises(ValueError, match="^no room$"):
        bench(modes="window", tokens=1)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"modes": "naive,quick"}, "--modes takes naive, .* not 'quick'"),
        ({"memory": "half"}, "Memory is a share such as 50%"),
        ({"memory": "1%"}, "needs at least"),
        ({"tokens": 0}, "at least one token"),
        ({"prompt": 500, "tokens": 50}, "do not fit the model's context of 512"),
        ({"profile": "README.md"}, "is not a device profile|No such file"),
        ({"text": "nowhere.txt"}, "No such file"),
        ({"window": 0}, "at least 1 token long"),
    ],
)
def test_bad_input_is_one_sentence(change, sentence):
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        bench(**({"modes": "window"} | change))
    assert "\n" not in str(caught.value)


def test_a_text_that_is_too_short_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("Once upon a time")
    with pytest.raises(ValueError, match=r"short\.txt has \d tokens, and 11 are needed"):
        bench(text=str(tmp_path / "short.txt"))
