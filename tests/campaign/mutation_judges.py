"""Says whether what tinyflash makes of a spoiled file is what an independent program makes of it.

    python tests/campaign/mutation_judges.py BASE

Takes the tasks of mutation_worker.py that were accepted and changed what came out. transformers
judges logits (it also reads GGUF files) and the ids of words; `tokenizers` alone judges a spoiled
tokenizer.json that transformers does not open; what a file says in plain words is read as JSON.
"""

import contextlib
import io
import json
import os
import re
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from mutation_scenes import IDS, TEXT, TURNS, same, scenes
from mutation_worker import command_of, run, seen_in, spoiled
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

from mobilellm import is_mobilellm, open_mobilellm  # noqa: E402
from reference import logits_of  # noqa: E402

from tinyflash.families import FAMILIES  # noqa: E402

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity(50)
transformers.utils.logging.disable_progress_bar()
SETTING = re.compile(r"(\w+)=([^,)]+)")
GGUF_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")
MODEL_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
LARGEST = 1e-4  # of the logits' spread, as in tests/test_live.py


def judge_transformers(scene, folder, ours, unspoiled, task):
    """Whether transformers has the same logits."""
    floats_as_floats(folder / "config.json")
    try:
        if is_mobilellm(folder):
            theirs = logits_of(open_mobilellm(folder), IDS)[0].detach().numpy()
            return far_apart(ours, theirs)
        config = AutoConfig.from_pretrained(folder)
        masked = config.model_type == "distilbert"
        model, report = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
        if any(report.get(key) for key in ("missing_keys", "mismatched_keys")):
            raise ValueError("weights are missing")
        with torch.no_grad():
            theirs = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    except BaseException as error:
        if (folder / "pytorch_model.bin").is_file() and not task.get("again"):
            zipped_anew(folder / "pytorch_model.bin")
            return judge_transformers(scene, folder, ours, unspoiled, task | {"again": True})
        return False, f"transformers opens nothing ({type(error).__name__}: {str(error)[:200]})"
    return far_apart(ours, theirs)


def far_apart(ours, theirs):
    """How far our logits are from theirs."""
    far = np.abs(ours["logits"] - theirs).max() / max(1e-3, theirs.std())
    return bool(far <= LARGEST), f"transformers is {far:.1e} of the spread away"


def zipped_anew(file):
    """The same records in a zip without odd flags, which torch refuses and Python's does not."""
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            lengths = content[member.header_offset + 26 : member.header_offset + 30]
            at = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
            if not member.filename.endswith("version"):
                archive.writestr(member.filename, content[at : at + member.file_size])
        archive.writestr("archive/version", "3\n")


def floats_as_floats(file):
    """transformers refuses an int where a float belongs, and knows no better number for it."""
    if file.is_file():
        config = json.loads(file.read_bytes())
        defaults = FAMILIES[config["model_type"]].DEFAULTS
        if config["model_type"] == "mobilellm":  # it is no model type of transformers
            config = defaults | config
        for key in config.keys() & defaults.keys():
            if isinstance(defaults[key], float) and isinstance(config[key], int):
                config[key] = float(config[key])
        file.write_text(json.dumps(config))


