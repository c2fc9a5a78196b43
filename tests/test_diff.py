"""What `diff` must not call equal, and what it must: each a pair of recordings."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers_goldens import changed, golden, model_of, recorded, rounded

from tinyflash.cli import main
from tinyflash.oracle.diff import compare, first_difference, print_comparison
from tinyflash.oracle.record import read_recording, write_recording
from tinyflash.oracle.rows import compared_row, spread, the_rest_differs
from tinyflash.oracle.tolerances import TOLERANCES, is_rounded_to, shown_dtype

IDS = golden("opt")[1]["ids"]


def of(logits, **manifest):
    """A recording of logits alone."""
    return {"logits": logits}, {**golden("opt")[1], "tap_order": ["logits"], **manifest}


def double(numbers):
    return np.array(numbers, dtype=np.float64)


def on_disk(tmp_path, *recordings):
    """Write recordings, as somebody else's might be; returns their paths as text."""
    paths = [tmp_path / f"{n}.safetensors" for n in range(len(recordings))]
    for path, (taps, manifest) in zip(paths, recordings, strict=True):
        write_recording(path, taps, manifest)
    return [str(path) for path in paths]


# Some tensors only


def test_what_both_have_is_compared_and_the_rest_is_named(capsys):
    few = changed(golden("opt"), lambda taps: [taps.pop(name) for name in list(taps)[:-2]])
    for a, b in ((golden("opt"), few), (few, golden("opt"))):
        comparison = compare(a, b)
        assert comparison.equal and comparison.first is None
        assert [row.name for row in comparison.compared] == ["final_norm", "logits"]
        assert len(comparison.not_compared) == 31
        result = json.loads(json.dumps(comparison.to_json()))
        assert result["compared"] == 2 and len(result["not_compared"]) == 31
        assert result["tolerance"] == 1e-5 and result["tolerance_of_largest"] == 1e-3
        print_comparison(comparison)
        text = capsys.readouterr().out
        assert "Equal: 2 tensors agree (float32: rms ≤ 1e-05, largest ≤ 0.001 of the" in text
        assert "only one recording has them: 31 (embed, layers.0.resid_pre," in text


def test_a_wrong_tensor_among_few_is_the_first():
    few = changed(golden("opt"), lambda taps: [taps.pop(name) for name in list(taps)[:-2]])
    few[0]["logits"] *= 1.01
    assert first_difference(golden("opt"), few).name == "logits"


def test_what_leads_to_the_first_and_was_not_seen_is_named(capsys):
    def edit(taps):
        for name in ("layers.0.attn.q", "layers.1.ffn.act", "layers.1.ffn.out"):
            del taps[name]
        taps["layers.1.resid_post"] *= 2

    comparison = compare(golden("opt"), changed(golden("opt"), edit))
    assert comparison.first.name == "layers.1.resid_post"
    assert comparison.unseen == ["layers.1.ffn.act", "layers.1.ffn.out"]
    print_comparison(comparison)
    assert "not in the other: layers.1.ffn.act, layers.1.ffn.out." in capsys.readouterr().out


def test_one_tensor_is_called_one(capsys):
    print_comparison(compare(of(golden("opt")[0]["logits"]), golden("opt")))
    assert "Equal: 1 tensor agrees (float32" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{}, {"logitz": np.ones((9, 4), dtype=np.float32)}])
def test_nothing_in_common_is_refused(other):
    manifest = golden("opt")[1]
    for a, b in ((golden("opt"), (other, manifest)), ((other, manifest), golden("opt"))):
        with pytest.raises(ValueError, match="no tensor in common"):
            compare(a, b)
    with pytest.raises(ValueError, match="no tensor in common"):
        compare(({}, manifest), ({}, manifest))


def test_nothing_in_common_ends_with_2_and_one_sentence(tmp_path, capsys):
    logits = np.ones((9, 4), dtype=np.float32)
    other = {"logitz": logits}, {**golden("opt")[1], "tap_order": ["logitz"]}
    assert main(["diff", *on_disk(tmp_path, of(logits), other)]) == 2
    assert "(logits in the reference, logitz in the other)" in capsys.readouterr().err


# Spreads


def in_float64(a, b):
    return compare(of(double(a), compute_dtype="float64"), of(double(b), compute_dtype="float64"))


