"""Binds the names that the forward pass looks up to what a checkpoint holds under them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyflash.checkpoint.entries import Checkpoint, Tensor
from tinyflash.checkpoint.safetensors_file import safetensors_content
from tinyflash.config import ModelConfig, weight_shapes
from tinyflash.families import Stored, family_prefix, tensor_names
from tinyflash.files import printable, write_files
from tinyflash.matrices.half import HalfMatrix, decode, refuse_infinite
from tinyflash.matrices.matrix import Matrix

# Tensors that old checkpoints carry and that the config already says: masks and frequencies.
BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq", "embeddings.position_ids")


def load_weights(
    checkpoint: Checkpoint, config: ModelConfig, dtype: DTypeLike = np.float32
) -> dict[str, np.ndarray | Matrix]:
    """Every weight that `config` calls for, under our names.

    A 16-bit matrix stays 16-bit and mapped (HalfMatrix); gains and biases are decoded; float32
    stays mapped unless `dtype` is float64.

    returns : dict name -> float array or HalfMatrix
    raises  : ValueError if a tensor is missing, misshapen, left over, or has Inf or NaN

    >>> import tinyflash
    >>> from tinyflash.checkpoint.opening import open_checkpoint
    >>> model = tinyflash.load("default")
    >>> weights = load_weights(open_checkpoint(model.path), model.config)
    >>> weights["layers.0.ffn.up.weight"], weights["layers.0.ffn.up.bias"].dtype
    (<HalfMatrix 'model.decoder.layers.0.fc1.weight': float16 (768, 192)>, dtype('float32'))
    """
    places = locate(checkpoint, config, weight_shapes(config))
    refuse_left_over(checkpoint, config, {place.name for place in places.values()})
    return bind_all(checkpoint, places, dtype)


def bind_all(
    checkpoint: Checkpoint, places: Mapping[str, Stored], dtype: DTypeLike
) -> dict[str, np.ndarray | Matrix]:
    """The weights at some places of a checkpoint, bound: dict name -> array or HalfMatrix.

    >>> import tinyflash
    >>> from tinyflash.checkpoint.opening import open_checkpoint
    >>> model = tinyflash.load("default")
    >>> checkpoint = open_checkpoint(model.path)
    >>> places = locate(checkpoint, model.config, ["final_norm.bias"])
    >>> bind_all(checkpoint, places, np.float64)["final_norm.bias"].dtype
    dtype('float64')
    """
    weights = {}
    for name, place in places.items():
        array, stored_dtype = take(checkpoint, place)
        weights[name] = bind(array, stored_dtype, place.name, dtype)
    return weights


def locate(checkpoint: Checkpoint, config: ModelConfig, names: Iterable[str]) -> dict[str, Stored]:
    """Where a checkpoint keeps some weights; none is read.

    returns: dict our name -> families.Stored, under the name that this checkpoint has
    raises : ValueError if one is missing or misshapen

    >>> import tinyflash
    >>> from tinyflash.checkpoint.opening import open_checkpoint
    >>> model = tinyflash.load("default")
    >>> locate(open_checkpoint(model.path), model.config, ["embed.weight"])["embed.weight"].name
    'model.decoder.embed_tokens.weight'
    """
    shapes, places, prefix = weight_shapes(config), tensor_names(config), family_prefix(config)
    located = {}
    for name in names:
        place = replace(places[name], name=stored_name(checkpoint, places[name].name, prefix))
        if name == "embed.weight" and config.tied and place.name not in checkpoint:
            # of a tied pair some programs keep the head; where neither is there the embedding is
            # what is missing
            head = places["unembed.weight"].name
            place = replace(place, name=head if head in checkpoint else place.name)
        stored = checkpoint.shape(place.name)
        rows, *columns = (stored[::-1] if place.transposed else stored) or (0,)
        shape = (place.count(rows), *columns)
        if shape != shapes[name] or (place.every and rows % place.every):
            raise ValueError(
                f"{checkpoint.path}: tensor {place.name} is {shape_text(stored)} and gives "
                f"{shape_text(shape)} where config.json calls for {shape_text(shapes[name])} "
                f"({name}); the config and the weights do not belong together."
            )
        located[name] = place
    return located


def take(checkpoint: Checkpoint, place: Stored) -> tuple[np.ndarray, str]:
    """A weight as (out, in), and the name of its dtype.

    It is mapped where it can be: rows that a fused matrix mixes head by head are gathered, which
    copies them to DRAM as they are stored.

    >>> from tinyflash.checkpoint.entries import Entry
    >>> stored = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> tensors = {"fc.weight": Entry("float32", (2, 3), 24, lambda: stored)}
    >>> checkpoint = Checkpoint(Path("toy"), {}, tensors)
    >>> take(checkpoint, Stored("fc.weight", transposed=True, first=1))[0].tolist()
    [[1.0, 4.0], [2.0, 5.0]]
    """
    tensor = checkpoint[place.name]
    array = tensor.array.T if place.transposed else tensor.array
    return array[place.rows(len(array))], tensor.dtype


def bind(array: np.ndarray, stored_dtype: str, name: str, dtype: DTypeLike) -> np.ndarray | Matrix:
    """One stored tensor as the forward pass wants it: HalfMatrix, or an array of `dtype`.

    >>> halves = np.ones((2, 3), dtype=np.float16)
    >>> bind(halves, "float16", "up", np.float32), bind(halves[0], "float16", "b", np.float32).dtype
    (<HalfMatrix 'up': float16 (2, 3)>, dtype('float32'))
    """
    if stored_dtype in ("float16", "bfloat16"):
        if array.ndim == 2:
            # GPT-2's transposed matrices are copied once: a tile must be whole rows.
            return HalfMatrix(np.ascontiguousarray(array), name, dtype)
        bits = array.view(np.uint16)
        refuse_infinite(bits, stored_dtype, name)
        return decode(bits, stored_dtype).astype(dtype, copy=False)
    if array.ndim == 1 and not np.isfinite(array).all():
        raise ValueError(f"{name} holds Inf or NaN; get another copy of the checkpoint.")
    return array.astype(dtype, copy=False)


def stored_name(checkpoint: Checkpoint, name: str, prefix: str) -> str:
    """The tensor's name with or without the family's prefix, whichever the checkpoint uses.

    raises: ValueError if it has neither

    >>> stored_name({"wte.weight": ...}, "transformer.wte.weight", "transformer.")
    'wte.weight'
    """
    bare = name.removeprefix(prefix)
    if name in checkpoint or bare not in checkpoint:
        return name  # where it is missing, indexing it says so
    return bare


def refuse_left_over(checkpoint: Checkpoint, config: ModelConfig, used: set[str]) -> None:
    """Raise a ValueError if the checkpoint holds weights that the config does not call for.

    Leaving out a bias or a norm gives fluent nonsense; better to say so. A head beside a tied
    embedding may be there, if it is the same matrix.

    >>> import tinyflash
    >>> from tinyflash.checkpoint.opening import open_checkpoint
    >>> model = tinyflash.load("default")
    >>> refuse_left_over(open_checkpoint(model.path), model.config, used=set())
    Traceback (most recent call last):
        ...
    ValueError: ... holds 100 tensors that config.json does not call for, ...
    """
    tied_head = {tensor_names(config)["unembed.weight"].name} if config.tied else set()
    for head in tied_head & set(checkpoint.names()) - used:
        refuse_other_head(checkpoint, config, head)
    left = [
        name
        for name in checkpoint.names()
        if name not in used | tied_head and not name.endswith(BUFFERS)
    ]
    if left:
        raise ValueError(
            f"{checkpoint.path} holds {len(left)} tensors that config.json does not call for, "
            f"{printable(left[0])} first; the config and the weights do not belong together."
        )


def refuse_other_head(checkpoint: Checkpoint, config: ModelConfig, head: str) -> None:
    """Raise a ValueError if the tensor `head` is not the embedding that config.json ties it to.

    >>> import tinyflash
    >>> from tinyflash.checkpoint.opening import open_checkpoint
    >>> model = tinyflash.load("default")
    >>> head = "model.decoder.final_layer_norm.bias"  # say
    >>> refuse_other_head(open_checkpoint(model.path), model.config, head)
    Traceback (most recent call last):
        ...
    ValueError: ... config.json ties the logits to the embedding, and the weights hold a ...
    """
    embed = stored_name(
        checkpoint, tensor_names(config)["embed.weight"].name, family_prefix(config)
    )
    if not same_numbers(checkpoint[embed], checkpoint[head]):
        raise ValueError(
            f"{checkpoint.path}: config.json ties the logits to the embedding, and the weights "
            f"hold a {head} that differs from {embed}; set tie_word_embeddings to false (and a "
            "share_embedding, too) to use it, or take it out of the file."
        )


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, compared some rows at a time.

    >>> from tinyflash.checkpoint.entries import Tensor
    >>> half = Tensor("a", "float16", np.array([[1, 2]], dtype=np.float16))
    >>> same_numbers(half, Tensor("b", "float32", half.array.astype(np.float32)))
    True
    """
    a, b = one.array, other.array
    if a.shape != b.shape:
        return False
    if one.dtype == other.dtype and a.ctypes.data == b.ctypes.data:
        return True  # one matrix under two names
    for first in range(0, len(a), 1024):
        rows = [
            decode(t.array[first : first + 1024].view(np.uint16), t.dtype)
            if t.dtype in ("float16", "bfloat16")
            else t.array[first : first + 1024]
            for t in (one, other)
        ]
        if not np.array_equal(*rows):
            return False
    return True


