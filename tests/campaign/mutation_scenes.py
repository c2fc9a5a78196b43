"""What the campaign of mutations spoils, by which commands it is used, and what then must hold.

A scene is a folder, one file in it that is spoiled, the commands that read it, and what is looked
at when they accept it.
"""

import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from gguf import GGMLQuantizationType

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers_models import (  # noqa: E402
    CHAT_TEMPLATE,
    CONFIGS,
    DISTILBERT_CONFIG,
    TOKENIZER_TEXT,
    small_tokenizer,
    write_model,
)
from helpers_sources import BLOCKS_CONFIG, to_bin, to_shards, write_llama_gguf  # noqa: E402
from mutate import (  # noqa: E402
    mutate_bin,
    mutate_bytes,
    mutate_gguf,
    mutate_header,
    mutate_json,
    mutate_safetensors,
    mutate_text,
)
from test_bench_flash import DISK  # noqa: E402
from test_flash_model import with_predictors  # noqa: E402
from test_redrafter import random_drafter  # noqa: E402

import tinyflash  # noqa: E402
from tinyflash.cli import main  # noqa: E402
from tinyflash.costs.device_profile import load_profile  # noqa: E402
from tinyflash.flash.store.convert import convert  # noqa: E402
from tinyflash.flash.store.directory import open_store  # noqa: E402
from tinyflash.speculative.drafter_files import DrafterConfig, save_drafter  # noqa: E402

# Sizes that transformers, which judges, takes too.
SIZES = {
    name: config | ({"hidden_size": 24} if config.get("hidden_size") == 22 else {})
    for name, config in CONFIGS.items()
}
GGUF_SIZES = BLOCKS_CONFIG | {"hidden_size": 96, "head_dim": 16}
IDS = [2, 50, 60, 70, 50, 60, 9, 200, 31, 4, 4, 77]
TEXT = "Once upon a time the river, 12 stones: naïve</s> and the sea."
TURNS = [{"role": "user", "content": "Who sang?"}, {"role": "assistant", "content": "The river."}]


@dataclass(frozen=True)
class Scene:
    """A folder of the base, and what the campaign does with a copy of it.

    file     : what is spoiled, below the folder
    mutate   : function (bytes, rng) -> bytes
    commands : lists of arguments; `@x` is the file x of the copy
    look     : function (folder) -> what must stay, as numbers and texts by name
    judge    : who says what is right where it did not: a name of mutation_judges.JUDGES
    share    : how often the scene is taken, as a weight
    """

    folder: str
    file: str
    mutate: Callable
    commands: list
    look: Callable
    judge: str
    share: float


def scenes():
    """Every scene by its name."""
    return {
        **{scene_name(scene): scene for scene in model_scenes()},
        **{scene_name(scene): scene for scene in word_scenes()},
        **{scene_name(scene): scene for scene in other_scenes()},
    }


def scene_name(scene):
    return f"{scene.folder}/{scene.file}"


WRITE = ["generate", "Once upon", "--model", "@.", "--max-new-tokens", "3", "--json"]
RECORD = ["record", "@.", "--ids", "2,5,6", "--out", "@new.safetensors", "--json"]
CONVERT = ["convert", "@.", "@new.flash", "--json"]
TRAIN = ["train", "lm", "--config", "@config.json", "--text", "@text.txt", "--out", "@out",
         "--steps", "2", "--batch", "2", "--length", "8", "--workers", "1", "--json"]  # fmt: skip
JUDGE_TEXT = ["evaluate", "@.", "--text", "@text.txt", "--json"]
CHAT = [*WRITE, "--chat"]
SAMPLE = [*WRITE, "--seed", "3"]


def model_scenes():
    """Configs, weights and their containers of every family."""
    for name in [*CONFIGS, "distilbert"]:
        commands = [RECORD, CONVERT] if name == "distilbert" else [WRITE, RECORD, CONVERT]
        yield Scene(name, "config.json", mutate_json, commands, logits_of, "transformers", 2.2)
        if name in ("opt", "llama", "gpt2", "falcon-40b", "distilbert"):
            args = (mutate_safetensors, commands, logits_of, "transformers", 2.4)
            yield Scene(name, "model.safetensors", *args)
    yield Scene("shards", "model.safetensors.index.json", mutate_json, [WRITE, CONVERT],
                logits_of, "transformers", 4)  # fmt: skip
    yield Scene("shards", "model-00002-of-00002.safetensors", mutate_safetensors, [WRITE, CONVERT],
                logits_of, "transformers", 2)  # fmt: skip
    yield Scene("bin", "pytorch_model.bin", mutate_bin, [WRITE, CONVERT], logits_of,
                "transformers", 8)  # fmt: skip
    for name in ("f16", "q4_1"):
        commands = [
            [*WRITE[:3], f"@{name}.gguf", *WRITE[4:]],
            ["convert", f"@{name}.gguf", "@new.flash", "--json"],
        ]
        yield Scene("gguf", f"{name}.gguf", mutate_gguf, commands, gguf_logits_of(f"{name}.gguf"),
                    "gguf", 8)  # fmt: skip
    yield Scene("adapter", "adapter_config.json", mutate_json, [WRITE], logits_of, "same", 0.5)


