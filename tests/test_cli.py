"""The command: what each verb prints, its exit codes, and one sentence for every bad input."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers_models import GPT2_CONFIG, LLAMA_CONFIG, OPT_CONFIG, TOKENIZER_TEXT, write_model
from helpers_pytorch_bin import call, name, program, text, write_zip
from rich.console import Console
from safetensors.numpy import load_file, save_file

import tinyflash
from tinyflash import cli, terminal
from tinyflash.cli import main
from tinyflash.commands import evaluate as evaluation
from tinyflash.commands import generate as commands
from tinyflash.commands.answer import peak_dram
from tinyflash.files import write_whole
from tinyflash.training import language_model, run_files
from tinyflash.training import run as train_command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of random models."""
    directory = tmp_path_factory.mktemp("models")
    return {
        "opt": write_model(directory / "opt", OPT_CONFIG, seed=4, chat=True),
        "gpt2": write_model(directory / "gpt2", GPT2_CONFIG, seed=4),
        "llama": write_model(directory / "llama", LLAMA_CONFIG, seed=4),
        "wordless": write_model(directory / "wordless", OPT_CONFIG, seed=4, tokenizer=False),
    }


def done(capsys, *arguments, code=0):
    """Standard output of a command that must end with this exit code."""
    assert main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out


def last_json(out):
    return json.loads(out.splitlines()[-1])


def refused(capsys, *arguments):
    """The sentence with which a command refuses: exit code 2, one line, nothing else.

    A line that says what is in DRAM may stand before it, if the model did open.
    """
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return sentence(err)


def sentence(err):
    *before, line = err.splitlines()
    assert err.endswith("\n") and "Traceback" not in err
    assert before == [] or (len(before) == 1 and "in DRAM, computed in float" in before[0])
    assert line.startswith("tinyflash: ") and len(line) < 500
    return line


def process(*arguments, **settings):
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(tinyflash.__file__).parents[1])}
    environment.pop("PYTHONUNBUFFERED", None)  # most people have it not, and then pipes break later
    return subprocess.Popen(
        [sys.executable, "-m", "tinyflash", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **settings,
    )


def finished(running):
    """Output and errors of a process; one that hangs is killed."""
    try:
        return running.communicate(timeout=120)
    finally:
        running.kill()


# generate

PROMPT = "The river rose, and when the sun came"


def test_generate_writes_the_text_and_nothing_else_to_standard_output(models, capsys):
    made = tinyflash.load(models["opt"]).generate(PROMPT, max_new_tokens=12)
    list(made)
    assert main(["generate", PROMPT, "--model", str(models["opt"]), "--max-new-tokens", "12"]) == 0
    out, err = capsys.readouterr()
    assert out == made.text + "\n"
    opened, cost = err.splitlines()
    assert "in DRAM, computed in float32" in opened and "float16" in opened
    for words in ("12 new tokens", "tokens/s", "ended by: length"):
        assert words in cost
    assert ("peak DRAM" in cost) == (peak_dram() is not None)


def test_generate_as_json(models, capsys):
    arguments = ["generate", PROMPT, "--model", models["opt"], "--max-new-tokens", "12", "--json"]
    out = done(capsys, *arguments)
    assert len(out.splitlines()) == 1
    result = last_json(out)
    assert set(result) == {
        "text",
        "tokens",
        "stop_reason",
        "prompt_tokens",
        "prompt_seconds",
        "seconds",
        "tokens_per_second",
        "sampling",
        "drafter",
        "passes",
        "steps",
        "drafted",
        "accepted",
        "draft_seconds",
        "tokens_per_step",
        "peak_dram_bytes",
    }
    model = tinyflash.load(models["opt"])
    made = model.generate(PROMPT, max_new_tokens=12)
    list(made)
    assert (result["text"], result["tokens"]) == (made.text, 12)
    assert result["prompt_tokens"] == len(model.encode(PROMPT))
    assert result["tokens_per_second"] > 0
    peak = result["peak_dram_bytes"]  # not on Windows
    assert peak is None if peak_dram() is None else 20e6 < peak < 20e9


def test_no_new_tokens_have_no_speed(models, capsys):
    arguments = ["generate", PROMPT, "--model", models["opt"], "--max-new-tokens", "0"]
    result = last_json(done(capsys, *arguments, "--json"))
    assert result["tokens"] == 0 and result["text"] == ""
    assert done(capsys, *arguments) == "\n"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.5, "seed": 3},
        {"temperature": 2.0, "seed": 3, "top_k": 2},
        {"temperature": 2.0, "seed": 4, "top_p": 0.3},
        {"temperature": 2.0, "seed": 4, "min_p": 0.3},
        {"repetition_penalty": 1.7},
        {"presence_penalty": 5.0},
        {"frequency_penalty": 2.0},
        {"no_repeat_ngram": 1},
        {"max_new_tokens": 5},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_generate_passes_its_settings_on(models, capsys, settings):
    model = tinyflash.load(models["llama"])
    made = model.generate(PROMPT, **{"max_new_tokens": 20} | settings)
    list(made)
    plain = model.generate(PROMPT, max_new_tokens=20)
    list(plain)
    assert made.ids != plain.ids
    options = ["--max-new-tokens", 20]
    for option, value in settings.items():
        options += [f"--{option.replace('_', '-')}", value]
    result = last_json(
        done(capsys, "generate", PROMPT, "--model", models["llama"], "--json", *options)
    )
    assert (result["text"], result["tokens"]) == (made.text, len(made.ids))


