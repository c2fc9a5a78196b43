"""Checkpoints of real shapes and random weights, for measuring where the real ones cannot be had.

    python -m benchmarks.synth opt-6.7b OUT

writes a Hugging Face directory with the sizes and tensor names of facebook/opt-6.7b (or
tiiuae/falcon-7b with ReLU, or meta-llama/Llama-2-7b with ReLU) and with the sparsity that *LLM in a
flash* reports (`synth_statistics.py`). Time, bytes and sparsity can be measured on it; what it
writes is noise. Its tokenizer is the embedded model's, so its text uses only the first 2048 words.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.synth_statistics import Planting
from tinyflash.checkpoint.sources import embedded
from tinyflash.config import weight_shapes
from tinyflash.families import read_config, tensor_names
from tinyflash.flash.store.writing import reserve, whole_or_nothing
from tinyflash.terminal import progress
from tinyflash.tokenizer import open_tokenizer

SHARD_BYTES = 2_000_000_000  # at most, unless one tensor takes more
SAMPLE = 512  # tokens of text on which the thresholds are set
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SMALL_FILES = (*TOKENIZER_FILES, "config.json", "model.safetensors.index.json", "README.md")
NOTE = "random weights with planted sparsity, written by benchmarks.synth; not a trained model"


@dataclass(frozen=True)
class Shape:
    """Sizes of a synthetic model, and how many of its neurons are active.

    family : "opt", "falcon" or "llama";  kv_heads : what the family has, 1 for falcon
    active : percent of the neurons, at equal steps from the first layer to the last
    directions : rank of what a predictor can know of the activity
    noise  : share of a pre-activation's variance that it cannot know; more gives false positives
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn_width: int
    vocab_size: int
    context: int
    active: tuple
    directions: int = 64
    noise: float = 0.28


SHAPES = {
    # Layers 1, 16 and 32 as in Table 6; between them straight lines, but for the 4.80 at layer 24,
    # which is ours and makes the mean the table's 3.30.
    "opt-6.7b": Shape(
        "opt", 32, 4096, 32, 32, 16384, 50272, 2048,
        tuple(np.interp(range(1, 33), (1, 16, 24, 32), (1.56, 2.66, 4.80, 5.36)).tolist()),
    ),
    # More noise than OPT: the paper's predictors name enough neurons for four tokens to use 33 %.
    "falcon-7b": Shape("falcon", 32, 4544, 71, 1, 18176, 65024, 2048, (5.0,), noise=0.42),
    "llama-2-7b": Shape("llama", 32, 4096, 32, 32, 11008, 32000, 4096, (10.0,)),
}  # fmt: skip


def synthesize(shape, out, seed=0, report=lambda done, total: None):
    """Write a synthetic model as a Hugging Face directory of float16 safetensors.

    shape  : Shape
    out    : directory that must not exist; it appears when it is whole
    report : told how many tensors of how many are written
    returns: measured share of active neurons on a sample of text, one number a layer
    raises : ValueError if `out` exists, the disk has too little room or the sizes do not fit
             together; OSError if the disk becomes full
    """
    out = Path(out)
    hf = hf_config(shape)
    config = read_config(hf)
    layout = stored_tensors(config)
    tokenizer_directory = embedded("tiny-opt")
    ids = sample_of_text(tokenizer_directory, min(SAMPLE, config.context))
    check_sizes(shape, ids)
    shards = planned_shards(layout)
    nbytes = sum(2 * int(np.prod(size)) for size, _ in layout.values())
    check_room(out, nbytes)
    shares = np.interp(
        np.linspace(0, 1, config.layers), np.linspace(0, 1, len(shape.active)), shape.active
    )
    planting = Planting(config, shares / 100, seed, ids, shape.directions, shape.noise)
    with whole_or_nothing(out, {*shards, *SMALL_FILES}, nbytes) as part:
        write_shards(part, shards, layout, planting.groups(), report)
        index = {stored: name for name, held in shards.items() for stored in held}
        write_json(
            part / "model.safetensors.index.json",
            {"metadata": {"total_size": nbytes}, "weight_map": index},
        )
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_directory / name, part / name)
        (part / "README.md").write_text(readme(shape, seed, planting.active), encoding="utf-8")
        write_json(part / "config.json", hf)
    return planting.active


