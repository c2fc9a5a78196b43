"""A checkpoint, streamed into a flash directory within the DRAM that one layer takes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyflash.checkpoint.entries import FLOAT_DTYPES, Checkpoint
from tinyflash.checkpoint.gguf_rows import quantized_matrices
from tinyflash.checkpoint.hub import SMALL_FILES
from tinyflash.checkpoint.mapped import files_behind, let_go, refuse_changed
from tinyflash.checkpoint.noted import state_of
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import find_model
from tinyflash.config import weight_shapes
from tinyflash.families import read_config
from tinyflash.files import digest, read_bytes, read_json
from tinyflash.flash.store.bundles import (
    BLOCK,
    BUNDLINGS,
    NUMPY_NAMES,
    SAFETENSORS_NAMES,
    ffn_layout,
    itemsize,
    layout,
    padding,
    parts_of,
    regions_of,
)
from tinyflash.flash.store.directory import (
    flash_names,
    is_store,
)
from tinyflash.flash.store.manifest import FFN, FORMAT_VERSION, MANIFEST, RESIDENT, manifest_text
from tinyflash.flash.store.rounding import as_dtype
from tinyflash.flash.store.writing import digested_file, whole_or_nothing
from tinyflash.weights import locate, refuse_left_over, take

# Bytes of neurons gathered at a time: so few that the columns of a down projection, which become
# rows, pass through the processor's cache; a piece of 1 MiB takes five times as long.
PIECE = 1 << 19


@dataclass(frozen=True)
class Source:
    """A model that is open, and in which state its files were before: see `states_in`."""

    path: Path
    checkpoint: Checkpoint
    states: dict


def open_source(path) -> Source:
    """A model's directory or GGUF file, to be converted; raises as `open_checkpoint`."""
    states = states_in(path)
    return Source(path, open_checkpoint(path), states)


def convert(source, out, *, bundling="row-column", dtype="keep", progress=None):
    """Write a model as a flash directory; returns its path.

    The source is read as a stream: the pages of a layer are given back to the kernel before the
    next layer. `out` takes its name only when it is whole.

    source   : a path, hub id or word, as for --model
    out      : Path or str of what does not exist yet
    bundling : "row-column" or "plain"; see bundles.py
    dtype    : of all matrices: "keep", "float16", "bfloat16" or "float32"; vectors (gains and
               biases) keep theirs. A feed-forward of several types is kept as float32
    progress : function (bytes done, bytes in all), told often; or None
    raises   : ValueError if the model is not one that we have, is a flash directory already, has
               Inf or NaN or a number that does not fit the dtype, or if `out` exists or is being
               written; OSError if the disk is full
    """
    if bundling not in BUNDLINGS:
        raise ValueError(f"Bundling is {' or '.join(BUNDLINGS)}, not {bundling!r}.")
    if dtype not in ("keep", *NUMPY_NAMES):
        raise ValueError(f"A store is written as {', '.join(NUMPY_NAMES)} or keep, not {dtype!r}.")
    path = find_model(source)
    if is_store(path):
        raise ValueError(
            f"{path} is a flash directory already; convert the checkpoint that it was made from."
        )
    settings = {"bundling": bundling, "dtype": dtype, "progress": progress}
    return convert_source(open_source(path), source, out, **settings)


def convert_source(source, name, out, *, bundling="row-column", dtype="keep", progress=None):
    """The same for a Source; `name` is what flash.json calls it."""
    out, checkpoint = Path(out), source.checkpoint
    config = read_config(checkpoint.config)
    places = locate(checkpoint, config, weight_shapes(config))
    refuse_left_over(checkpoint, config, {place.name for place in places.values()})
    flash = {name: places.pop(name) for name in flash_names(config)}

    ffn_dtype = common_dtype(checkpoint, flash) if dtype == "keep" else dtype
    ffn = ffn_layout(config, bundling, ffn_dtype)
    dtypes = resident_dtypes(checkpoint, places, dtype)
    resident = layout(
        {n: (SAFETENSORS_NAMES[d], checkpoint.shape(n)) for n, d in dtypes.items()}, alignment=8
    )
    sources = weight_files(source.path)
    done, total = 0, sum(file.stat().st_size for file in sources) + resident.nbytes + ffn.nbytes

    def report(nbytes):
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    names = {*SMALL_FILES, RESIDENT, FFN, MANIFEST}
    with whole_or_nothing(out, names, resident.nbytes + ffn.nbytes) as part:
        digests = {file.name: digest(file, report) for file in sources}
        files = {}
        for small, content in small_files(checkpoint).items():
            with digested_file(part / small, len(content), files) as write:
                write(content)
        with digested_file(part / RESIDENT, resident.nbytes, files, report) as write:
            write_resident(write, resident, checkpoint, dtypes)
        with digested_file(part / FFN, ffn.nbytes, files, report) as write:
            write_ffn(write, ffn, checkpoint, config, flash, bundling, ffn_dtype)
        manifest = {
            "format_version": FORMAT_VERSION,
            "source": {"name": str(name), "sha256": digests},
            "dtype": ffn_dtype,
            "bundling": bundling,
            "block_size": BLOCK,
            "thresholds": None,
            "files": files,
        }
        content = manifest_text(manifest).encode()
        with digested_file(part / MANIFEST, len(content), {}) as write:
            write(content)
        refuse_changed_source([*sources, *small_paths(source.path)], source.states)
    return out