def test_large_and_small_numbers_have_a_spread():
    for size in (1e-300, 1e-200, 1e-30, 1.0, 1e30, 1e200, 1e300):
        right = double([[size, -size, 2 * size]])
        assert in_float64(right, right * (1 + 1e-15)).equal
        assert not in_float64(right, right * (1 + 1e-9)).equal, size
        assert not in_float64(right, -right).equal


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_makes_the_spread_overflow_hides_nothing(sign):
    logits = golden("opt")[0]["logits"].astype(np.float64)
    right, wrong = logits.copy(), sign * np.roll(logits, 1, axis=1)
    right[0, 0] = wrong[0, 0] = 1e200
    assert in_float64(right, right).equal
    row = in_float64(right, wrong).first
    assert row.verdict == "differs" and "huge" in row.detail


@pytest.mark.parametrize("huge", [1e5, 1e8, 1e30])
def test_a_few_huge_numbers_hide_nothing_in_float32(huge):
    right = golden("opt")[0]["logits"].copy()
    wrong = -right
    right[:, 3] = wrong[:, 3] = huge
    assert compare(of(right), of(right * np.float32(1 + 1e-6))).equal
    assert not compare(of(right), of(wrong)).equal
    zeros = np.where(right == huge, right, np.float32(0))
    assert not compare(of(zeros), of(right)).equal
    assert not compare(of(right), of(zeros)).equal


def test_streams_with_massive_activations_are_equal():
    rng = np.random.default_rng(0)
    right = rng.standard_normal((9, 256)).astype(np.float32)
    right[0, 7], right[:, 200] = 2500, -400
    noise = rng.standard_normal(right.shape).astype(np.float32)
    assert compare(of(right), of(right + np.float32(1e-5) * noise)).equal
    assert not the_rest_differs(right, rounded(right, "bfloat16"))


def test_numbers_of_all_sizes_vanish_from_no_spread():
    assert not in_float64(np.full((9, 4), 1e-200), np.full((9, 4), 1e-20)).equal
    assert not in_float64(np.full((9, 4), 1e-200), np.full((9, 4), 1e200)).equal
    assert not in_float64(np.full((9, 4), 5e-324), np.full((9, 4), 1e300)).equal
    assert not in_float64(np.full((9, 4), 1e308), np.full((9, 4), -1e308)).equal


def test_what_cannot_be_said_is_none_in_json():
    row = in_float64(np.full((9, 4), 1.7e308), np.full((9, 4), -1.7e308)).first
    assert row.max_abs is None and row.relative == pytest.approx(2, rel=1)
    comparison = in_float64(np.full((9, 4), 5e-324), np.full((9, 4), 1e300))
    json.dumps(comparison.to_json(), allow_nan=False)


@pytest.mark.parametrize("tiny", [1e-30, 1e-6, 1.0])
def test_zeros_are_equal_to_zeros_alone(tiny):
    zeros = np.zeros((9, 4), dtype=np.float32)
    other = zeros.copy()
    other[3, 2] = tiny
    assert compare(of(zeros), of(zeros)).equal and compare(of(zeros), of(-zeros)).equal
    row = first_difference(of(zeros), of(other))
    assert row.verdict == "differs" and "zeros alone" in row.detail
    assert not compare(of(other), of(zeros)).equal


def test_a_number_at_a_relus_edge_is_no_difference():
    right = np.maximum(np.random.default_rng(1).standard_normal((9, 64)), 0).astype(np.float32)
    other = right.copy()
    other[right == 0] = 1e-9
    assert compared_row("layers.0.ffn.act", right, other, 1e-5).verdict == "equal"


def test_a_constant_tensor_has_a_spread():
    ones = np.ones((9, 4), dtype=np.float32)
    assert spread(ones) == 0.5
    assert not compare(of(ones), of(ones * np.float32(1.001))).equal


# What is no number, and no shape


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_same_nan_or_inf_on_both_sides_is_a_difference(bad):
    logits = np.full((9, 4), bad, dtype=np.float32)
    assert first_difference(of(logits), of(logits)).verdict == "not finite"


def test_a_float16_engine_that_overflows_differs():
    right = np.full((9, 4), 7e4, dtype=np.float32)
    with np.errstate(over="ignore"):
        overflown = right.astype(np.float16).astype(np.float32)
    row = first_difference(of(right), of(overflown, compute_dtype="float16"))
    assert row.verdict == "not finite" and "the other" in row.detail
    saturated = np.full((9, 4), 65504, dtype=np.float32)
    assert not compare(of(right), of(saturated, compute_dtype="float16"), dtype="float32").equal


@pytest.mark.parametrize("shape", [(4,), (1, 4), (9, 1), (1,), (), (36,), (4, 9), (9, 4, 1)])
def test_a_shape_that_broadcasts_is_another_shape(shape):
    a, b = np.ones((9, 4), dtype=np.float32), np.ones(shape, dtype=np.float32)
    assert first_difference(of(a), of(b)).verdict == "shape"
    assert first_difference(of(b), of(a)).verdict == "shape"


