"""The same tiny model as every kind of file that `tinyflash convert` reads.

path, weights = write_source(tmp_path / "m", "llama", "gguf-F16")
"""

import json

import gguf
import numpy as np
from helpers_models import (
    CHAT_TEMPLATE,
    CONFIGS,
    LLAMA_CONFIG,
    random_weights,
    small_tokenizer,
    write_model,
)
from helpers_pytorch_bin import write_bin
from safetensors.numpy import load_file, save_file

from tinyflash.checkpoint.gguf_file import LAYER_NAMES, MODEL_NAMES
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.families import read_config
from tinyflash.matrices.half import HalfMatrix
from tinyflash.weights import load_weights

# Rows of whole blocks of 32, which the quantized types need.
BLOCKS_CONFIG = LLAMA_CONFIG | {"hidden_size": 32, "intermediate_size": 64, "head_dim": 32}


def write_source(path, name, kind, seed=0):
    """Write a random model; returns its path and its weights, decoded, under our names.

    name: of CONFIGS (gguf is always a llama)
    kind: "float16", "float32", "bfloat16" (safetensors), "shards", "bin", or "gguf-TYPE"
    """
    if kind.startswith("gguf-"):
        path = path.with_suffix(".gguf")
        write_llama_gguf(path, gguf.GGMLQuantizationType[kind.removeprefix("gguf-")], seed=seed)
    else:
        write_model(path, CONFIGS[name], seed, "float32" if kind == "float32" else "float16")
        if kind in ("bfloat16", "shards", "bin"):
            {"bfloat16": to_bfloat16, "shards": to_shards, "bin": to_bin}[kind](path)
    checkpoint = open_checkpoint(path)
    weights = load_weights(checkpoint, read_config(checkpoint.config))
    return path, {n: w.dense() if isinstance(w, HalfMatrix) else w for n, w in weights.items()}


def change_tensors(directory, change):
    """Rewrite model.safetensors: change(dict of arrays) -> dict of arrays."""
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file)


def to_bin(directory):
    """model.safetensors becomes pytorch_model.bin."""
    write_bin(directory / "pytorch_model.bin", load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()


def to_shards(directory):
    """model.safetensors becomes two shards and their index."""
    tensors = list(load_file(directory / "model.safetensors").items())
    index = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(dict(part), directory / name)
        index |= {tensor: name for tensor, _ in part}
    file = directory / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}))
    (directory / "model.safetensors").unlink()


def to_bfloat16(directory):
    """model.safetensors, cut to bfloat16 (save_file has no such NumPy type)."""
    bits = {
        name: (array.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        for name, array in load_file(directory / "model.safetensors").items()
    }
    write_safetensors(directory / "model.safetensors", bits, {np.dtype(np.uint16): "BF16"})


def write_safetensors(path, arrays, kinds):
    """A safetensors file by hand. kinds: dict NumPy dtype -> what the format calls it."""
    header, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        about = {"dtype": kinds[array.dtype], "shape": list(array.shape)}
        header[name] = about | {"data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())


def write_llama_gguf(path, kind, hf_config=BLOCKS_CONFIG, seed=0, weights=None):
    """A GGUF file with a tokenizer and a chat template; matrices of one type, vectors of F32."""
    config = read_config(hf_config)
    weights = weights or random_weights(config, seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    backend = small_tokenizer()
    vocabulary = backend.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3] * 4 + [1] * (len(vocabulary) - 4))
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, array in weights.items():
        raw = gguf.quantize(array, kind) if array.ndim == 2 else array
        writer.add_tensor(gguf_name(name), raw, raw_dtype=kind if array.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name):
    """What llama.cpp calls one of our weights."""
    from tinyflash.families.llama import tensor_names

    layer = name.split(".")[1] if name.startswith("layers.") else None
    ours = name if layer is None else name.replace(f".{layer}.", ".{i}.", 1)
    theirs = tensor_names(None)[ours]
    names = MODEL_NAMES if layer is None else LAYER_NAMES
    part, kind = theirs.removeprefix("model.layers.{i}.").rsplit(".", 1)
    stem = next(short for short, long in names.items() if long == part)
    return f"{stem}.{kind}" if layer is None else f"blk.{layer}.{stem}.{kind}"
