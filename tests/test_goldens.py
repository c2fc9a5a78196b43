"""What transformers computed from tiny random checkpoints, tinyflash computes too."""

import numpy as np
import pytest
from helpers_goldens import (
    CHECKPOINTS,
    ENCODERS,
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
from tinyflash.oracle.diff import compare
from tinyflash.oracle.hints import hint
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
    directories = {path.parent for path in GOLDEN.glob("*/config.json")}
    assert {path.name for path in directories} == set(CHECKPOINTS + ENCODERS)
    files = [path for directory in directories for path in directory.iterdir()]
    manifests = {(path.parent.name, path.stem) for path in files if path.suffix == ".json"}
    assert manifests - {(path.name, "config") for path in directories} == set(RECORDINGS)
    assert sum(path.stat().st_size for path in files) < 6e6


@pytest.mark.parametrize(("name", "text"), RECORDINGS)
def test_every_tensor_agrees_with_transformers(name, text):
    reference = golden(name, text)
    model = model_of(name)
    comparison = compare(reference, recorded(model, reference[1]["ids"]))
    assert comparison.dtype == "float32"
    assert comparison.equal, hint(comparison.first)
    assert comparison.not_compared == []
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
@pytest.mark.parametrize("name", CHECKPOINTS + ENCODERS)
def test_names_order_dtype_and_shape_of_every_tap(name, dtype):
    model = model_of(name, dtype)
    ids = golden(name)[1]["ids"]
    taps = record(model, ids)
    assert list(taps) == tap_names(model.config)
    for tap, tensor in taps.items():
        assert tensor.dtype == dtype, tap
        assert tensor.shape == tap_shape(model.config, tap, len(ids), len(ids)), tap

    if name in ENCODERS:
        return
    cache = model.new_cache()
    model.logits(ids[:6], cache)
    model.logits(ids[6:], cache, tap=lambda tap, tensor: taps.update({tap: tensor}))
    for tap, tensor in taps.items():
        assert tensor.dtype == dtype, tap
        assert tensor.shape == tap_shape(model.config, tap, len(ids) - 6, len(ids)), tap


def without(layer, *names):
    return [name for name in layer if name not in names]


def layer_taps(name):
    """The names of the taps of one layer, written out: a change of taps.py shows here."""
    if name.startswith(("opt-350m", "distilbert")):
        return POST_NORM_LAYER
    layer = GATED_LAYER
    if name.startswith(("opt", "gpt2", "falcon", "phi", "persimmon")):
        layer = without(layer, "ffn.gate")
    if name.startswith(("opt", "gpt2", "falcon-rw")):
        layer = without(layer, "attn.rot_q", "attn.rot_k")
    if name.startswith("persimmon"):
        at = layer.index("attn.rot_q")
        layer = [*layer[:at], "attn.norm_q", "attn.norm_k", *layer[at:]]
    if name.startswith(("falcon", "phi")) and name != "falcon-rw":
        layer = without(layer, "resid_mid")
        if not name.startswith("falcon-40b"):
            layer = without(layer, "ffn.norm")
    return layer


@pytest.mark.parametrize("name", CHECKPOINTS + ENCODERS)
def test_the_tap_names_are_frozen(name):
    L = {"opt-bare": 3, "llama-linear": 3, "mobilellm-ls": 4}.get(name, 2)
    layers = [f"layers.{i}.{tap}" for i in range(L) for tap in layer_taps(name)]
    last = {"opt-350m": ["logits"], "distilbert": ["unembed.transform", "final_norm", "logits"]}
    last = last.get(name, ["final_norm", "logits"])
    assert golden(name)[1]["tap_order"] == ["embed", *layers, *last]


@pytest.mark.parametrize("name", CHECKPOINTS + ENCODERS)
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


def test_the_window_of_qwen2_begins_in_its_second_layer():
    taps, manifest = golden("qwen2-window")
    window = manifest["window"]
    assert window == len(golden("qwen2-window", "window")[1]["ids"]) < len(manifest["ids"])
    first, second = (taps[f"layers.{i}.attn.pattern"][:, -1] for i in (0, 1))  # (H, S)
    assert np.all(first > 0)
    assert np.all(second[:, :-window] == 0) and np.all(second[:, -window:] > 0)


def test_the_encoder_sees_both_sides():
    taps, _ = golden("distilbert")
    assert np.all(taps["layers.0.attn.pattern"] > 0) and np.all(taps["layers.1.attn.pattern"] > 0)


def test_shared_layers_run_twice_with_the_same_weights():
    taps, _ = golden("mobilellm-ls")
    model = model_of("mobilellm-ls")
    for i in (0, 1):
        weight = np.asarray(model.weights[f"layers.{i}.ffn.up.weight"])
        for run in (2 * i, 2 * i + 1):
            pre = taps[f"layers.{run}.ffn.norm"] @ weight.T
            assert np.allclose(pre, taps[f"layers.{run}.ffn.pre"], atol=1e-5)


def test_a_part_of_each_head_turns():
    for name, turned in (("phi", 6), ("persimmon", 4)):
        taps, _ = golden(name)
        for x in "qk":
            before = taps.get(f"layers.0.attn.norm_{x}", taps[f"layers.0.attn.{x}"])
            after = taps[f"layers.0.attn.rot_{x}"]
            assert np.array_equal(before[..., turned:], after[..., turned:])
            assert not np.any(before[1:, :, :turned] == after[1:, :, :turned])


def test_alibi_is_rounded_to_bfloat16_as_in_transformers():
    # Ten heads: the last two have slopes 2^-0.5 and 2^-1.5, whose roundings show.
    taps, _ = golden("falcon-rw")
    q, k = taps["layers.0.attn.q"], taps["layers.0.attn.k"]  # (T, H, K)
    T, H, K = q.shape
    bias = taps["layers.0.attn.scores"] * np.sqrt(np.float32(K)) - np.einsum("thk,shk->hts", q, k)
    slopes = [2.0**-power for power in range(1, 9)] + [0.70703125, 0.353515625]
    exact = np.array(slopes, dtype=np.float32)[:, None] * np.arange(T, dtype=np.float32)
    assert np.abs(bias - exact[:, None]).max() < 0.02
    rounded = [0.0, 0.70703125, 1.4140625, 2.125, 2.828125, 3.53125, 4.25, 4.9375, 5.65625]
    assert np.allclose(bias[8], np.array(rounded, dtype=np.float32), atol=1e-5)


def test_one_token_attends_to_itself_alone():
    for name, text in RECORDINGS:
        if text == "one":
            taps, manifest = golden(name, text)
            if name not in ENCODERS:
                assert manifest["begins_with_bos"] and manifest["ids"] == [manifest["bos_id"]]
            assert np.all(taps["layers.0.attn.pattern"] == 1)


@pytest.mark.parametrize("name", CHECKPOINTS + ENCODERS)
def test_the_manifest_says_how_the_golden_was_made(name):
    taps, manifest = golden(name)
    assert manifest["engine"] == "transformers"
    assert manifest["versions"]["transformers"] == "5.23.0"
    assert manifest["versions"]["torch"] == "2.13.0"
    stored = name.split("-")[-1] if "float" in name else "float32"
    assert manifest["stored_dtypes"] == [stored]
    turns = not name.startswith(("opt", "gpt2", "falcon-rw", "distilbert"))
    assert manifest["rotary_layout"] == ("half-split" if turns else None)
    ordered = np.sort(taps["logits"], axis=-1)
    assert manifest["top_two_margins"] == pytest.approx((ordered[:, -1] - ordered[:, -2]).tolist())
    assert np.std(taps["logits"]) >= 1
