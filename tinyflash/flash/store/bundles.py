"""Which bytes of a flash directory's ffn.safetensors sit next to which.

row-column (LLM in a flash, §3.2): whatever neuron j is made of lies together, as one *bundle*,

    | row j of up | row j of gate | column j of down |        parts · D numbers

so that one read brings it. plain: three matrices one behind the other, the down projection
transposed, so that its column j is a row as well; a neuron then takes as many reads as it has
parts. Both hold the same numbers. Every tensor begins on a block boundary of the flash.
"""

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np

from tinyflash.flash.reading.direct_io import BLOCK

BUNDLINGS = ("row-column", "plain")
SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
NUMPY_NAMES = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}


@dataclass(frozen=True)
class Layout:
    """Where the tensors of one safetensors file lie.

    header : the file's beginning: length of the JSON, the JSON, spaces up to the first tensor
    offsets: first byte of each tensor, counted from the beginning of the file
    nbytes : of the whole file
    """

    header: bytes
    offsets: dict[str, int]
    nbytes: int


def itemsize(dtype):
    """Bytes of one number of a stored type."""
    return np.dtype(NUMPY_NAMES[dtype]).itemsize


def parts_of(config):
    """What a neuron is made of, in the order in which a bundle has it."""
    return ("up", "gate", "down") if config.gated else ("up", "down")


def regions_of(parts, bundling):
    """The matrices of neurons that one layer is stored as: dict region -> its parts."""
    if bundling == "row-column":
        return {"bundle": parts}
    return {part: (part,) for part in parts}


def tensor_name(layer, region):
    """What a region of a layer is called in ffn.safetensors."""
    return f"layers.{layer}.ffn" if region == "bundle" else f"layers.{layer}.ffn.{region}"


def padding(nbytes):
    """Bytes from the end of a tensor to the next block boundary."""
    return -nbytes % BLOCK


def ffn_layout(config, bundling, dtype):
    """The Layout of ffn.safetensors: each region (F, its parts · D), on block boundaries.

    The format allows no holes between tensors. So spaces lengthen the header, and a tensor that
    ends off a boundary is followed by one of U8, `_pad.N`, that fills the block.
    """
    F, D = config.ffn_width, config.width
    tensors, pads = {}, itertools.count()
    for layer in range(config.weight_layers):
        for region, parts in regions_of(parts_of(config), bundling).items():
            shape = (F, len(parts) * D)
            tensors[tensor_name(layer, region)] = (SAFETENSORS_NAMES[dtype], shape)
            pad = padding(math.prod(shape) * itemsize(dtype))
            if pad:
                tensors[f"_pad.{next(pads)}"] = ("U8", (pad,))
    return layout(tensors, BLOCK)


def layout(tensors, alignment):
    """The Layout of a safetensors file that holds `tensors` one behind the other.

    tensors  : dict name -> (type as safetensors calls it, shape)
    alignment: the data begin on a multiple of so many bytes
    """
    sizes = {name: itemsize(dtype) for dtype, name in SAFETENSORS_NAMES.items()} | {"U8": 1}
    described, end = {}, 0
    for name, (kind, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * sizes[kind]
        described[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + about["data_offsets"][0] for name, about in described.items()}
    return Layout(header, offsets, len(header) + end)


def extents(store, layer, neurons):
    """Where the bytes of some neurons of a layer lie, and where in their bundle rows they belong.

    neurons: ints (n,), any order; neuron neurons[k] is row k of the answer
    returns: list of (byte offset in ffn.safetensors, bytes, row k, byte within the bundle row);
             one a neuron if bundled, else one a part, part after part
    """
    part_bytes = store.row_bytes // len(store.parts)
    found = []
    for region, parts in regions_of(store.parts, store.bundling).items():
        base = store.regions[layer][region]
        nbytes = part_bytes * len(parts)
        column = part_bytes * store.parts.index(parts[0])
        for row, neuron in enumerate(neurons):
            found.append((base + int(neuron) * nbytes, nbytes, row, column))
    return found