def judge_gguf(scene, folder, ours, unspoiled, task):
    """Logits of a GGUF file: what the gguf package reads, as a directory for transformers."""
    reader = gguf.GGUFReader(folder / scene.file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    told = {name.removeprefix("llama."): value for name, value in said.items()}
    heads = {"attn_q": told["attention.head_count"]}
    heads["attn_k"] = told.get("attention.head_count_kv") or heads["attn_q"]
    tensors = {}
    for tensor in reader.tensors:
        layer, part, kind = GGUF_NAME.fullmatch(tensor.name).groups()
        array = gguf.dequantize(np.asarray(tensor.data), tensor.tensor_type).astype(np.float32)
        if part in heads:  # rows 2j and 2j + 1 of a head are j and j + K/2
            by_head = array.reshape(heads[part], -1, 2, *array.shape[1:])
            array = np.ascontiguousarray(by_head.swapaxes(1, 2)).reshape(array.shape)
        name = LAYER_NAMES[part] if layer else MODEL_NAMES[part]
        tensors[f"model.layers.{layer}.{name}.{kind}" if layer else f"{name}.{kind}"] = array
    config = {
        "model_type": "llama", "vocab_size": len(tensors["model.embed_tokens.weight"]),
        "hidden_size": told["embedding_length"], "num_hidden_layers": told["block_count"],
        "num_attention_heads": heads["attn_q"], "num_key_value_heads": heads["attn_k"],
        "intermediate_size": told["feed_forward_length"], "attention_bias": False,
        "head_dim": told.get("attention.key_length") or told["embedding_length"] // heads["attn_q"],
        "rms_norm_eps": float(told["attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(told.get("rope.freq_base") or 10000.0),
        "max_position_embeddings": told["context_length"],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }  # fmt: skip
    directory = folder / "as_a_directory"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return judge_transformers(scene, directory, ours, unspoiled, task)


def judge_words(scene, folder, ours, unspoiled, task):
    """Ids and texts: as transformers has them, or as the file alone says."""
    notes = []
    if not (folder / scene.file).is_file() and ours["ids"] is None:
        return True, "no words, since their file is gone"
    try:
        theirs = AutoTokenizer.from_pretrained(folder)
        bare = theirs(TEXT, add_special_tokens=False).input_ids
        ids = theirs(TEXT).input_ids  # (its GPT-2 puts nothing before, whatever add_bos_token says)
        opts = [2, *ids] if scene.folder == "words_apart" else ids
        agrees = ours["ids"] in (ids, opts) and ours["bare"] == bare
        if agrees and "chat" in ours:
            agrees = ours["chat"] == theirs.apply_chat_template(
                TURNS, tokenize=False, add_generation_prompt=True
            )
        if agrees:
            return True, "as transformers"
        notes.append(f"transformers has {theirs(TEXT).input_ids[:8]}")
    except BaseException as error:
        notes.append(f"transformers: {type(error).__name__}: {str(error)[:100]}")
    return False, "; ".join(notes)


def judge_settings(scene, folder, ours, unspoiled, task):
    """What generation_config.json says, read as it stands."""
    file = folder / scene.file
    said = json.loads(file.read_bytes()) if file.is_file() else {}
    ends = said.get("eos_token_id")
    ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    names = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    used = {name: value for name, value in SETTING.findall(ours["sampling"])}
    right = set(ours["ends"]) >= ends and set(ours["ends"]) <= ends | {2}
    if said.get("do_sample") is True:
        for name, default in names.items():
            meant = default if said.get(name) is None else float(said[name])
            held = None if used[name] == "None" else float(used[name])
            right = right and held == meant
    elif not said.get("do_sample"):
        right = right and used["temperature"] == "0.0"
    return right, f"the file says {said}"[:300]


def judge_recordings(scene, folder, ours, unspoiled, task):
    """Equal if no number is beyond the widest tolerance, and different if one is beyond it."""
    code, out, _ = run(command_of(scene, task["seed"]), folder)
    equal = json.loads(out.splitlines()[-1])["equal"]
    a, b = (load_file(folder / f"{name}.safetensors") for name in ("a", "b"))
    with np.errstate(all="ignore"):
        far = max(
            np.nan_to_num(np.abs(a[n] - b[n]).max() / max(a[n].std(), 1e-30), nan=9, posinf=9)
            if a[n].shape == b[n].shape
            else 9
            for n in a.keys() & b.keys()
        )
    right = far < 0.3 if equal else (far > 0 or scene.file.endswith(".json"))
    return bool(right) and code == (0 if equal else 1), f"farthest {far:.1e}, equal {equal}"


def judge_choices(scene, folder, ours, unspoiled, task):
    """Every question that the file has is counted, and the shares are those of whole questions."""
    lines = [line for line in (folder / scene.file).read_text().splitlines() if line.strip()]
    shown = ours["shown"]
    counted = shown["questions"] == len(lines)
    judged = shown["questions"] - len(shown["not_judged"])
    whole = all(
        abs(shown[name] * judged - round(shown[name] * judged)) < 1e-9
        for name in ("accuracy", "normalized_accuracy")
    )
    return counted and whole, f"{len(lines)} lines, {shown}"[:300]


def judge_profile(scene, folder, ours, unspoiled, task):
    """The profile is what the file says."""
    said = json.dumps(json.loads((folder / scene.file).read_bytes()), sort_keys=True)
    return ours["profile"] == said, said[:200]


def judge_training(scene, folder, ours, unspoiled, task):
    """A resumed training gives what it would have given; another config begins another one."""
    return scene.file == "config.json", "a training that is resumed gives the same model"


def judge_same(scene, folder, ours, unspoiled, task):
    """Nothing may have changed."""
    return same(ours, unspoiled), "nothing may change here"


JUDGES = {
    "transformers": judge_transformers,
    "gguf": judge_gguf,
    "words": judge_words,
    "settings": judge_settings,
    "recordings": judge_recordings,
    "choices": judge_choices,
    "profile": judge_profile,
    "training": judge_training,
    "same": judge_same,
}


def serve(base):
    """Answer every line of standard input by one line of standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tasks, sys.stdin = os.fdopen(os.dup(0)), open(os.devnull)
    known = scenes()
    for line in tasks:
        task = json.loads(line)
        scene = known[task["scene"]]
        with tempfile.TemporaryDirectory() as parent, contextlib.redirect_stderr(io.StringIO()):
            os.environ["XDG_CACHE_HOME"] = f"{parent}/cache"
            folder = Path(parent) / "spoiled"
            spoiled(base, scene, task["seed"], folder)
            if scene.judge in ("recordings", "choices"):
                _, out, _ = run(command_of(scene, task["seed"]), folder)
                ours, unspoiled = seen_in(out), None
            else:
                if scene.judge == "training":
                    run(command_of(scene, task["seed"]), folder)
                ours = scene.look(folder)
                unspoiled = scene.look(base / scene.folder) if scene.judge == "same" else None
            try:
                right, said = JUDGES[scene.judge](scene, folder, ours, unspoiled, task)
            except Exception as error:
                right, said = False, f"the judge fails: {type(error).__name__}: {error}"
        outcome = "judged right" if right else "wrong"
        answers.write(json.dumps({"outcome": outcome, "said": said + f" | {ours!r}"[:300]}) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