def test_generate_stops_at_any_of_several_texts(models, capsys):
    arguments = ["generate", PROMPT, "--model", models["llama"], "--max-new-tokens", 20, "--json"]
    plain = last_json(done(capsys, *arguments))["text"]
    stop = plain[4:6]
    result = last_json(done(capsys, *arguments, "--stop", "no such words", "--stop", stop))
    assert result["text"] == plain[: plain.index(stop)] and result["stop_reason"] == "stop"


def test_a_prompt_from_standard_input(models, capsys, monkeypatch):
    expected = done(capsys, "generate", PROMPT, "--model", models["opt"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert done(capsys, "generate", "-", "--model", models["opt"]) == expected


def test_chat_answers_line_by_line(models, capsys, monkeypatch):
    chat = tinyflash.load(models["opt"]).chat()
    expected = ["".join(chat.say(q, max_new_tokens=4)) for q in ("Why?", "And who?")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Why?\n\n  \nAnd who?\n"))
    arguments = ["generate", "--chat", "--model", models["opt"], "--max-new-tokens", "4"]
    assert done(capsys, *arguments) == "".join(f"{answer}\n" for answer in expected)
    assert last_json(done(capsys, *arguments, "--json", "Why?"))["text"] == expected[0]


# evaluate


def test_evaluate_perplexity_and_choices(models, capsys, tmp_path):
    (tmp_path / "text").write_text(TOKENIZER_TEXT)
    question = {"context": "The river", "choices": [" ran", " sang"], "answer": 1}
    (tmp_path / "choices").write_text(json.dumps(question) + "\n")
    files = ["--text", tmp_path / "text", "--choices", tmp_path / "choices"]
    result = last_json(done(capsys, "evaluate", models["opt"], *files, "--json"))
    assert set(result) == {
        "model",
        "perplexity",
        "nats_per_token",
        "tokens",
        "context_rule",
        "questions",
        "accuracy",
        "normalized_accuracy",
        "shortened",
        "not_judged",
    }
    model = tinyflash.load(models["opt"])
    from tinyflash.choices import multiple_choice
    from tinyflash.evaluate import perplexity

    measured = perplexity(model, TOKENIZER_TEXT)
    assert result["perplexity"] == pytest.approx(measured.perplexity, rel=1e-6)
    assert result["tokens"] == measured.tokens and "96 tokens" in result["context_rule"]
    assert result["accuracy"] == multiple_choice(model, [question]).accuracy

    table = done(capsys, "evaluate", models["opt"], *files)
    assert f"{measured.perplexity:.4f}"[:6] in table and "context rule" in table
    only = last_json(done(capsys, "evaluate", models["opt"], *files[:2], "--json"))
    assert "accuracy" not in only and only["perplexity"] == result["perplexity"]


def test_what_measures_a_model_never_looks_at_what_its_makers_recommend(models, capsys, tmp_path):
    folder = tmp_path / "recommending"
    shutil.copytree(models["opt"], folder)
    recommended = {"do_sample": "yes", "temperature": "hot", "repetition_penalty": 1.9}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    text = tmp_path / "text.txt"
    text.write_text(TOKENIZER_TEXT)
    recordings = []
    for model in (models["opt"], folder):
        recordings.append(tmp_path / f"{len(recordings)}.safetensors")
        done(capsys, "record", model, "--text", "The river", "--out", recordings[-1])
    measured = [
        last_json(done(capsys, "evaluate", model, "--text", text, "--json"))["perplexity"]
        for model in (models["opt"], folder)
    ]
    assert measured[0] == measured[1]
    assert main(["diff", *map(str, recordings)]) == 0
    capsys.readouterr()
    assert "do_sample = 'yes'" in refused(capsys, "generate", "The", "--model", folder)


# record and diff


def test_record_and_diff(models, capsys, tmp_path):
    a, b, other = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "other"))
    result = last_json(
        done(capsys, "record", models["opt"], "--text", "The river", "--out", a, "--json")
    )
    ids = tinyflash.load(models["opt"]).encode("The river")
    assert result["ids"] == ids and result["out"] == str(a)
    assert result["tensors"] == len(load_file(a)) and result["bytes"] > 0
    numbers = ",".join(map(str, ids))
    assert str(b) in done(
        capsys, "record", models["opt"], "--ids", numbers, "--out", b, "--dtype", "float64"
    )
    result = last_json(done(capsys, "diff", a, b, "--json"))
    assert set(result) >= {"equal", "dtype", "tolerance", "first", "hint", "rows"}
    assert result["equal"] and result["first"] is None
    assert result["dtype"] == "float32" and len(result["rows"]) == len(load_file(a))
    assert "Equal" in done(capsys, "diff", a, b)

    weights = load_file(models["opt"] / "model.safetensors")
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in models["opt"].iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    weights["model.decoder.layers.1.fc1.bias"] = weights["model.decoder.layers.1.fc1.bias"] + 1
    save_file(weights, changed / "model.safetensors")
    done(capsys, "record", changed, "--ids", numbers, "--out", other)
    result = last_json(done(capsys, "diff", a, other, "--json", code=1))
    assert result["first"] == "layers.1.ffn.pre" and not result["equal"]
    assert "layers.1.ffn.pre" in done(capsys, "diff", a, other, code=1)


# train lm

TRAINED = {
    "model_type": "opt",
    "vocab_size": 270,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 12,
    "max_position_embeddings": 16,
    "eos_token_id": 2,
    "bos_token_id": 2,
}


@pytest.fixture
def lesson(tmp_path):
    """What `tinyflash train lm` needs, in a directory; the model is to be in `out`."""
    (tmp_path / "config.json").write_text(json.dumps(TRAINED))
    (tmp_path / "text").write_text(TOKENIZER_TEXT * 2)
    return tmp_path


def train_arguments(lesson, out="out", **changes):
    settings = {"config": lesson / "config.json", "text": lesson / "text", "out": lesson / out}
    settings |= {"steps": 6, "batch": 2, "workers": 1} | changes
    flat = ["train", "lm"]
    for option, value in settings.items():
        flat += [f"--{option.replace('_', '-')}", str(value)]
    return flat


def test_train_lm_makes_a_model_that_writes(lesson, capsys):
    (lesson / "heldout").write_text(TOKENIZER_TEXT[:100])
    arguments = train_arguments(lesson, heldout=lesson / "heldout", active_share=0.3)
    result = last_json(done(capsys, *arguments, "--json"))
    assert set(result) >= {"out", "steps", "tokens", "loss", "heldout_loss", "active"}
    assert result["steps"] == 6 and result["tokens"] == 6 * 2 * 16
    assert 3 < result["loss"] < 7 and 3 < result["heldout_loss"] < 7
    curve = json.loads((lesson / "out" / "training_curve.json").read_text())
    assert [row["step"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1]["loss"] == pytest.approx(result["loss"], rel=1e-4)
    made = last_json(done(capsys, "generate", "The", "--model", lesson / "out", "--json"))
    assert made["tokens"] > 0
    assert "loss" in done(capsys, *arguments)  # nothing is left to do, and it says the same


def test_training_goes_on_from_a_model(lesson, capsys):
    done(capsys, *train_arguments(lesson))
    again = {"from": lesson / "out", "learning_rate": 1e-9, "steps": 1, "seed": 5}
    done(capsys, *train_arguments(lesson, "more", **again))
    first, more = (load_file(lesson / out / "model.safetensors") for out in ("out", "more"))
    for key, array in first.items():  # a step so small is rounded away
        np.testing.assert_array_equal(array, more[key], err_msg=key)
    tokenizers = [(lesson / out / "tokenizer.json").read_bytes() for out in ("out", "more")]
    assert tokenizers[0] == tokenizers[1]
    done(capsys, *train_arguments(lesson, "other", learning_rate=1e-9, steps=1, seed=5))
    other = load_file(lesson / "other" / "model.safetensors")
    assert any(np.any(array != other[key]) for key, array in first.items())


@pytest.mark.parametrize(
    "start, words",
    [
        ("nowhere", "nowhere has no tokenizer.json"),
        ("wordless", "has no tokenizer.json"),
        ("opt", "do not belong together"),
    ],
)
def test_training_does_not_go_on_from_something_else(models, lesson, capsys, start, words):
    before = sorted(lesson.iterdir())
    start = models.get(start, lesson / start)
    assert words in refused(capsys, *train_arguments(lesson, **{"from": start}))
    assert sorted(lesson.iterdir()) == before


@pytest.mark.parametrize("damage", ["{", '{"model": 3}', "far"])
def test_the_words_of_an_interrupted_training_are_looked_at(lesson, capsys, monkeypatch, damage):
    kill_after(monkeypatch, 3)
    assert main([str(argument) for argument in train_arguments(lesson)]) == 130
    capsys.readouterr()
    monkeypatch.undo()
    file = lesson / "out.training" / "tokenizer.json"
    words = json.loads(file.read_text())
    words["model"]["vocab"]["surprise"] = 2**31
    file.write_text(json.dumps(words) if damage == "far" else damage)
    line = refused(capsys, *train_arguments(lesson))
    assert "tokenizer.json" in line and ("id 2147483648" in line or "cannot be read" in line)


def kill_after(monkeypatch, steps):
    """Have the next training be interrupted after so many steps; it saves every second one."""
    count = iter(range(1, 1000))

    def interrupted(config, ids, recipe, directory, *, report, **settings):
        def report_and_die(row):
            report(row)
            if next(count) == steps:
                raise KeyboardInterrupt

        return original(config, ids, recipe, directory, report=report_and_die, **settings)

    original = ORIGINAL_TRAIN
    monkeypatch.setattr(language_model, "SAVE_EVERY", 2)
    monkeypatch.setattr(train_command, "train", interrupted)


ORIGINAL_TRAIN = train_command.train


@pytest.mark.parametrize("killed_after", [1, 3])  # before the first saved state, and after it
def test_a_killed_training_resumes_bit_for_bit(lesson, capsys, monkeypatch, killed_after):
    done(capsys, *train_arguments(lesson, "whole"))
    kill_after(monkeypatch, killed_after)
    done(capsys, *train_arguments(lesson, "killed"), code=130)
    assert not (lesson / "killed").exists()
    kill_after(monkeypatch, 1000)
    done(capsys, *train_arguments(lesson, "killed", workers=2))
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        whole, resumed = (lesson / out / file for out in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes(), file
    steps = json.loads((lesson / "killed" / "training_curve.json").read_text())
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]


def test_a_state_that_is_written_half_is_not_the_state(lesson, capsys, monkeypatch):
    done(capsys, *train_arguments(lesson, "whole"))
    kill_after(monkeypatch, 1000)
    saves = []

    def killed_at_the_second(path, content, **settings):
        saves.append(path)
        if len(saves) == 2:
            Path(path).with_name("half.part").write_bytes(b"half")
            raise KeyboardInterrupt
        write_whole(path, content)

    monkeypatch.setattr(run_files, "write_whole", killed_at_the_second)
    done(capsys, *train_arguments(lesson, "killed"), code=130)
    assert not (lesson / "killed").exists() and len(saves) == 2
    done(capsys, *train_arguments(lesson, "killed"))
    whole, resumed = (lesson / out / "model.safetensors" for out in ("whole", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize(
    "config, changes, words",
    [
        ({}, {"text": "short"}, "fewer than one training sequence of 17"),
        ({}, {"text": "empty"}, "The text"),
        ({}, {"heldout": "short"}, "short has"),
        ({}, {"heldout": "empty"}, "empty has at most 0 tokens"),
        ({"vocab_size": 9000}, {}, "entries"),
        ({"vocab_size": 100}, {}, "vocabulary of 100 is too small"),
        ({"num_attention_heads": 3}, {}, "8 does not divide into 3 heads"),
        ({"hidden_size": 0}, {}, "width must be a whole number"),
        ({"model_type": "bert"}, {}, "encoder"),
        ({"switch": 1}, {}, "'switch'"),
        ({}, {"config": "text"}, "damaged JSON"),
        ({}, {"config": "list"}, "damaged JSON"),
        ({}, {"config": "elsewhere"}, "No such file"),
        ({}, {"text": "elsewhere"}, "No such file"),
        ({}, {"text": "bytes"}, "not in UTF-8"),
        ({}, {"length": 17}, "does not fit the model's context of 16"),
        ({}, {"length": 0}, "--length"),
        ({}, {"steps": 0}, "--steps"),
        ({}, {"batch": 0}, "--batch"),
        ({}, {"workers": 0}, "--workers"),
        ({}, {"learning_rate": "nan"}, "--learning-rate"),
        ({}, {"learning_rate": 0}, "--learning-rate"),
        ({}, {"active_share": 1.5}, "--active-share"),
    ],
)
def test_training_that_cannot_be_leaves_nothing_behind(lesson, capsys, config, changes, words):
    (lesson / "config.json").write_text(json.dumps(TRAINED | {"vocab_size": 260} | config))
    (lesson / "short").write_text("The river")
    (lesson / "empty").write_text("")
    (lesson / "list").write_text("[]")
    (lesson / "bytes").write_bytes(b"\xff\xfe\x00")
    before = sorted(lesson.iterdir())
    for option in ("config", "text", "heldout"):
        if option in changes:
            changes = changes | {option: lesson / changes[option]}
    assert words in refused(capsys, *train_arguments(lesson, **changes))
    assert sorted(lesson.iterdir()) == before


def test_a_damaged_tokenizer_of_a_run_is_refused(lesson, capsys):
    done(capsys, *train_arguments(lesson, steps=1))
    (lesson / "out.training" / "tokenizer.json").write_text("{")
    line = refused(capsys, *train_arguments(lesson, steps=1))
    assert "out.training/tokenizer.json: the tokenizer cannot be read" in line


def test_a_sparse_model_needs_relu(lesson, capsys):
    config = {**LLAMA_CONFIG, "vocab_size": 260, "max_position_embeddings": 16}
    (lesson / "config.json").write_text(json.dumps(config))
    assert "relu" in refused(capsys, *train_arguments(lesson, active_share=0.1))


def test_a_state_of_another_shape_or_recipe_is_refused_and_kept(lesson, capsys):
    done(capsys, *train_arguments(lesson, steps=2))
    files = {path: path.read_bytes() for path in lesson.rglob("*") if path.is_file()}
    assert "recipe differs in" in refused(capsys, *train_arguments(lesson, steps=9))
    (lesson / "wider.json").write_text(json.dumps(TRAINED | {"ffn_dim": 16}))
    arguments = train_arguments(lesson, steps=2, config=lesson / "wider.json")
    assert "config differs in ffn_width" in refused(capsys, *arguments)
    for path, content in files.items():
        assert path.read_bytes() == content, path


# Bad input.


def copied(source, target, **config):
    """A copy of a model directory, with other words in its config.json."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    whole = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(whole))
    return target


def broken(models, tmp_path, what):
    """A model directory with one thing wrong."""
    directory = copied(models["llama"], tmp_path / "broken")
    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    up = "model.layers.1.mlp.up_proj.weight"
    if what == "a truncated shard":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "no weights":
        weights.unlink()
    elif what == "a missing tensor":
        del tensors[up]
        save_file(tensors, weights)
    elif what == "a misshapen tensor":
        save_file(tensors | {up: np.ones((3, 3), dtype=np.float16)}, weights)
    elif what == "a tensor too many":
        save_file(tensors | {"model.extra.weight": np.ones(3, dtype=np.float16)}, weights)
    elif what.startswith(("NaN", "Inf")):
        tensor = "model.norm.weight" if what == "NaN in a vector" else up
        array = tensors[tensor].astype(np.float32 if "float32" in what else np.float16)
        array.reshape(-1)[5] = float(what[:3])
        save_file(tensors | {tensor: array}, weights)
    elif what == "a hostile pickle":
        weights.unlink()
        shell = call(name("os", "system"), text(f"touch {tmp_path / 'witness'}"))
        write_zip(directory / "pytorch_model.bin", program(shell), {})
    elif what == "a damaged config":
        (directory / "config.json").write_text("{")
    elif what == "a damaged tokenizer":
        (directory / "tokenizer.json").write_text("{")
    else:
        changes = {
            "an unknown model type": {"model_type": "mamba"},
            "an encoder": {"model_type": "bert"},
            "an unknown switch": {"norm_first": True},
            "text where a number belongs": {"hidden_size": "22"},
            "another shape": {"hidden_size": 24},
        }[what]
        whole = json.loads((directory / "config.json").read_text()) | changes
        (directory / "config.json").write_text(json.dumps(whole))
    return directory


BROKEN = {
    "a truncated shard": "model.safetensors",
    "no weights": "no weights",
    "a missing tensor": "no tensor named model.layers.1.mlp.up_proj.weight",
    "a misshapen tensor": "model.layers.1.mlp.up_proj.weight is 3 × 3",
    "a tensor too many": "model.extra.weight",
    "NaN in a vector": "model.norm.weight holds Inf or NaN",
    "NaN in a float16 matrix": "model.layers.1.mlp.up_proj.weight holds Inf or NaN",
    "Inf in a float32 matrix": "layers.1.ffn.up.weight holds Inf or NaN",
    "NaN in a float32 matrix": "layers.1.ffn.up.weight holds Inf or NaN",
    "a hostile pickle": "asks for os.system",
    "a damaged config": "damaged JSON",
    "a damaged tokenizer": "tokenizer",
    "an unknown model type": "'mamba'; it has distilbert, falcon, gemma, gpt2",
    "an encoder": "A bert model is an encoder",
    "an unknown switch": "'norm_first'",
    "text where a number belongs": "number",
    "another shape": "do not belong together",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused_in_one_sentence(models, tmp_path, capsys, what):
    directory = broken(models, tmp_path, what)
    (tmp_path / "text").write_text(TOKENIZER_TEXT)
    recording = tmp_path / "taps.safetensors"
    for arguments in (
        ("generate", PROMPT, "--model", directory),
        ("generate", PROMPT, "--model", directory, "--json"),
        ("evaluate", directory, "--text", tmp_path / "text"),
        ("record", directory, "--ids", "5,6", "--out", recording),
    ):
        assert BROKEN[what] in refused(capsys, *arguments)
    assert not recording.exists() and not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["PROMPT", "--model", "/no/such/model"], "There is no"),
        (["PROMPT", "--model", ""], "There is no"),
        (["PROMPT", "--model", "no-such-word"], "There is no"),
        (["PROMPT", "--model", "EMPTY"], "empty"),
        (["PROMPT", "--model", "FILE"], "gguf"),
        (["PROMPT", "--temperature", "-1"], "temperature must be 0"),
        (["PROMPT", "--temperature", "nan"], "temperature must be 0"),
        (["PROMPT", "--top-k", "-1"], "top-k"),
        (["PROMPT", "--min-p", "2"], "min-p"),
        (["PROMPT", "--repetition-penalty", "0"], "repetition penalty"),
        (["PROMPT", "--suppress-tokens", "1,x"], "--suppress-tokens takes numbers"),
        (["PROMPT", "--suppress-tokens", "1,400"], "Token 400 cannot be suppressed"),
        (["PROMPT", "--top-p", "1.5"], "top-p"),
        (["PROMPT", "--seed", "-1"], "seed"),
        (["PROMPT", "--max-new-tokens", "-1"], "number of new tokens"),
        (["PROMPT", "--stop", ""], "empty stop string"),
        (["LONG"], "tokens and the model's context is 96; shorten"),
        (["", "--model", "gpt2"], "prompt is empty"),
        ([], "Give a prompt"),
        (["PROMPT", "--model", "wordless"], "no tokenizer"),
        (["PROMPT", "--chat", "--model", "gpt2"], "no chat template"),
        (["a\udcff"], "not in UTF-8"),
    ],
)
def test_generate_refuses_in_one_sentence(models, tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    meant = {"PROMPT": PROMPT, "LONG": TOKENIZER_TEXT, "EMPTY": tmp_path / "empty"}
    meant |= {"FILE": tmp_path / "file"} | {name: str(path) for name, path in models.items()}
    arguments = [meant.get(argument, argument) for argument in arguments]
    if "--model" not in arguments:
        arguments += ["--model", models["opt"]]
    assert words in refused(capsys, "generate", *arguments)


def test_standard_input_that_is_no_text(models, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
    assert "not in UTF-8" in refused(capsys, "generate", "-", "--model", models["opt"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["evaluate", "opt"], "Give --text FILE"),
        (["evaluate", "opt", "--text", "nowhere"], "No such file"),
        (["evaluate", "opt", "--text", "empty"], "no token to predict"),
        (["evaluate", "opt", "--text", "bytes"], "not in UTF-8"),
        (["evaluate", "opt", "--choices", "nowhere"], "No such file"),
        (["evaluate", "opt", "--choices", "empty"], "no question"),
        (["evaluate", "opt", "--choices", "bytes"], "not in UTF-8"),
        (["evaluate", "opt", "--choices", "half"], "line 2"),
        (["evaluate", "opt", "--choices", "deep"], "line 1"),
        (["evaluate", "wordless", "--text", "half"], "no tokenizer"),
        (["record", "opt", "--out", "a.safetensors"], "either --text TEXT or --ids"),
        (["record", "opt", "--out", "a.safetensors", "--ids", "1", "--text", "b"], "either"),
        (["record", "opt", "--out", "a.safetensors", "--ids", "1,x"], "--ids takes numbers"),
        (["record", "opt", "--out", "a.safetensors", "--ids", ""], "--ids takes numbers"),
        (["record", "opt", "--out", "a.safetensors", "--ids", "5,307"], "Token id 307"),
        (["record", "opt", "--out", "a.safetensors", "--ids", "5,-1"], "Token id -1"),
        (["record", "gpt2", "--out", "a.safetensors", "--text", ""], "at least one token id"),
        (["record", "opt", "--out", "a.txt", "--ids", "1"], ".safetensors"),
        (["record", "opt", "--out", "nowhere/a.safetensors", "--ids", "1"], "No such file"),
        (["diff", "nowhere.safetensors", "nowhere.safetensors"], "no such recording"),
        (["diff", "half", "half"], ".safetensors"),
    ],
)
def test_the_other_verbs_refuse_in_one_sentence(
    models, tmp_path, capsys, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "half").write_text('{"context": "a", "choices": ["b"], "answer": 0}\n{"context"')
    before = sorted(tmp_path.iterdir())
    verb, *rest = arguments
    if rest[0] in models:
        rest[0] = models[rest[0]]
    assert words in refused(capsys, verb, *rest)
    assert sorted(tmp_path.iterdir()) == before


def test_recordings_of_other_tokens_do_not_compare(models, capsys, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    done(capsys, "record", models["opt"], "--ids", "5,6", "--out", a)
    done(capsys, "record", models["opt"], "--ids", "5,7", "--out", b)
    assert "different token ids" in refused(capsys, "diff", a, b)
    a.write_bytes(a.read_bytes()[:-4])
    assert "a.safetensors" in refused(capsys, "diff", a, b)


def test_a_hub_id_without_a_network(capsys, monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*arguments, **settings):
        raise ConnectionError("Name or service not known\nand a second line")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    line = refused(capsys, "generate", PROMPT, "--model", "somebody/some-model")
    assert "somebody/some-model could not be fetched from the hub" in line
    assert "Name or service not known" in line and "give the path of a directory" in line


def test_unknown_verbs_and_words_exit_with_2(capsys):
    for arguments in (["fly"], [], ["generate", "--temperature", "warm"], ["train"]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_help_and_version(capsys):
    for arguments in (["--help"], ["generate", "--help"], ["train", "lm", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 0
        assert "tinyflash" in capsys.readouterr().out


def test_an_error_of_several_lines_becomes_one(capsys):
    assert cli.refuse(ValueError("one\ntwo")) == 2
    assert capsys.readouterr().err == "tinyflash: one two\n"


FAULTS = (
    TypeError("no such\nthing"),
    RecursionError("too deep"),
    MemoryError("64 GiB"),
    type("PanicException", (BaseException,), {})("called `unwrap()` on an `Err`"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_mistake_of_ours_is_said_to_be_ours(models, monkeypatch, capsys, fault):
    """Only what bad input raises becomes exit code 2; anything else is 70, and can be reported."""

    def broken(source, **settings):
        raise fault

    monkeypatch.setattr(commands, "open_model", broken)
    arguments = ["generate", PROMPT, "--model", str(models["opt"])]
    assert main(arguments) == 70
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "report it" in err
    assert type(fault).__name__ in err and " ".join(str(fault).split()) in err
    assert "commands/generate.py, line" in err
    assert main([*arguments, "--debug"]) == 70
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and "in broken" in err
    assert err.splitlines()[-1].startswith("tinyflash: ")


def test_a_warning_is_one_line_in_every_verb(models, monkeypatch, capsys):
    def warning(source, **settings):
        warnings.warn("careful", stacklevel=1)
        warnings.warn("nobody's business", DeprecationWarning, stacklevel=1)
        raise ValueError("no")

    monkeypatch.setattr(evaluation, "open_model", warning)
    choices = models["opt"].parent / "choices"
    choices.write_text('{"context": "a", "choices": ["b", "c"], "answer": 0}\n')
    assert main(["evaluate", "opt", "--choices", str(choices)]) == 2
    assert capsys.readouterr().err.splitlines() == ["careful", "tinyflash: no"]


def test_debug_shows_where_bad_input_was_found(models, capsys):
    assert main(["generate", PROMPT, "--model", "/no/such", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("tinyflash: There is no")


# The terminal.


def test_progress_is_drawn_on_a_terminal_and_nowhere_else(monkeypatch, capsys):
    def work():
        with terminal.waiting("Opening"), terminal.progress("Training", "steps") as report:
            report(1, 4, loss=2.5)
            report(4, 4, loss=1.25)

    work()
    assert capsys.readouterr() == ("", "")
    drawn = io.StringIO()
    monkeypatch.setattr(terminal, "ERRORS", Console(file=drawn, force_terminal=True, width=100))
    with terminal.progress("Training", "steps") as report:
        report(4, 4, loss=1.25)
    assert "Training" in drawn.getvalue() and "loss 1.25" in drawn.getvalue()
    with terminal.waiting("Opening"):
        pass
    assert "Opening" in drawn.getvalue()
    assert capsys.readouterr() == ("", "")


# In a process of its own.


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A model that goes on for minutes: a long context, and the end of text is never likeliest."""
    directory = tmp_path_factory.mktemp("talker") / "model"
    write_model(directory, OPT_CONFIG | {"max_position_embeddings": 60_000}, seed=4)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.decoder.embed_tokens.weight"][2] = 0  # logit 0, below the largest of 306
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_in_a_pipe_there_is_the_text_alone(models):
    running = process("generate", PROMPT, "--model", models["opt"], "--max-new-tokens", "12")
    out, err = finished(running)
    assert running.returncode == 0
    made = tinyflash.load(models["opt"]).generate(PROMPT, max_new_tokens=12)
    assert out.decode() == "".join(made) + "\n"
    assert b"\x1b" not in err and b"\r" not in err and len(err.splitlines()) == 2


def test_ctrl_c_ends_cleanly(talker):
    # A shell's background jobs ignore Ctrl-C, and a process inherits that from pytest.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = process("generate", "The", "--model", talker, "--max-new-tokens", "50000")
    signal.signal(signal.SIGINT, before)
    first = running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    rest, err = finished(running)
    assert running.returncode == 130
    assert first + rest and b"Traceback" not in err and b"Exception" not in err
    assert len(err.splitlines()) <= 2  # what is in DRAM, and the end of the line


def test_a_reader_that_has_seen_enough_ends_it_cleanly(talker):
    running = process("generate", "The", "--model", talker, "--max-new-tokens", "50000")
    assert running.stdout.read(1)
    running.stdout.close()
    _, err = finished(running)
    assert running.returncode == 0
    assert b"Traceback" not in err and b"Exception" not in err and b"Broken" not in err


@pytest.mark.parametrize("what", ["Inf in a float32 matrix", "an encoder"])
def test_bad_input_prints_nothing_but_its_sentence(models, tmp_path, what):
    """NumPy's warnings included, which pytest would catch."""
    directory = broken(models, tmp_path, what)
    running = process("generate", PROMPT, "--model", directory)
    out, err = finished(running)
    assert (running.returncode, out) == (2, b"")
    assert BROKEN[what] in sentence(err.decode())