def shape_text(shape: Iterable[int]) -> str:
    """A shape for people: 4096 × 1024.

    >>> shape_text((4096, 1024))
    '4096 × 1024'
    """
    return " × ".join(map(str, shape))


def save_checkpoint(
    directory: str | Path,
    hf_config: dict,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    dtype: str = "float16",
) -> None:
    """Write weights as a Hugging Face directory: config.json and model.safetensors.

    The inverse of `load_weights`: our names become the family's, fused matrices are fused and
    transposed ones transposed again. Both files are written whole, or none; the config comes last.

    hf_config : the config.json to write, a dict
    weights   : dict name -> float array, all of `weight_shapes(config)`
    dtype     : "float16" or "float32", of the file
    raises    : ValueError if a weight does not fit float16's range

    >>> import tempfile, tinyflash
    >>> from tinyflash.ops import dense
    >>> model = tinyflash.load("default")
    >>> hf = json.loads((model.path / "config.json").read_text())
    >>> weights = {name: dense(weight) for name, weight in model.weights.items()}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_checkpoint(directory, hf, model.config, weights)
    ...     sorted(file.name for file in Path(directory).iterdir())
    ['config.json', 'model.safetensors']
    """
    write_files(checkpoint_files(directory, hf_config, config, weights, dtype), parents=True)


