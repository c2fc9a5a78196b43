"""Queries, keys and values that a checkpoint keeps in one matrix, head by head."""

import numpy as np
import pytest
from helpers_models import CONFIGS, random_weights, write_model
from safetensors.numpy import load_file, save_file

import tinyflash
from tinyflash.families import read_config, tensor_names
from tinyflash.matrices.half import HalfMatrix

FUSED = ["persimmon", "falcon", "falcon-40b", "falcon-rw"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", FUSED)
def test_heads_lie_where_the_family_has_them(tmp_path, name, dtype):
    """Cut out of the file by reshaping, as the families' own code does."""
    write_model(tmp_path, CONFIGS[name], seed=6, dtype=dtype)
    config, stored = read_config(CONFIGS[name]), load_file(tmp_path / "model.safetensors")
    weights = tinyflash.load(tmp_path).weights
    H, G, K = config.heads, config.kv_heads, config.head_width
    matrix = stored[tensor_names(config)["layers.1.attn.q.weight"].name].astype(np.float32)
    groups = matrix.reshape(G, H // G + 2, K, config.width)
    parts = {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}
    for part, expected in parts.items():
        found = weights[f"layers.1.attn.{part}.weight"]
        assert isinstance(found, HalfMatrix) == (dtype == "float16")
        found = found.dense() if dtype == "float16" else found
        np.testing.assert_array_equal(found, expected.reshape(-1, config.width))
    expected = random_weights(config, 6, dtype)
    for kind in ("q.bias", "k.bias", "v.bias") if config.qkv_bias else ():
        name = f"layers.0.attn.{kind}"
        np.testing.assert_array_equal(weights[name], expected[name])


@pytest.mark.parametrize("rows", [-1, 1, 30])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_matrix_of_another_height_is_refused(tmp_path, name, rows):
    write_model(tmp_path, CONFIGS[name], dtype="float32")
    fused = tensor_names(read_config(CONFIGS[name]))["layers.0.attn.q.weight"].name
    tensors = load_file(tmp_path / "model.safetensors")
    other = np.resize(tensors[fused], (len(tensors[fused]) + rows, tensors[fused].shape[1]))
    save_file({**tensors, fused: other}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not belong together"):
        tinyflash.load(tmp_path)
