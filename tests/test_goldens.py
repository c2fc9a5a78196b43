"""What transformers computed from tiny random checkpoints, tinyflash computes too."""

import numpy as np
import pytest
from helpers_goldens import (
    CHECKPOINTS,
    GOLDEN,
    RECORDINGS,
    golden,
    largest_relative,
    model_of,
    recorded,
)

from tinyflash.config import Rope
from tinyflash.generate import greedy
from tinyflash.ops import rotary_frequencies
from tinyflash.oracle.diff import compare, hint
from tinyflash.oracle.record import record
from tinyflash.taps import tap_names, tap_shape

LOGITS = 1e-5  # largest difference, as a share of the logits' spread; measured: 4.3e-6
OTHER_TAPS = 3e-5  # measured: 1.1e-5, of a gated product with heavy tails

GATED_LAYER = [
    "resid_pre",
    "attn.norm",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.rot_q",
    "attn.rot_k",
    "attn.scores",
    "attn.pattern",
    "attn.z",
    "attn.out",
    "resid_mid",
    "ffn.norm",
    "ffn.pre",
    "ffn.gate",
    "ffn.act",
    "ffn.out",
    "resid_post",
]
POST_NORM_LAYER = [
    "resid_pre",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.scores",
    "attn.pattern",
    "attn.z",
    "attn.out",
    "resid_mid",
    "attn.norm",
    "ffn.pre",
    "ffn.act",
    "ffn.out",
    "ffn.norm",
    "resid_post",
]


def test_the_goldens_are_all_here_and_small():
    assert {path.parent.name for path in GOLDEN.glob("*/config.json")} == set(CHECKPOINTS)
    manifests = {
        (path.parent.name, path.stem)
        for path in GOLDEN.glob("*/*.json")
        if path.name != "config.json"
    }
    assert manifests == set(RECORDINGS)
    assert sum(path.stat().st_size for path in GOLDEN.glob("*/*")) < 4e6


@pytest.mark.parametrize(("name", "text"), RECORDINGS)
def test_every_tensor_agrees_with_transformers(name, text):
    reference = golden(name, text)
    model = model_of(name)
    comparison = compare(reference, recorded(model, reference[1]["ids"]))
    assert comparison.dtype == "float32"
    assert comparison.equal, hint(comparison.first)
    assert [row.name for row in comparison.rows] == tap_names(model.config)
    assert comparison.notes == []  # the same checkpoint files, eps, layout and window
    assert comparison.near_ties == []
    assert comparison.rows[-1].relative <= LOGITS
    assert max(row.relative for row in comparison.rows) <= OTHER_TAPS


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_text_is_that_of_transformers(name):
    manifest = golden(name)[1]
    expected = manifest["greedy"]
    assert len(expected["ids"]) == 64 and min(expected["margins"]) > 1e-3
    assert greedy(model_of(name), manifest["ids"], 64) == expected["ids"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_order_dtype_and_shape_of_every_tap(name, dtype):
    model = model_of(name, dtype)
    ids = golden(name)[1]["ids"]
    taps = record(model, ids)
    assert list(taps) == tap_names(model.config)
    for tap, tensor in taps.items():
        assert tensor.dtype == dtype, tap
        assert tensor.shape == tap_shape(model.config, tap, len(ids), len(ids)), tap

    cache = model.new_cache()
    model.logits(ids[:6], cache)
    model.logits(ids[6:], cache, tap=lambda tap, tensor: taps.update({tap: tensor}))
    for tap, tensor in taps.items():
        assert tensor.dtype == dtype, tap
        assert tensor.shape == tap_shape(model.config, tap, len(ids) - 6, len(ids)), tap


@pytest.mark.parametrize("name", ["llama", "llama-float16"])
def test_the_tap_names_are_frozen(name):
    layers = [f"layers.{i}.{tap}" for i in (0, 1) for tap in GATED_LAYER]
    assert golden(name)[1]["tap_order"] == ["embed", *layers, "final_norm", "logits"]


def test_the_tap_names_of_a_post_norm_model_are_frozen():
    layers = [f"layers.{i}.{tap}" for i in (0, 1) for tap in POST_NORM_LAYER]
    assert golden("opt-350m")[1]["tap_order"] == ["embed", *layers, "logits"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_float64_is_where_float32_was_heading(name):
    ids = golden(name)[1]["ids"]
    exact = model_of(name, "float64").logits(ids)
    assert largest_relative(exact, golden(name)[0]["logits"]) <= LOGITS
    assert largest_relative(exact, model_of(name).logits(ids)) <= LOGITS


def test_llama3_scaling_keeps_blends_and_divides():
    rope = model_of("llama3").config.rope
    K = model_of("llama3").config.head_width
    plain = rotary_frequencies(Rope(theta=rope.theta), K)
    shares = rotary_frequencies(rope, K) / plain
    assert shares[0] == 1
    assert np.all((shares[1:3] < 1) & (shares[1:3] > 1 / rope.factor))
    assert np.all(shares[3:] == 1 / rope.factor)


@pytest.mark.parametrize(
    ("theta", "K", "expected"),
    [  # of transformers 5.23.0; rounded once, in the end, each would end in another digit
        (100000.0, 64, {4: 0.23713736236095428, 7: 0.08058421313762665}),  # SmolLM2
        (10000.0, 128, {7: 0.36517414450645447, 18: 0.07498941570520401}),  # Llama 2
        (500000.0, 128, {2: 0.663601279258728, 10: 0.12868738174438477}),  # Llama 3
    ],
)
def test_rotary_frequencies_are_rounded_as_in_transformers(theta, K, expected):
    frequencies = rotary_frequencies(Rope(theta=theta), K)
    for i, frequency in expected.items():
        assert frequencies[i] == np.float32(frequency)


def test_the_window_is_shorter_than_nine_tokens():
    taps, manifest = golden("mistral")
    window = manifest["window"]
    assert window == len(golden("mistral", "window")[1]["ids"]) < len(manifest["ids"])
    for name in ("layers.0.attn.pattern", "layers.1.attn.pattern"):
        last = taps[name][:, -1]  # (H, S)
        assert np.all(last[:, :-window] == 0) and np.all(last[:, -window:] > 0)


def test_one_token_attends_to_itself_alone():
    for name, text in RECORDINGS:
        if text == "one":
            taps, manifest = golden(name, text)
            assert manifest["begins_with_bos"] and manifest["ids"] == [manifest["bos_id"]]
            assert np.all(taps["layers.0.attn.pattern"] == 1)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_manifest_says_how_the_golden_was_made(name):
    taps, manifest = golden(name)
    assert manifest["engine"] == "transformers"
    assert manifest["versions"]["transformers"] == "5.23.0"
    assert manifest["versions"]["torch"] == "2.13.0"
    stored = name.split("-")[-1] if "float" in name else "float32"
    assert manifest["stored_dtypes"] == [stored]
    turns = name.startswith(("llama", "mistral"))
    assert manifest["rotary_layout"] == ("half-split" if turns else None)
    ordered = np.sort(taps["logits"], axis=-1)
    assert manifest["top_two_margins"] == pytest.approx((ordered[:, -1] - ordered[:, -2]).tolist())
    assert np.std(taps["logits"]) >= 1