def word_scenes():
    """Tokenizers, templates and settings of generation."""
    words = [WRITE, CHAT, JUDGE_TEXT]
    for file, mutate, share in (
        ("tokenizer.json", mutate_json, 7),
        ("tokenizer_config.json", mutate_json, 4),
        ("special_tokens_map.json", mutate_json, 2),
        ("chat_template.jinja", mutate_text, 1.5),
    ):
        folder = "words_jinja" if file.endswith("jinja") else "words"
        yield Scene(folder, file, mutate, words, words_of, "words", share)
    for file, mutate in (("vocab.json", mutate_json), ("merges.txt", mutate_bytes)):
        yield Scene("words_apart", file, mutate, words, words_of, "words", 1.5)
    yield Scene("words", "generation_config.json", mutate_json, [WRITE, SAMPLE, CHAT],
                settings_of, "settings", 4)  # fmt: skip


def other_scenes():
    """Flash directories, recordings, choices, profiles, drafters."""
    for file, mutate, share in (
        ("flash.json", mutate_json, 4),
        ("config.json", mutate_json, 1),
        ("ffn.safetensors", mutate_safetensors, 1.5),
        ("resident.safetensors", mutate_safetensors, 1.5),
        ("predictor.safetensors", mutate_safetensors, 1.5),
    ):
        commands = [[*WRITE, "--memory", "90%"], ["convert", "@.", "--check", "--json"]]
        yield Scene("store", file, mutate, commands, logits_of, "same", share)
    diff = [["diff", "@a.safetensors", "@b.safetensors", "--json"]]
    for file, mutate, share in (
        ("b.json", mutate_json, 4),
        ("b.safetensors", mutate_safetensors, 3),
        ("a.safetensors", mutate_safetensors, 1),
    ):
        yield Scene("recordings", file, mutate, diff, nothing, "recordings", share)
    asked = [["evaluate", "@.", "--choices", "@choices.jsonl", "--json"]]
    yield Scene("choices", "choices.jsonl", mutate_lines, asked, nothing, "choices", 5)
    yield Scene("profile", "disk.json", mutate_json, [
        ["bench", "flash", "@.", "--profile", "@disk.json", "--tokens", "1", "--prompt", "4",
         "--modes", "hybrid", "--memory", "100%", "--json"],
    ], profile_of, "profile", 1)  # fmt: skip
    drafted = [[*WRITE[:3], "@model", *WRITE[4:], "--drafter", "@drafter"]]
    for file, mutate, share in (
        ("drafter/config.json", mutate_json, 4),
        ("drafter/model.safetensors", mutate_safetensors, 2),
    ):
        yield Scene("drafted", file, mutate, drafted, drafted_text, "same", share)

    for file, mutate in (
        ("out.training/training_state.safetensors", mutate_header),
        ("out.training/tokenizer.json", mutate_json),
        ("out.training/run.json", mutate_json),
        ("config.json", mutate_json),
    ):
        yield Scene("training", file, mutate, [TRAIN], trained_logits, "training", 1)


def mutate_lines(content, rng):
    """A file of one JSON value a line, with one line spoiled or the file as a whole."""
    if rng.random() < 0.3:
        return mutate_text(content, rng)
    lines = content.splitlines()
    at = rng.integers(len(lines))
    lines[at] = mutate_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


# What is looked at.


def logits_of(folder):
    """Logits of a few tokens."""
    return {"logits": tinyflash.load(folder).logits(IDS)}


def gguf_logits_of(file):
    """The same of a file in the folder."""
    return lambda folder: {"logits": tinyflash.load(folder / file).logits(IDS)}


def words_of(folder):
    """What a text and a conversation are as token ids, and what ids are as text."""
    model = tinyflash.load(folder)
    words = model.tokenizer
    if words is None:
        return {"ids": None}
    looked = {
        "ids": words.encode(TEXT),
        "bare": words.encode(TEXT, add_special_tokens=False),
        "text": words.decode(range(4, 290)),
        "ends": sorted(model.eos_ids),
    }
    if words.chat_template is not None:
        looked["chat"] = words.render_chat(TURNS)
    return looked


