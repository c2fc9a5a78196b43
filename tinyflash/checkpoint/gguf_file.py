"""A GGUF file as a checkpoint: llama.cpp's names, rows and metadata as Hugging Face has them.

What comes out reads like the directory that the file was converted from, so the llama family
file needs to know nothing about GGUF.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.entries import Checkpoint, Entry
from tinyflash.checkpoint.gguf_config import ROPE_FREQS, hugging_face_config
from tinyflash.checkpoint.mapped import file_behind, mapped_array
from tinyflash.files import naming, to_install

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # mapped as they are
QUANTIZED = {"Q8_0": 1, "Q4_0": 1, "Q4_1": 2}  # how many float16 numbers begin a block of 32

# GGUF -> Hugging Face, without "blk.{i}." / "model.layers.{i}." in front and ".weight" behind
MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, repr=False)
class GGUFCheckpoint(Checkpoint):
    """A Checkpoint with the file's metadata, which holds the tokenizer.

    metadata    : every key of the file, as Python numbers, strings and lists
    tensor_types: how many tensors the file stores in each type, such as {"Q4_1": 210, "F32": 61}
    """

    metadata: dict = field(default_factory=dict)
    tensor_types: Counter = field(default_factory=Counter)


def open_gguf(path):
    """Open a GGUF file of a llama-family model; no tensor is read yet.

    F32, F16 and BF16 tensors are mapped (q and k are copied, their rows are out of order);
    Q8_0, Q4_0 and Q4_1 tensors are dequantized to float32 each time they are asked for.

    path   : the file
    returns: GGUFCheckpoint under Hugging Face names, matrices (out, in)
    raises : FileNotFoundError; ValueError if the gguf package is missing, the file is truncated
             or damaged, or it holds an architecture, a tensor type or a setting we do not have
    """
    path = Path(path)
    metadata, tensors = read(path)
    config = hugging_face_config(path, metadata, tensors)
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    entries = {}
    for name, tensor in tensors.items():
        if name == ROPE_FREQS:  # config has it, as rope_scaling
            continue
        theirs = hugging_face_name(name)
        if theirs is None:
            raise ValueError(
                f"{path}: tensor {name} belongs to no llama model that tinyflash knows (it has no "
                "mixtures of experts), and leaving it out could give wrong text."
            )
        part = name.split(".")[-2]
        entries[theirs] = entry(path, tensor, theirs, heads.get(part))
    types = Counter(tensor.tensor_type.name for tensor in tensors.values())
    return GGUFCheckpoint(path, config, entries, metadata=metadata, tensor_types=types)


def read(path):
    """Metadata of a GGUF file, and the gguf package's view of its tensors, by name.

    raises: ValueError if the package is missing, or a part of what the file announces is
    """
    try:
        import gguf
    except ImportError:
        raise ValueError(
            f"{path}: reading GGUF files needs one more package: {to_install('gguf>=0.17', 'gguf')}"
        ) from None

    class Reader(gguf.GGUFReader):
        data = None  # the file, mapped as we do it and not as the package does

        def __setattr__(self, name, value):
            super().__setattr__(name, mapped_array(path) if name == "data" else value)

        def _get(self, offset, dtype, count=1, override_order=None):
            # Two reasons to say this in our own way: the package's own returns less than it was
            # asked for where the file ends, and it takes five times as long over a vocabulary.
            if self.byte_order != "I":
                raise ValueError("its numbers are big-endian")
            return np.frombuffer(self.data, dtype=dtype, count=int(count), offset=int(offset))

    if not begins_as_gguf(path):
        raise ValueError(f"{path} is not a GGUF file: it does not begin with the word GGUF.")
    try:
        with naming(path):
            reader = Reader(path)
        metadata = {key: value.contents() for key, value in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{path} is truncated or damaged, or of a GGUF version that we do not read ({error}); "
            "fetch it again."
        ) from error
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def begins_as_gguf(path):
    """Whether a file's first bytes are those of a GGUF file, whatever its name."""
    with naming(path), open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def hugging_face_name(name):
    """The Hugging Face name of a GGUF tensor, or None for one that no llama model has."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)", name)
    if match is None:
        return None
    layer, part, kind = match.groups()
    theirs = (MODEL_NAMES if layer is None else LAYER_NAMES).get(part)
    if theirs is None:
        return None
    return f"{theirs}.{kind}" if layer is None else f"model.layers.{layer}.{theirs}.{kind}"


def entry(path, tensor, name, heads):
    """One tensor as an Entry that decodes it when it is asked for.

    tensor : as gguf's reader has it: sizes fastest first, so (out, in) is the other way round
    name   : its Hugging Face name, for messages
    heads  : H for q, G for k, None for tensors whose rows are in order
    """
    kind = tensor.tensor_type.name
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if kind not in PLAIN and kind not in QUANTIZED:
        raise ValueError(
            f"{path}: tensor {name} is stored as {kind}, and tinyflash reads "
            f"{', '.join([*PLAIN, *QUANTIZED])}; take the Q8_0 or F16 file of the same model (one "
            "that is called Q4_0, say, holds its largest matrices in other formats)."
        )
    if heads is not None and shape[0] % (2 * heads):
        raise ValueError(
            f"{path}: the {shape[0]} rows of tensor {name} are not {heads} heads of even width; "
            "the file's metadata and its tensors disagree, so convert the model anew."
        )

    def load():
        stored = np.asarray(tensor.data)  # (out, in), or (out, bytes of a row); mapped
        if heads is not None or kind in QUANTIZED:
            # What is copied anyway is read: mapped pages would stay in DRAM beside the copy.
            offset = int(tensor.data_offset)
            with naming(path):
                numbers = np.fromfile(path, stored.dtype, stored.size, offset=offset)
            file_behind(stored).refuse_changed(also_replaced=True)
            stored = numbers.reshape(stored.shape)
        if heads is not None:
            stored = stored[half_split_rows(heads, shape[0] // heads)]
        if kind in QUANTIZED:
            refuse_infinite_scales(path, name, stored, kind)
            import gguf

            return gguf.dequantize(stored, tensor.tensor_type)
        return stored.view(np.uint16) if kind == "BF16" else stored

    return Entry(PLAIN.get(kind, "float32"), shape, int(tensor.n_bytes), load)


def half_split_rows(heads, width):
    """Which stored row each row of a Hugging Face q or k matrix is.

    A rotary pair is (j, j + K/2) in Hugging Face's models and (2j, 2j + 1) in llama.cpp's, so
    llama.cpp's converter reorders the rows of every head; this is the way back.

    heads, width: H (or G) and K;  returns: int64 (heads · K,)
    """
    stored = np.arange(heads * width, dtype=np.int64).reshape(heads, width // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)  # (heads, 2, K/2) -> (heads · K,)


def refuse_infinite_scales(path, name, blocks, kind):
    """Raise a ValueError that names the tensor if a block's scale or minimum is Inf or NaN.

    blocks : uint8 (..., blocks · bytes of a block)
    """
    numbers = QUANTIZED[kind]
    block_bytes = 2 * numbers + (32 if kind == "Q8_0" else 16)
    scales = blocks.reshape(-1, block_bytes)[:, : 2 * numbers].copy().view(np.float16)
    if not np.isfinite(scales).all():
        raise ValueError(
            f"{path}: tensor {name} has Inf or NaN among the scales of its {kind} blocks, so no "
            "result computed with it would mean anything; get another copy of the file."
        )