def weight_files(path):
    """The files from which `open_checkpoint` takes the weights."""
    if path.is_file():
        return [path]
    for name in ("model.safetensors", "pytorch_model.bin"):
        whole, index = path / name, path / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            shards = read_json(index)["weight_map"].values()
            return [index, *(path / shard for shard in sorted(set(shards)))]
    raise AssertionError("open_checkpoint has found them")


def stored_dtype(checkpoint, name):
    """The dtype that a tensor will have when it is taken. Raises ValueError if it is no weight."""
    dtype = checkpoint.entries[name].dtype
    if dtype not in FLOAT_DTYPES:
        checkpoint[name]  # says so
    return "float32" if dtype == "float64" else dtype


def common_dtype(checkpoint, places):
    """The dtype that the tensors at some places share; if they differ float32, which holds all."""
    dtypes = {stored_dtype(checkpoint, place.name) for place in places.values()}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def resident_dtypes(checkpoint, places, wanted):
    """The tensors that become resident.safetensors and the dtype of each, widest first.

    A fused tensor stands there once. In this order every tensor lies on a multiple of its own
    number's size, without a gap.
    """
    dtypes = {}
    for place in places.values():
        dtypes[place.name] = stored_dtype(checkpoint, place.name)
        if wanted != "keep" and len(checkpoint.shape(place.name)) == 2:
            dtypes[place.name] = wanted
    return dict(sorted(dtypes.items(), key=lambda item: -itemsize(item[1])))


def small_paths(path):
    """The small files of a model directory that a flash directory has copies of."""
    return [path / name for name in SMALL_FILES if (path / name).is_file()]


def states_in(path):
    """The state of a model's file, or of all files in its directory: see checkpoint/noted.py."""
    files = path.iterdir() if path.is_dir() else [path]
    return {file: state_of(file) for file in files if file.is_file()}


def refuse_changed_source(files, before):
    """Raise an OSError if the files of a model are not in the state that they were in before."""
    small = {file for file in before if file.name in SMALL_FILES}
    for file in sorted({*files, *small}):
        if not file.exists() or before.get(file) != state_of(file):
            raise OSError(f"{file} was changed while it was converted; try again.")


def small_files(checkpoint):
    """What stands beside the weights of a model, as dict file name -> bytes."""
    if checkpoint.path.is_dir():
        return {file.name: read_bytes(file) for file in small_paths(checkpoint.path)}
    # here and not above, because it imports the `tokenizers` package
    from tinyflash.checkpoint.gguf_tokenizer import words_of_gguf

    words = words_of_gguf(checkpoint)
    settings = dict(words.named)
    if words.chat_template is not None:
        settings["chat_template"] = words.chat_template
    contents = {
        "config.json": checkpoint.config,
        "generation_config.json": {"eos_token_id": list(words.eos_ids)},
        "tokenizer_config.json": settings,
    }
    files = {name: json.dumps(content, indent=2) + "\n" for name, content in contents.items()}
    files["tokenizer.json"] = words.backend.to_str()
    return {name: text.encode() for name, text in files.items()}


def write_resident(write, resident, checkpoint, dtypes):
    """Write resident.safetensors: the tensors of `dtypes`, as the checkpoint shapes them."""
    write(resident.header)
    quantized = quantized_matrices(checkpoint.path)
    for name, dtype in dtypes.items():
        if name in quantized:
            matrix, stored = quantized[name], "float32"
        else:
            tensor = checkpoint[name]
            matrix, stored = tensor.array.reshape(len(tensor.array), -1), tensor.dtype  # or (n, 1)
        for rows in rows_side_by_side([(matrix, stored, name)], dtype):
            write(rows)
            let_go(matrix)
        refuse_changed(files_behind([matrix]))


def write_ffn(write, ffn, checkpoint, config, places, bundling, dtype):
    """Write ffn.safetensors, layer by layer; see bundles.py."""
    write(ffn.header)
    for layer in range(config.weight_layers):
        layer_places = {
            part: places[f"layers.{layer}.ffn.{part}.weight"] for part in parts_of(config)
        }
        write_layer(write, checkpoint, layer_places, bundling, dtype)


def write_layer(write, checkpoint, places, bundling, dtype):
    """Write the regions of one layer, whose parts are at `places` of the checkpoint."""
    matrices = {}  # each (F, D), its dtype and its name; of down the transpose
    for part, place in places.items():
        array, stored = take(checkpoint, place)
        matrices[part] = (array.T if part == "down" else array, stored, place.name)
    for parts in regions_of(tuple(matrices), bundling).values():
        written = 0
        for rows in rows_side_by_side([matrices[part] for part in parts], dtype):
            write(rows)
            written += rows.nbytes
        write(bytes(padding(written)))
    for array, _, _ in matrices.values():
        let_go(array)
    refuse_changed(files_behind(array for array, _, _ in matrices.values()))


def rows_side_by_side(matrices, dtype):
    """Give the rows of several matrices, row j of each behind row j of the one before.

    matrices: list of (array (rows, columns), its dtype, name for messages); the same rows in all
    dtype   : of what is given, arrays (some of the rows, all columns)
    """
    rows = len(matrices[0][0])
    row_bytes = itemsize(dtype) * sum(array.shape[1] for array, _, _ in matrices)
    height = max(1, PIECE // row_bytes)
    for first in range(0, rows, height):
        pieces = []
        for array, stored, name in matrices:
            # Copied as it lies, which for a transposed matrix is column by column: only what is
            # in the cache is then transposed.
            piece = array[first : first + height].copy(order="K")
            pieces.append(as_dtype(piece, stored, dtype, name))
        yield np.ascontiguousarray(np.concatenate(pieces, axis=1))