@pytest.mark.parametrize("shape", [(0,), (9, 0), (0, 4)])
def test_a_tensor_without_numbers_is_not_equal(shape):
    empty = np.ones(shape, dtype=np.float32)
    assert first_difference(of(empty), of(empty)).verdict == "no numbers"


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint8, np.complex128, ">i4"])
def test_what_are_no_floats_is_not_equal(dtype):
    a, b = np.ones((9, 4), dtype=dtype), np.ones((9, 4), dtype=np.float32)
    for pair in ((a, a), (a, b), (b, a)):
        assert first_difference(*map(of, pair)).verdict == "no floats"


def test_large_integers_are_not_rounded_into_equality():
    a = np.full((9, 4), 2**53, dtype=np.int64)
    assert not compare(of(a), of(a + 1)).equal


@pytest.mark.parametrize("shape", [(), (9,), (9, 1), (2, 9, 4)])
def test_logits_of_odd_shapes_are_compared_without_a_traceback(shape):
    logits = np.ones(shape, dtype=np.float32)
    assert compare(of(logits), of(logits)).equal


@pytest.mark.parametrize("tolerance", [np.nan, 0.0, -1.0])
def test_a_tolerance_that_is_none_makes_nothing_equal(tolerance):
    ones = double([1.0, 2.0])
    assert compared_row("logits", ones, ones * (1 + 1e-9), tolerance).verdict == "differs"


# Manifests


@pytest.mark.parametrize("given", [1e300, float("nan"), float("inf"), {}, None, "much"])
def test_the_tolerances_of_a_manifest_are_not_used(given, tmp_path):
    taps, manifest = changed(golden("opt"), lambda taps: taps["logits"].fill(1))
    lax = {**manifest, "tolerances": {dtype: given for dtype in TOLERANCES}}
    assert first_difference(golden("opt"), (taps, lax)).name == "logits"
    assert first_difference((taps, lax), golden("opt")).tolerance == 1e-5


@pytest.mark.parametrize("claim", ["bfloat16", "float16"])
def test_a_dtype_that_the_numbers_do_not_show_is_not_believed(claim, capsys):
    rng = np.random.default_rng(0)
    taps, manifest = golden("opt")
    noisy = {
        name: (t + 0.01 * np.std(t) * rng.standard_normal(t.shape)).astype(np.float32)
        for name, t in taps.items()
    }
    other = noisy, {**manifest, "compute_dtype": claim}
    for a, b in ((golden("opt"), other), (other, golden("opt"))):
        comparison = compare(a, b)
        assert not comparison.equal and comparison.dtype == "float32"
        assert f"says {claim}, and most of its numbers are none" in comparison.notes[0]
        assert f"--dtype {claim}" in comparison.notes[0]
    assert compare(golden("opt"), other, dtype=claim).equal
    believed = {name: rounded(tensor, claim) for name, tensor in noisy.items()}
    assert compare(golden("opt"), (believed, other[1])).equal


def test_float32_is_not_believed_of_float64_numbers():
    logits = golden("opt")[0]["logits"].astype(np.float64) / 3
    other = of(logits * (1 + 1e-7), compute_dtype="float32")
    assert not compare(of(logits, compute_dtype="float64"), other).equal


def test_which_numbers_a_dtype_has():
    numbers = double([0.0, 1.5, -2.0, np.inf, np.nan])
    assert all(is_rounded_to(numbers, dtype) for dtype in TOLERANCES)
    for number, dtypes in ((1 + 2**-9, "float16"), (1e30, ""), (2.0**99, "bfloat16"), (0.1, "")):
        for dtype in ("float16", "bfloat16"):
            assert is_rounded_to(double([number]), dtype) == (dtype in dtypes.split()), number
    assert not is_rounded_to(double([1 + 2**-30]), "bfloat16")
    assert shown_dtype({"a": double([0.1])}, "bfloat16") == "float64"
    assert shown_dtype({"a": double([0.1]).astype(np.float32)}, "bfloat16") == "float32"
    assert shown_dtype({}, "bfloat16") == "bfloat16"