def checkpoint_files(
    directory: str | Path,
    hf_config: dict,
    config: ModelConfig,
    weights: Mapping[str, Any],
    dtype: str = "float16",
) -> dict[Path, Any]:
    """What `save_checkpoint` writes, for `files.write_files`: dict path -> content.

    >>> import tinyflash
    >>> from tinyflash.ops import dense
    >>> model = tinyflash.load("default")
    >>> weights = {name: 1e6 * dense(weight) for name, weight in model.weights.items()}
    >>> checkpoint_files("copy", {}, model.config, weights)
    Traceback (most recent call last):
        ...
    ValueError: embed.weight has numbers beyond float16's range; save it as float32.
    """
    places = tensor_names(config)
    parts = {}
    for name in weight_shapes(config):
        with np.errstate(over="ignore"):
            array = weights[name].astype(dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers beyond {dtype}'s range; save it as float32.")
        parts.setdefault(places[name].name, []).append((places[name], array))
    tensors = {}
    for stored, pieces in parts.items():
        rows, *columns = (sum(len(array) for _, array in pieces), *pieces[0][1].shape[1:])
        whole = np.empty((rows, *columns), dtype=dtype)
        for place, array in pieces:
            whole[place.rows(rows)] = array
        tensors[stored] = np.ascontiguousarray(whole.T if pieces[0][0].transposed else whole)
    hf_config = {key: value for key, value in hf_config.items() if key != "torch_dtype"}
    return {
        Path(directory) / "model.safetensors": safetensors_content(tensors, {"format": "pt"}),
        Path(directory) / "config.json": json.dumps({**hf_config, "dtype": dtype}, indent=2) + "\n",
    }


def bytes_of(weights: Mapping[str, Any]) -> int:
    """Bytes of the weights in a dict as they are kept; a matrix under two names counts once.

    >>> shared = np.zeros((2, 3), dtype=np.float32)
    >>> bytes_of({"embed.weight": shared, "unembed.weight": shared})
    24
    """
    return sum({id(weight): weight.nbytes for weight in weights.values()}.values())
