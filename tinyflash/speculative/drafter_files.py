"""A ReDrafter drafter on disk, in the names of the released code.

Checkpoints are directories with a config.json and weights as in Hugging Face's format. The MLX
port of that code uses the same names, and may add `emb_norm.weight`, which nothing reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.safetensors_file import safetensors_content
from tinyflash.checks import MOST_LAYERS, is_count, short
from tinyflash.files import printable, write_files
from tinyflash.ops import dense
from tinyflash.weights import bind, shape_text

MODEL_TYPE = "recurrent_drafting_drafter"
UNUSED = ("emb_norm.weight",)


@dataclass(frozen=True)
class DrafterConfig:
    """Sizes of a drafter; `vocab_size` and `width` are those of the model that it drafts for.

    exit_width : width of the draft layers, the released code's exit_dim
    layers     : draft layers, at least 0
    rnn        : False for drafters whose state is the mere sum of the embeddings
    raises     : ValueError if a size is not a whole number

    >>> DrafterConfig(vocab_size=50, width=8, exit_width=16, layers=1).rnn
    True
    """

    vocab_size: int
    width: int
    exit_width: int
    layers: int
    rnn: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "width", "exit_width"):
            if not is_count(getattr(self, name)):
                raise ValueError(
                    f"A drafter's {name} must be a whole number of at least 1, but its config "
                    f"says {short(getattr(self, name))}."
                )
        if self.layers != 0 and not (is_count(self.layers) and self.layers <= MOST_LAYERS):
            raise ValueError(
                f"A drafter's number of layers must be a whole number of at most {MOST_LAYERS:,}, "
                f"but its config says {short(self.layers)}."
            )
        if not isinstance(self.rnn, bool):
            raise ValueError(
                f"rnn must be true or false, but the drafter's config says {short(self.rnn)}."
            )


@dataclass(frozen=True)
class DrafterNetwork:
    """The network: sizes, and its weights by the names of `weight_shapes`.

    >>> DrafterNetwork(DrafterConfig(vocab_size=50, width=8, exit_width=16, layers=1), {})
    <DrafterNetwork: 1 layers of width 16, 50 tokens>
    """

    config: DrafterConfig
    weights: dict[str, Any]

    def __repr__(self):
        sizes = f"{self.config.layers} layers of width {self.config.exit_width}"
        return f"<DrafterNetwork: {sizes}, {self.config.vocab_size:,} tokens>"


def weight_shapes(config: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a drafter's weights: dict name -> shape, each (out, in) or (out,).

    >>> weight_shapes(DrafterConfig(vocab_size=50, width=8, exit_width=16, layers=0, rnn=False))
    {'lm_head.0.weight': (50, 16)}
    """
    V, D, E = config.vocab_size, config.width, config.exit_width
    shapes: dict[str, tuple[int, ...]] = {}
    if E != 2 * D:
        shapes |= {"input_proj.weight": (E, 2 * D), "input_proj.bias": (E,)}
    for i in range(config.layers):
        shapes |= {f"lm_head.{i}.linear.weight": (E, E), f"lm_head.{i}.linear.bias": (E,)}
    shapes[f"lm_head.{config.layers}.weight"] = (V, E)
    if config.rnn:
        shapes |= {"rnn_u.weight": (D, D), "rnn_u.bias": (D,), "rnn_w.weight": (D, D)}
    return shapes


def load_drafter(directory: str | Path, dtype: Any = np.float32) -> DrafterNetwork:
    """The drafter in a directory, as the released code, its MLX port or `save_drafter` write it.

    16-bit matrices stay so and are decoded as they are multiplied.

    returns: DrafterNetwork
    raises : FileNotFoundError, ValueError if it is not there, damaged or not a drafter

    >>> from tinyflash.checkpoint.sources import embedded
    >>> load_drafter(embedded("tiny-opt-drafter"))
    <DrafterNetwork: 1 layers of width 384, 2,048 tokens>
    """
    checkpoint = open_checkpoint(directory)
    keys = checkpoint.config
    if keys.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{checkpoint.path} is not a ReDrafter drafter: its model_type is "
            f"{short(keys.get('model_type'))} and not {MODEL_TYPE!r}."
        )
    missing = {"vocab_size", "hidden_size", "exit_dim", "num_draft_layers"} - keys.keys()
    if missing:
        raise ValueError(
            f"{checkpoint.path}: config.json does not say {', '.join(sorted(missing))}."
        )
    config = DrafterConfig(
        vocab_size=keys["vocab_size"],
        width=keys["hidden_size"],
        exit_width=keys["exit_dim"],
        layers=keys["num_draft_layers"],
        rnn=keys.get("rnn", False),  # as where that code is asked to leave it out
    )
    shapes, weights = weight_shapes(config), {}
    left = [name for name in checkpoint.names() if name not in shapes and name not in UNUSED]
    if left:
        raise ValueError(
            f"{checkpoint.path} holds {len(left)} tensors that config.json does not call for, "
            f"{printable(left[0])} first; the config and the weights do not belong together."
        )
    for name, shape in shapes.items():
        if checkpoint.shape(name) != shape:
            raise ValueError(
                f"{checkpoint.path}: tensor {name} is {shape_text(checkpoint.shape(name))} where "
                f"config.json calls for {shape_text(shape)}."
            )
        tensor = checkpoint[name]
        weights[name] = bind(tensor.array, tensor.dtype, name, dtype)
    return DrafterNetwork(config, weights)


def save_drafter(directory: str | Path, drafter: DrafterNetwork, dtype: str = "float32") -> None:
    """Write a drafter as the released code does, which can load it: weights first, config last.

    dtype : "float16" or "float32", of the file
    raises: ValueError if a weight does not fit float16's range

    >>> import tempfile
    >>> config = DrafterConfig(vocab_size=5, width=2, exit_width=4, layers=0, rnn=False)
    >>> drafter = DrafterNetwork(config, {"lm_head.0.weight": np.ones((5, 4), dtype=np.float32)})
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_drafter(directory, drafter)
    ...     load_drafter(directory)
    <DrafterNetwork: 0 layers of width 4, 5 tokens>
    """
    write_files(drafter_files(directory, drafter, dtype), parents=True)


def drafter_files(
    directory: str | Path, drafter: DrafterNetwork, dtype: str = "float32"
) -> dict[Path, Any]:
    """What `save_drafter` writes, for `files.write_files`: dict path -> content.

    >>> config = DrafterConfig(vocab_size=5, width=2, exit_width=4, layers=0, rnn=False)
    >>> drafter = DrafterNetwork(config, {"lm_head.0.weight": np.ones((5, 4), dtype=np.float32)})
    >>> [path.name for path in drafter_files("out", drafter)]
    ['model.safetensors', 'config.json']
    """
    config, tensors = drafter.config, {}
    for name in weight_shapes(config):
        weight = drafter.weights[name]
        with np.errstate(over="ignore"):
            array = dense(weight).astype(dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers beyond {dtype}'s range; save it as float32.")
        tensors[name] = np.ascontiguousarray(array)
    keys = {
        "architectures": ["Drafter"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "exit_dim": config.exit_width,
        "num_draft_layers": config.layers,
        "num_lookback_tokens": -1,  # of that code, which does not use it
        "rnn": config.rnn,
        "dtype": dtype,
    }
    return {
        Path(directory) / "model.safetensors": safetensors_content(tensors, {"format": "pt"}),
        Path(directory) / "config.json": json.dumps(keys) + "\n",
    }