def hf_config(shape):
    """The config.json of a shape, in its family's words."""
    common = {
        "_synthetic": NOTE,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "bos_token_id": 2,  # as the embedded tokenizer has it
        "eos_token_id": 2,
        "pad_token_id": 1,
        "dtype": "float16",
    }
    special = {
        "opt": {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "ffn_dim": shape.ffn_width,
            "word_embed_proj_dim": shape.width,
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "tie_word_embeddings": True,
        },
        "falcon": {
            "model_type": "falcon",
            "architectures": ["FalconForCausalLM"],
            "ffn_hidden_size": shape.ffn_width,
            "activation": "relu",
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
            "bias": False,
            "alibi": False,
            "layer_norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        },
        "llama": {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.ffn_width,
            "hidden_act": "relu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
    }
    return special[shape.family] | common


def stored_tensors(config):
    """The tensors of the checkpoint in the order in which they are made.

    returns: dict stored name -> (shape, our names whose rows follow one another in it)
    """
    places, layout = tensor_names(config), {}
    for name, (rows, *columns) in weight_shapes(config).items():
        (before, *_), names = layout.get(places[name].name, ((0,), ()))
        layout[places[name].name] = ((before + rows, *columns), (*names, name))
    return layout


def planned_shards(layout):
    """Which tensors each file holds: dict file name -> list of stored names, in order."""
    shards, room = [], 0
    for stored, (shape, _) in layout.items():
        nbytes = 2 * int(np.prod(shape))
        if nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(stored)
        room -= nbytes
    count = len(shards)
    return {
        f"model-{k:05d}-of-{count:05d}.safetensors": held for k, held in enumerate(shards, start=1)
    }


def write_shards(part, shards, layout, groups, report):
    """Write every tensor as soon as it is made; no more than one layer is held.

    groups : iterator of dicts our name -> float16 array, in the order of `layout`
    """
    made, done = {}, 0
    for file_name, held in shards.items():
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for stored in held:
            shape = layout[stored][0]
            begin, end = end, end + 2 * int(np.prod(shape))
            header[stored] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # data begins at a multiple of 8, as `safetensors` has it
        with open(part / file_name, "wb") as file:
            reserve(file.fileno(), 8 + len(text) + end)
            file.write(len(text).to_bytes(8, "little") + text)
            for stored in held:
                names = layout[stored][1]
                while not all(name in made for name in names):
                    made |= next(groups)
                for name in names:
                    file.write(np.ascontiguousarray(made.pop(name)))
                done += 1
                report(done, len(layout))


def sample_of_text(tokenizer_directory, T):
    """The first T tokens of the held-out text: int (T,)."""
    text = (tokenizer_directory.parent / "heldout.txt").read_text(encoding="utf-8")
    ids = open_tokenizer(tokenizer_directory).encode(text[: 20 * T])
    return np.array(ids[:T], dtype=np.int64)


def check_sizes(shape, ids):
    """Raise a ValueError if the shape has too few words for the text, or no room to plant in."""
    if not shape.active or not all(0 < percent < 100 for percent in shape.active):
        raise ValueError(
            f"{shape.active} are no shares of active neurons; each is a percentage, above 0 and "
            "below 100."
        )
    if ids.max() >= shape.vocab_size:
        raise ValueError(
            f"The embedded tokenizer's text uses token {ids.max()}, so a vocabulary of "
            f"{shape.vocab_size} words is too small; take at least {ids.max() + 1}."
        )
    widest = shape.width - 2 if shape.family == "opt" else shape.width // shape.heads
    if not 1 <= shape.directions <= widest:
        raise ValueError(
            f"{shape.directions} directions cannot be planted in a {shape.family} of this shape; "
            f"choose 1 to {widest}."
        )


def check_room(out, nbytes):
    """Raise a ValueError if the disk on which `out` would lie has less than `nbytes` free."""
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < nbytes + 10_000_000:  # the small files
        raise ValueError(
            f"{out} would take {nbytes:,} bytes and {free:,} are free there; make room, or choose "
            "another place."
        )


def readme(shape, seed, active):
    """What the directory says of itself."""
    table = "".join(f"| {i} | {100 * share:.2f} |\n" for i, share in enumerate(active, start=1))
    return (
        f"# A synthetic {shape.family} of {shape.layers} layers, width {shape.width}\n\n"
        f"This is not a trained model: {NOTE} (seed {seed}). Its text is noise; its sizes, tensor "
        "names and share of active neurons are those of the real one. The tokenizer is that of "
        "tinyflash's embedded model and knows 2048 words.\n\n"
        f"Active neurons on the {SAMPLE} tokens of text on which the thresholds were set:\n\n"
        f"| layer | percent |\n|---|---|\n{table}"
    )


def write_json(path, value):
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(arguments=None):
    """The command `python -m benchmarks.synth`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synth",
        description="Write a checkpoint of a real shape with random weights and planted sparsity.",
    )
    parser.add_argument("shape", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("out", metavar="OUT", help="the directory to write, 13 GB")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        with progress(f"writing {options.shape}", "tensors") as report:
            active = synthesize(SHAPES[options.shape], options.out, report=report)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print("benchmarks.synth:", " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    nbytes = sum(file.stat().st_size for file in Path(options.out).iterdir())
    print(
        f"{options.out}: {nbytes / 1e9:.1f} GB, {100 * np.mean(active):.2f} % of the neurons "
        f"active, in {time.perf_counter() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
