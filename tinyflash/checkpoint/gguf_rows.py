"""Quantized matrices of a GGUF file, some rows at a time.

A Checkpoint decodes such a tensor whole, and the embedding of a large vocabulary takes gigabytes
as float32: more than a converter may have.
"""

from pathlib import Path

import numpy as np

from tinyflash.checkpoint.gguf_file import (
    QUANTIZED,
    hugging_face_name,
    read,
    refuse_infinite_scales,
)

REORDERED = ("self_attn.q_proj", "self_attn.k_proj")  # their rows are put in order whole


class QuantizedRows:
    """A quantized matrix that decodes the rows asked for: rows[first:last] is float32 (n, in).

    base: uint8 (out, bytes of a row), mapped; called so because arrays call it so
    """

    def __init__(self, path, tensor, name):
        """Wrap a tensor as the gguf package has it. path, name: for messages."""
        self.path, self.name, self.type = path, name, tensor.tensor_type
        self.base = np.asarray(tensor.data)
        self.shape = tuple(int(size) for size in reversed(tensor.shape))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Rows of a slice, float32. Raises ValueError if a block's scale is Inf or NaN."""
        import gguf

        blocks = self.base[rows]
        refuse_infinite_scales(self.path, self.name, blocks, self.type.name)
        return gguf.dequantize(blocks, self.type)


def quantized_matrices(path):
    """The matrices of a checkpoint that are better decoded row by row: dict name -> QuantizedRows.

    Empty unless `path` is a GGUF file. Names are Hugging Face's.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    matrices = {}
    for theirs, tensor in read(path)[1].items():
        name = hugging_face_name(theirs)
        if name is None or any(part in name for part in REORDERED):
            continue
        if tensor.tensor_type.name in QUANTIZED:
            matrices[name] = QuantizedRows(path, tensor, name)
    return matrices
