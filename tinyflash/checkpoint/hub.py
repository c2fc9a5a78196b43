"""Models from the Hugging Face hub: which files of a repository are fetched, and once."""

import fnmatch
import re
from pathlib import Path

from tinyflash.checkpoint.adapter import ADAPTER
from tinyflash.files import files_in, read_text
from tinyflash.streams import note

MODEL_IS = (
    "a model is a directory, a .gguf file, a hub id such as facebook/opt-125m or gpt2, or one of "
    "the words default and smollm2"
)
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)
# One whole file or shards with their index; safetensors before PyTorch's.
WEIGHT_FILES = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)


def find_on_hub(hub_id, progress=None):
    """The snapshot of a hub repository: config, tokenizer and weights, and nothing else.

    Without the network a snapshot that was fetched whole before is used.

    raises: ConnectionError if the hub cannot be reached; FileNotFoundError if it has no such
            model, or the model has no weights that we read
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if progress is False:
        disable_progress_bars()
    try:
        about = HfApi().model_info(hub_id, timeout=10, files_metadata=True)
        files = [file for file in about.siblings if file.rfilename.isprintable()]
        sizes = {file.rfilename: getattr(file, "size", None) or 0 for file in files}
        wanted = wanted_files(list(sizes))
        if wanted:
            sizes = {file: sizes[file] for file in wanted}
            say_fetching(hub_id, sizes, getattr(about, "sha", None))
            return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except RepositoryNotFoundError:  # also when it is gated
        raise FileNotFoundError(
            f"There is no directory {hub_id} here, and the hub has no such model, or only for "
            f"those who log in (hf auth login); {MODEL_IS}."
        ) from None
    except Exception as error:  # of whichever HTTP package huggingface_hub is built on
        snapshot = cached_snapshot(hub_id)
        if snapshot is not None:
            return snapshot
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if "/" not in hub_id:  # more likely a slip of the pen
            raise FileNotFoundError(
                f"There is no {hub_id!r} here, and the hub could not be asked for a model of that "
                f"name ({reason}); {MODEL_IS}."
            ) from None
        raise ConnectionError(
            f"{hub_id} could not be fetched from the hub ({reason}); try again with a network, or "
            "give the path of a directory that holds the model."
        ) from None
    raise FileNotFoundError(
        f"{hub_id} on the hub has no weights that tinyflash reads (model.safetensors or "
        "pytorch_model.bin, whole or in shards); of a GGUF repository fetch one file and give its "
        "path."
    )


def say_fetching(hub_id, sizes, revision):
    """Say what is to be fetched from the hub, and how much, if anything is.

    sizes : bytes of each file that is wanted, by name
    """
    from huggingface_hub import try_to_load_from_cache

    cached = {file: try_to_load_from_cache(hub_id, file, revision=revision) for file in sizes}
    missing = [file for file, path in cached.items() if not isinstance(path, str)]
    if missing:
        megabytes = sum(sizes[file] for file in missing) / 1e6
        note(f"Fetching {hub_id}, {megabytes:,.0f} MB in {len(missing)} files from the hub, once")


def wanted_files(files):
    """Which of a repository's files make a model; an empty list if there are no weights.

    Of an adapter it is the file that names its base, which `open_checkpoint` then says.
    """
    if ADAPTER in files:
        return [ADAPTER]
    for patterns in WEIGHT_FILES:
        weights = [file for pattern in patterns for file in fnmatch.filter(files, pattern)]
        if patterns[0] in weights:
            return [file for file in SMALL_FILES if file in files] + weights
    return []


def cached_snapshot(hub_id):
    """A snapshot that an earlier run fetched, or None if there is none or it is not whole."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(hub_id, local_files_only=True))
    except Exception:  # there is none
        return None
    for index in files_in(snapshot, "*.index.json"):
        shards = set(re.findall(r'"([^"/]+\.(?:safetensors|bin))"', read_text(index)))
        if not all((snapshot / shard).is_file() for shard in shards):
            return None
    weights = any((snapshot / patterns[0]).is_file() for patterns in WEIGHT_FILES)
    return snapshot if weights and (snapshot / "config.json").is_file() else None
