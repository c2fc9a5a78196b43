"""Recordings that are written, read and compared, and everything that can be wrong with them."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers_goldens import GOLDEN, changed, golden, model_of, recorded, rounded
from safetensors.numpy import save_file

from tinyflash.oracle.diff import compare, first_difference, print_comparison
from tinyflash.oracle.hints import EQUATIONS, USUAL_FAULTS
from tinyflash.oracle.record import (
    REQUIRED,
    checkpoint_digests,
    manifest_of,
    read_recording,
    record,
    write_recording,
)
from tinyflash.oracle.tolerances import TOLERANCES
from tinyflash.oracle.transformer_lens import transformer_lens_name
from tinyflash.taps import SQUARE_TAPS, short_name


@pytest.fixture
def recording(tmp_path):
    """A recording of the opt golden by tinyflash, on disk."""
    path = tmp_path / "nine.safetensors"
    write_recording(path, *recorded(model_of("opt"), golden("opt")[1]["ids"]))
    return path


# Recording


def test_what_is_read_is_what_was_written(recording):
    taps, manifest = recorded(model_of("opt"), golden("opt")[1]["ids"])
    read, read_manifest = read_recording(recording)
    assert list(read) == list(taps)
    for name, tensor in taps.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], tensor)
    digest = hashlib.sha256(recording.read_bytes()).hexdigest()
    assert read_manifest == {**manifest, "taps_digest": digest}


def test_a_float64_recording_stays_float64(tmp_path):
    model = model_of("llama", "float64")
    path = tmp_path / "x.safetensors"
    write_recording(path, *recorded(model, [1, 5, 9]))
    taps, manifest = read_recording(path)
    assert {tensor.dtype for tensor in taps.values()} == {np.dtype(np.float64)}
    assert manifest["compute_dtype"] == "float64" and manifest["stored_dtypes"] == ["float32"]


def test_the_manifest_holds_everything_that_a_repetition_needs():
    taps, manifest = recorded(model_of("mistral-float16"), [1, 2, 3])
    assert set(REQUIRED) - {"taps_digest"} <= set(manifest)
    assert manifest["engine"] == "tinyflash"
    assert set(manifest["versions"]) == {"tinyflash", "numpy", "python"}
    files = ("config.json", "model.safetensors")
    assert manifest["checkpoint"]["digests"] == {
        name: hashlib.sha256((GOLDEN / "mistral-float16" / name).read_bytes()).hexdigest()
        for name in files
    }
    assert manifest["stored_dtypes"] == ["float16"]
    assert manifest["norm_eps"] == 1e-5 and manifest["window"] == 5
    assert manifest["bos_id"] == 1 and manifest["begins_with_bos"] is True
    assert manifest["tolerances"] == TOLERANCES
    assert manifest["tap_order"] == list(taps)
    json.dumps(manifest, allow_nan=False)


def test_digests_cover_shards_and_a_single_file(tmp_path):
    names = (
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    )
    for name in (*names, "README.md", "nine.safetensors"):
        (tmp_path / name).write_text(name)
    assert set(checkpoint_digests(tmp_path)) == set(names)
    assert set(checkpoint_digests(tmp_path / names[1])) == {names[1]}


def test_squares_are_recorded_up_to_64_tokens_or_on_request():
    model = model_of("gpt2")
    ids = golden("gpt2")[1]["ids"] * 8

    def has_squares(taps):
        return {short_name(name) for name in taps} >= set(SQUARE_TAPS)

    assert has_squares(record(model, ids[:64]))
    assert not has_squares(record(model, ids[:65]))
    assert has_squares(record(model, ids[:65], squares=True))
    assert not has_squares(record(model, ids[:3], squares=False))


def test_a_recorded_tap_is_not_overwritten_later():
    model = model_of("gpt2")
    taps = record(model, [4, 5, 6])
    before = {name: tensor.copy() for name, tensor in taps.items()}
    record(model, [7, 8, 9])
    for name, tensor in taps.items():
        assert tensor.flags.owndata
        np.testing.assert_array_equal(tensor, before[name])


def test_the_order_of_taps_and_manifest_must_agree(tmp_path):
    taps, manifest = recorded(model_of("opt"), [2, 3])
    manifest["tap_order"].reverse()
    with pytest.raises(ValueError, match="tap_order"):
        write_recording(tmp_path / "x.safetensors", taps, manifest)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.json", "x", "x.npz"])
def test_a_recording_is_called_safetensors(tmp_path, name):
    with pytest.raises(ValueError, match=r"ends with \.safetensors"):
        write_recording(tmp_path / name, *recorded(model_of("opt"), [2, 3]))
    with pytest.raises(ValueError, match=r"ends with \.safetensors"):
        read_recording(tmp_path / name)


def test_a_write_that_fails_leaves_the_old_recording(recording, monkeypatch):
    before = {path.name: path.read_bytes() for path in recording.parent.iterdir()}

    def full_disk(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_recording(recording, *recorded(model_of("opt"), [2, 3]))
    assert {path.name: path.read_bytes() for path in recording.parent.iterdir()} == before


def test_a_write_that_dies_half_way_leaves_the_old_recording(recording, monkeypatch):
    before = {path.name: path.read_bytes() for path in recording.parent.iterdir()}
    replace_file = os.replace

    def dies_after_the_taps(source, target):
        if target.suffix == ".json" and source.suffix == ".part":
            monkeypatch.setattr(os, "replace", replace_file)
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", dies_after_the_taps)
    with pytest.raises(KeyboardInterrupt):
        write_recording(recording, *recorded(model_of("opt"), [2, 3]))
    assert {path.name: path.read_bytes() for path in recording.parent.iterdir()} == before
    read_recording(recording)


def test_a_kill_between_the_two_files_leaves_nothing_that_opens(recording, tmp_path):
    write_recording(tmp_path / "other.safetensors", *recorded(model_of("opt"), [2, 3]))
    (tmp_path / "other.safetensors").replace(recording)  # the manifest's turn never came
    with pytest.raises(ValueError, match="SHA-256"):
        read_recording(recording)


# Reading what is damaged


def test_a_missing_recording(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such recording"):
        read_recording(tmp_path / "x.safetensors")


def test_a_missing_manifest(recording):
    recording.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="its manifest nine.json is missing"):
        read_recording(recording)


def test_a_truncated_recording(recording):
    recording.write_bytes(recording.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_recording(recording)


def test_a_changed_number(recording):
    data = bytearray(recording.read_bytes())
    data[-1] ^= 1
    recording.write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        read_recording(recording)


def test_the_manifest_of_another_recording(recording):
    shutil.copy(GOLDEN / "opt" / "nine.json", recording.with_suffix(".json"))
    with pytest.raises(ValueError, match="SHA-256"):
        read_recording(recording)
    shutil.copy(GOLDEN / "gpt2" / "nine.json", recording.with_suffix(".json"))
    with pytest.raises(ValueError, match="SHA-256"):
        read_recording(recording)
    shutil.copy(GOLDEN / "llama" / "nine.json", recording.with_suffix(".json"))
    with pytest.raises(ValueError, match=r"only one of .* tap_order has final_norm|ffn\.gate|rot_"):
        read_recording(recording)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format": 1}'])
def test_a_damaged_manifest(recording, text):
    recording.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"JSON|makes sense"):
        read_recording(recording)


def rewrite(recording, **changes):
    """Change a manifest on disk; a value of None removes the key."""
    path = recording.with_suffix(".json")
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in manifest.items() if v != "removed"}))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_manifest_without_one_of_its_keys_does_not_open(recording, key):
    rewrite(recording, **{key: "removed"})
    with pytest.raises(ValueError, match=f"no {key} that makes sense"):
        read_recording(recording)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"compute_dtype": "float8"}, "float8"),
        ({"ids": []}, "list of token ids"),
        ({"ids": ["a"]}, "list of token ids"),
        ({"tap_order": [1]}, "list of names"),
        ({"tap_order": ["embed"]}, "only one of"),
        ({"tap_order": ["embed", "embed"]}, "a name twice"),
        ({"tap_order": ["a" * 9999]}, "only one of"),
        ({"format": 10**4000}, "the manifest is of format"),
        ({"norm_eps": 10**400}, "norm_eps"),
        ({"norm_eps": -1}, "norm_eps"),
        *(({"window": window}, "window") for window in (0, -1, True, 2.5, "3", [5], 2**63)),
        *(({"causal": causal}, "causal") for causal in (0, None, "no")),
    ],
)
def test_a_manifest_that_makes_no_sense_does_not_open(recording, changes, message):
    rewrite(recording, **changes)
    with pytest.raises(ValueError, match=message) as raised:
        read_recording(recording)
    assert len(str(raised.value)) < 1000


def test_half_precision_taps_are_no_recording(recording):
    save_file({"embed": np.zeros((2, 3), dtype=np.float16)}, recording)
    digest = hashlib.sha256(recording.read_bytes()).hexdigest()
    rewrite(recording, tap_order=["embed"], taps_digest=digest)
    with pytest.raises(ValueError, match="embed is float16"):
        read_recording(recording)


# Comparing


def test_a_recording_equals_itself():
    comparison = compare(golden("llama"), golden("llama"))
    assert comparison.equal and comparison.first is None
    assert first_difference(golden("llama"), golden("llama")) is None
    assert all(row.relative == row.rms == 0 for row in comparison.rows)


def test_another_shape_is_a_difference():
    def edit(taps):
        taps["layers.0.attn.q"] = taps["layers.0.attn.q"].reshape(9, 36)

    row = first_difference(golden("opt"), changed(golden("opt"), edit))
    assert (row.name, row.verdict) == ("layers.0.attn.q", "shape")
    assert "(9, 4, 9)" in row.detail and "(9, 36)" in row.detail


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_a_difference_on_either_side(bad):
    def edit(taps):
        taps["layers.1.ffn.act"][3, 4] = bad

    broken = changed(golden("opt"), edit)
    for a, b in ((golden("opt"), broken), (broken, golden("opt")), (broken, broken)):
        row = first_difference(a, b)
        assert (row.name, row.verdict) == ("layers.1.ffn.act", "not finite")


def test_a_single_wrong_number_is_a_difference():
    def edit(taps):
        taps["layers.1.ffn.pre"][8, 69] += 0.01

    row = first_difference(golden("opt"), changed(golden("opt"), edit))
    assert (row.name, row.verdict) == ("layers.1.ffn.pre", "differs")
    assert row.max_abs == pytest.approx(0.01, rel=1e-4)


def test_many_slightly_wrong_numbers_are_a_difference():
    def edit(taps):
        taps["final_norm"] *= 1 + 5e-5

    row = first_difference(golden("opt"), changed(golden("opt"), edit))
    assert row.name == "final_norm" and row.relative < 100 * row.tolerance < 10 * row.relative


def test_scores_of_masked_tokens_do_not_count_and_the_others_do():
    def mask(taps):
        taps["layers.0.attn.scores"][:, np.triu(np.ones((9, 9), dtype=bool), 1)] = -np.inf

    def spoil(taps):
        taps["layers.0.attn.scores"][1, 5, 5] += 1

    def outside_the_window(taps):
        taps["layers.0.attn.scores"][:, 8, 0] = np.nan

    assert compare(golden("opt"), changed(golden("opt"), mask)).equal
    assert first_difference(golden("opt"), changed(golden("opt"), spoil)).name.endswith("scores")
    assert not compare(golden("opt"), changed(golden("opt"), outside_the_window)).equal
    assert compare(golden("mistral"), changed(golden("mistral"), outside_the_window)).equal


def test_constant_tensors_are_compared_by_their_size():
    def ones_too_large(taps):
        taps["layers.0.attn.pattern"] *= 1.01

    reference = golden("opt", "one")  # a pattern of ones
    row = first_difference(reference, changed(reference, ones_too_large))
    assert row.name == "layers.0.attn.pattern" and row.relative == pytest.approx(0.02, rel=1e-3)

    zeros = changed(reference, lambda taps: taps["layers.0.ffn.act"].fill(0))
    assert compare(zeros, zeros).equal
    assert first_difference(zeros, reference).name == "layers.0.ffn.act"


def test_recordings_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match="different token ids"):
        compare(golden("opt"), golden("opt", "one"))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="float8"):
        compare(golden("opt"), golden("opt"), dtype="float8")


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_the_less_precise_engine_sets_the_tolerance(low):
    taps, manifest = golden("opt")
    rng = np.random.default_rng(0)
    noisy = {
        name: rounded(tensor + 5e-3 * np.std(tensor) * rng.standard_normal(tensor.shape), low)
        for name, tensor in taps.items()
    }
    other = (noisy, {**manifest, "compute_dtype": low})
    assert compare(golden("opt"), other).dtype == compare(other, golden("opt")).dtype == low
    assert compare(golden("opt"), other).equal
    assert not compare(golden("opt"), other, dtype="float32").equal


def test_other_conditions_are_noted():
    taps, manifest = golden("llama")
    other = {
        **manifest,
        "norm_eps": 1e-6,
        "rotary_layout": "neighbors",
        "window": 20,  # longer than the text
        "checkpoint": {"digests": {"model.safetensors": "0"}},
    }
    comparison = compare((taps, manifest), (taps, other))
    assert comparison.equal
    text = " ".join(comparison.notes)
    for word in ("checkpoint files", "eps differ: 2e-05 and 1e-06", "neighbors", "window differ"):
        assert word in text


def test_near_ties_are_reported_with_their_margins():
    def tie(taps):
        logits = taps["logits"][4]
        best, second = np.argsort(-logits)[:2]
        logits[second] = logits[best] + np.float32(1e-6)

    reference = changed(golden("opt"), tie)

    def turn(taps):
        logits = taps["logits"][4]
        best, second = np.argsort(-logits)[:2]
        logits[[best, second]] = logits[[second, best]]

    other = changed(reference, turn)
    comparison = compare(reference, other)
    assert comparison.equal
    (position,) = comparison.near_ties
    assert position["position"] == 4
    assert position["reference_margin"] < 1e-5 and position["other_margin"] < 1e-5
    assert position["in_each_others_top_5"] is True
    assert position["reference_token"] != position["other_token"]


def test_another_choice_that_is_no_near_tie_is_told_apart():
    def worst_wins(taps):
        logits = taps["logits"][2]
        logits[np.argmin(logits)] = logits.max() + 1

    comparison = compare(golden("opt"), changed(golden("opt"), worst_wins))
    (position,) = comparison.near_ties
    assert position["position"] == 2 and position["in_each_others_top_5"] is False
    assert comparison.first.name == "logits"


# TransformerLens's names


def with_their_names(recording):
    """The taps as TransformerLens would have cached them: its names, a batch axis, no embed."""
    taps, manifest = recording
    gated = any(name.endswith("ffn.gate") for name in taps)
    renamed = {}
    for name, tensor in taps.items():
        theirs = transformer_lens_name(name)
        if gated and short_name(name) == "ffn.pre":
            theirs = theirs.replace("hook_pre", "hook_pre_linear")
        if name != "embed":
            renamed[theirs or name] = tensor if theirs is None else tensor[None]
    return renamed, {**manifest, "tap_order": list(renamed)}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_names_and_batch_axis_of_transformer_lens_are_understood(name):
    other = with_their_names(golden(name))
    assert "blocks.0.attn.hook_q" in other[0] and "layers.0.attn.q" not in other[0]
    assert compare(golden(name), other).equal
    assert compare(other, golden(name)).equal


def test_a_fault_under_a_transformer_lens_name_is_named_in_ours():
    taps, manifest = with_their_names(golden("llama"))
    taps["blocks.1.mlp.hook_pre"] = 2 * taps["blocks.1.mlp.hook_pre"]
    assert first_difference(golden("llama"), (taps, manifest)).name == "layers.1.ffn.gate"


def test_one_tensor_under_two_names_is_refused():
    taps, manifest = golden("gpt2")
    taps = {**taps, "blocks.0.attn.hook_q": taps["layers.0.attn.q"]}
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.q twice"):
        compare(golden("gpt2"), (taps, manifest))


# What people and machines get to see


def test_the_comparison_as_json():
    def spoil(taps):
        taps["layers.1.attn.out"] += 1
        taps["logits"][0, 0] = np.nan

    text = json.dumps(
        compare(golden("opt"), changed(golden("opt"), spoil)).to_json(), allow_nan=False
    )
    result = json.loads(text)
    assert result["equal"] is False and result["first"] == "layers.1.attn.out"
    assert "Woᵀ" in result["hint"]
    assert [row["name"] for row in result["rows"]] == golden("opt")[1]["tap_order"]
    assert result["rows"][-1]["verdict"] == "not finite" and result["rows"][-1]["rms"] is None
    assert json.loads(json.dumps(compare(golden("opt"), golden("opt")).to_json()))["first"] is None


def test_the_comparison_for_people(capsys):
    print_comparison(compare(golden("opt"), golden("opt")))
    assert (
        "Equal: all 33 tensors agree (float32: rms ≤ 1e-05, largest ≤ 0.001 of the"
        in capsys.readouterr().out
    )

    model = replace(model_of("opt"), config=replace(model_of("opt").config, position_offset=1))
    broken = recorded(model, golden("opt")[1]["ids"])
    print_comparison(compare(golden("opt"), broken))
    text = capsys.readouterr().out
    assert "first embed." in text and "two rows late" in text and "ahead by" in text
    assert "layers.1.resid_post" in text
    off = changed(golden("opt"), lambda taps: taps["logits"].fill(0))
    print_comparison(compare(golden("opt"), off))
    text = capsys.readouterr().out
    assert "1 of 33 tensors differ, first logits." in text and "layers.1.resid_post" not in text
    print_comparison(compare(golden("opt"), off), show_all=True)
    assert "layers.1.resid_post" in capsys.readouterr().out


def test_every_tap_has_a_hint():
    assert set(USUAL_FAULTS) == set(EQUATIONS)


def test_a_model_whose_logits_are_nan_can_still_be_recorded(tmp_path):
    taps, _ = recorded(model_of("opt"), [2, 3])
    taps["logits"][0, 0] = np.nan
    manifest = manifest_of(model_of("opt"), [2, 3], taps, command="pytest")
    write_recording(tmp_path / "x.safetensors", taps, manifest)
    read, manifest = read_recording(tmp_path / "x.safetensors")
    assert np.isnan(read["logits"][0, 0]) and manifest["top_two_margins"][0] is None