def settings_of(folder):
    """What generation_config.json recommends, as it is used; and the tokens that end a text."""
    model = tinyflash.load(folder)
    return {"sampling": repr(model.recommended.sampling({})), "ends": sorted(model.eos_ids)}


def drafted_text(folder):
    """Greedy text with the drafter, which no drafter may change."""
    model = tinyflash.load(folder / "model")
    return {"text": "".join(model.generate(IDS, max_new_tokens=12, drafter=folder / "drafter"))}


def trained_logits(folder):
    """Logits of the model that came out."""
    return logits_of(folder / "out")


def profile_of(folder):
    """The profile, read."""
    return {"profile": json.dumps(load_profile(folder / "disk.json"), sort_keys=True)}


def nothing(folder):
    """Where the command itself says the result."""
    return {}


# The folders.


def write_base(base):
    """Write the folder of every scene below `base`."""
    for name, config in [*SIZES.items(), ("distilbert", DISTILBERT_CONFIG)]:
        write_model(base / name, config, seed=4)
    to_shards(write_model(base / "shards", SIZES["llama"], seed=4))
    index = base / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}} | json.loads(index.read_text())))
    to_bin(write_model(base / "bin", SIZES["qwen2"], seed=4))
    with zipfile.ZipFile(base / "bin" / "pytorch_model.bin", "a") as archive:
        archive.writestr("archive/version", "3\n")  # torch wants to see it
    (base / "gguf").mkdir()
    for name in ("F16", "Q4_1"):
        kind = GGMLQuantizationType[name]
        write_llama_gguf(base / "gguf" / f"{name.lower()}.gguf", kind, GGUF_SIZES)
    write_model(base / "adapter", SIZES["opt"])
    settings = {"base_model_name_or_path": "facebook/opt-125m", "peft_type": "LORA", "r": 8}
    (base / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    write_words(base)
    store = open_store(convert(base / "opt", base / "store"))
    with_predictors(store)
    write_others(base)


def write_words(base):
    """Models whose words are looked at: tokenizer.json, its parts, a template of its own."""
    generation = {
        "bos_token_id": 2, "eos_token_id": [2, 3], "do_sample": True, "temperature": 0.7,
        "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "transformers_version": "4.40.0",
    }  # fmt: skip
    special = {"bos_token": "</s>", "eos_token": {"content": "</s>", "lstrip": False}}
    for name in ("words", "words_jinja", "words_apart"):
        config = SIZES["opt" if name == "words_apart" else "llama"]
        folder = write_model(base / name, config, chat=name != "words_jinja")
        (folder / "text.txt").write_text(TOKENIZER_TEXT)
        (folder / "generation_config.json").write_text(json.dumps(generation))
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (base / "words_jinja" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = base / "words_apart" / "tokenizer_config.json"
    kind = {"tokenizer_class": "GPT2Tokenizer"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | kind))
    folder, model = base / "words_apart", json.loads(small_tokenizer().to_str())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")


def write_others(base):
    """Recordings, questions, a profile, a drafter."""
    (base / "recordings").mkdir()
    for name in ("a", "b"):
        main(["record", str(base / "opt"), "--ids", "2,5,6",
              "--out", str(base / "recordings" / f"{name}.safetensors"), "--json"])  # fmt: skip
    folder = write_model(base / "choices", SIZES["opt"])
    words = TOKENIZER_TEXT.split()
    questions = [
        {"context": " ".join(words[i : i + 4]), "choices": [f" {w}" for w in words[i : i + 3]],
         "answer": i % 3} for i in range(6)
    ]  # fmt: skip
    (folder / "choices.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    folder = write_model(base / "profile", SIZES["opt"])
    (folder / "disk.json").write_text(json.dumps(DISK))
    folder = base / "training"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZES["opt"]))
    (folder / "text.txt").write_text(TOKENIZER_TEXT * 4)
    with patch("tinyflash.training.run.checkpoint_files", side_effect=KeyboardInterrupt):
        main([str(folder / a[1:]) if a.startswith("@") else a for a in TRAIN])
    write_model(base / "drafted" / "model", SIZES["opt"], seed=4)
    config = DrafterConfig(vocab_size=307, width=24, exit_width=48, layers=1)
    save_drafter(base / "drafted" / "drafter", random_drafter(config))


def same(one, other):
    """Whether two looks saw the same: numbers to rounding, all else exactly."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.shape != other.shape:
            return False
        return bool(np.abs(one - other).max() <= 1e-5 * max(1e-3, other.std()))
    return one == other