def test_the_command_can_say_the_dtype(tmp_path, capsys):
    taps, manifest = changed(golden("opt"), lambda taps: None)
    taps = {name: (t * np.float32(1.001)) for name, t in taps.items()}
    paths = on_disk(tmp_path, golden("opt"), (taps, manifest))
    assert main(["diff", *paths, "--json"]) == 1
    assert main(["diff", *paths, "--json", "--dtype", "float16"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["dtype"] == "float16"


# Masks


def spoil(where):
    """Adds 5 to some scores of every layer."""

    def edit(taps):
        for name in taps:
            if name.endswith("attn.scores"):
                taps[name][where] += 5

    return edit


def without_patterns(taps):
    for name in [name for name in taps if name.endswith("attn.pattern")]:
        del taps[name]


def claiming(recording, **claims):
    return recording[0], {**recording[1], **claims}


@pytest.mark.parametrize("claims", [{}, {"causal": True}])
def test_scores_above_an_encoders_diagonal_count(claims):
    reference = golden("distilbert")
    wrong = changed(reference, spoil((..., 0, -1)))
    for edit in (lambda taps: None, without_patterns):
        a, b = (claiming(changed(one, edit), **claims) for one in (reference, wrong))
        assert first_difference(a, b).name == "layers.0.attn.scores"
        assert compare(a, a).equal


@pytest.mark.parametrize("window", [1, 5])
def test_a_window_that_no_pattern_shows_hides_nothing(window):
    wrong = changed(golden("opt"), spoil((..., -1, 0)))
    for edit in (lambda taps: None, without_patterns):
        a, b = (claiming(changed(one, edit), window=window) for one in (golden("opt"), wrong))
        assert first_difference(a, b).name == "layers.0.attn.scores"


def test_masked_scores_need_not_agree():
    hidden = np.triu(np.ones((9, 9), dtype=np.bool_), 1)

    def mask(taps):
        taps["layers.0.attn.scores"][:, hidden] = -np.inf

    masked = changed(golden("opt"), mask)
    assert compare(golden("opt"), masked).equal and compare(masked, masked).equal
    masked, plain = changed(masked, without_patterns), changed(golden("opt"), without_patterns)
    for a, b in ((masked, plain), (plain, masked), (masked, masked)):
        assert compare(a, b).equal
    # A finite score that differs where none should look, and no pattern to say so.
    assert not compare(plain, changed(plain, spoil((..., 0, -1)))).equal


def test_scores_and_patterns_of_odd_shapes_are_compared_whole():
    def odd(taps):
        taps["layers.0.attn.pattern"] = taps["layers.0.attn.pattern"][0]
        taps["layers.1.attn.scores"] = taps["layers.1.attn.scores"].reshape(4, 81)

    assert compare(changed(golden("opt"), odd), changed(golden("opt"), odd)).equal


@pytest.mark.parametrize("name, claims", [("opt", {"window": 3}), ("distilbert", {"causal": True})])
def test_manifests_with_other_masks_are_not_equal(name, claims, capsys):
    for a, b in (
        (golden(name), claiming(golden(name), **claims)),
        (claiming(golden(name), **claims), golden(name)),
    ):
        comparison = compare(a, b)
        assert comparison.first is None and not comparison.equal
        assert comparison.to_json()["first"] is None
        print_comparison(comparison)
        text = capsys.readouterr().out
        assert "look at other tokens" in text and "Equal" not in text
        assert "their manifests do not" in text


def test_a_manifest_that_says_nothing_of_masks_is_of_the_others():
    taps, manifest = golden("mistral")
    silent = {key: manifest[key] for key in manifest if key not in ("causal", "window")}
    hidden = changed((taps, silent), lambda taps: taps["layers.0.attn.scores"][:, 8, 0].fill(9))
    assert compare(golden("mistral"), hidden).equal


def test_a_key_twice_in_a_manifest_is_refused(tmp_path):
    (path,) = on_disk(tmp_path, golden("opt"))
    manifest = tmp_path / "0.json"
    manifest.write_text(
        manifest.read_text().replace('"causal"', '"compute_dtype": "bfloat16",\n "causal"')
    )
    with pytest.raises(ValueError, match="compute_dtype occurs twice"):
        read_recording(path)


def test_recordings_of_other_tokens_are_refused_whatever_they_hold():
    logits = golden("opt")[0]["logits"]
    for ids in (IDS[:-1], IDS[::-1], [*IDS, 4]):
        with pytest.raises(ValueError, match="different token ids"):
            compare(of(logits), of(logits, ids=ids))


def test_a_model_that_sees_less_is_named_by_its_pattern():
    reference = golden("distilbert")
    model = replace(
        model_of("distilbert"), config=replace(model_of("distilbert").config, causal=True)
    )
    comparison = compare(reference, recorded(model, reference[1]["ids"]))
    assert comparison.first.name == "layers.0.attn.pattern" and comparison.contradictions
