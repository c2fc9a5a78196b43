"""Tokenizers: the published layouts, GGUF's, streaming, and chat templates."""

import json
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.checkpoint.gguf_file import GGUFCheckpoint
from tinyflash.tokenizer import open_tokenizer, tokenizer_of

CORPUS = [
    "The window keeps the neurons that the last tokens used, and 12 or 345 of them are read.",
    "In 2024 the paper said: don't load what you can predict.\n    indented   text\n\n",
    "naïve café, Größe, 日本語 🙂🙂 and 🙃; x = y[0] + 1",
] * 3
TEXTS = [
    "",
    " ",
    "The window",
    "a  12",
    "   7 tokens, 345 neurons\n\n  x",
    "🙂🙃👩‍👩‍👧 é ☃ 𝠀",
    "don't\t\r\n",
]


def byte_level(vocab_size=380, special=()):
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def streamed(tokenizer, ids):
    """The pieces of a stream; none may hold a character that is not finished."""
    stream = tokenizer.decode_stream()
    return [*(stream.step(id) for id in ids), stream.flush()]


# ---- directories


def test_tokenizer_json_with_everything_beside_it(tmp_path):
    backend = byte_level(special=["<bos>", "<eos>", "<turn>"])
    bos = backend.token_to_id("<bos>")
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "chat_template": "old"}
    write_json(tmp_path / "tokenizer_config.json", settings)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, 1]})
    (tmp_path / "chat_template.jinja").write_text("new")
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1, 2))
    assert tokenizer.vocab_size == len(backend.get_vocab())
    assert tokenizer.chat_template == "new"
    ids = tokenizer.encode("The window keeps<turn> them")
    assert ids[0] == 0 and ids.count(2) == 1 and len(ids) > 4  # not truncated, not padded
    assert tokenizer.encode("The window", add_special_tokens=False)[0] != 0
    assert tokenizer.decode(ids) == "The window keeps them"
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(np.array([0, *ids], dtype=np.int64)) == "The window keeps them"


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_tokenizer_json_says_what_begins_a_text(tmp_path, add_bos):
    # transformers 5 looks at add_bos_token only where there is no tokenizer.json: many published
    # files have a wrong one. Where the two disagree, a warning says who wins.
    backend = byte_level(special=["<bos>"])
    settings = {"bos_token": "<bos>"} | ({} if add_bos is None else {"add_bos_token": add_bos})
    write_json(tmp_path / "tokenizer_config.json", settings)
    backend.save(str(tmp_path / "tokenizer.json"))
    with warned(add_bos is True):
        assert open_tokenizer(tmp_path).encode("The")[0] != 0
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    with warned(add_bos is False):
        assert open_tokenizer(tmp_path).encode("The")[0] == 0


@contextmanager
def warned(expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert any("tinyflash follows tokenizer.json" in str(w.message) for w in caught) is expected


def write_vocab_and_merges(directory, special=(), last=()):
    backend = byte_level(special=special)
    backend.model.save(str(directory))
    vocabulary = json.loads((directory / "vocab.json").read_text())
    for token in last:
        vocabulary[token] = len(vocabulary)
    write_json(directory / "vocab.json", vocabulary)
    return vocabulary


@pytest.mark.parametrize("files", ["tokenizer_config.json", "special_tokens_map.json", None])
def test_opt_as_published_begins_with_its_end_token(tmp_path, files):
    write_vocab_and_merges(tmp_path, special=["<s>", "<pad>", "</s>", "<unk>"])
    ids = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    write_json(tmp_path / "config.json", {"model_type": "opt"} | ids)
    if files:
        names = {"bos_token": "</s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}
        write_json(tmp_path / files, names)
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (2, (2,))
    assert tokenizer.encode("") == [2]
    assert tokenizer.encode("The")[0] == 2 and 2 not in tokenizer.encode("The")[1:]
    assert tokenizer.encode("", add_special_tokens=False) == []
    assert 2 in tokenizer.encode("a</s>b")[1:]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gpt2_as_published_begins_with_nothing(tmp_path):
    vocabulary = write_vocab_and_merges(tmp_path, last=["<|endoftext|>"])
    end = vocabulary["<|endoftext|>"]
    config = {"model_type": "gpt2", "bos_token_id": end, "eos_token_id": end}
    write_json(tmp_path / "config.json", config)
    tokenizer = open_tokenizer(tmp_path)
    reference = byte_level()
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (end, (end,))
    for text in TEXTS:
        assert tokenizer.encode(text) == reference.encode(text).ids
    assert tokenizer.encode("a<|endoftext|>")[-1] == end
    assert tokenizer.decode([end, *tokenizer.encode("The")]) == "The"


def test_directories_without_a_tokenizer_that_we_can_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer; put .*tokenizer\.json"):
        open_tokenizer(tmp_path)
    assert tokenizer_of(Checkpoint(tmp_path, {}, {})) is None
    write_vocab_and_merges(tmp_path)
    with pytest.raises(ValueError, match="no file names its class"):
        open_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    (tmp_path / "merges.txt").write_text("#version: 0.2\nno such tokens here\n")
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        open_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(ValueError, match=r"no tokenizer\.json; make one.*save_pretrained"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json: the tokenizer cannot be read"):
        open_tokenizer(tmp_path)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text("{eos}")
    with pytest.raises(ValueError, match=r"generation_config\.json: damaged JSON"):
        open_tokenizer(tmp_path)


def test_without_the_package_a_model_reads_token_ids():
    program = (
        "import sys, warnings; sys.modules['tokenizers'] = None\n"
        "import tinyflash\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    model = tinyflash.load('default')\n"
        "assert 'package tokenizers is missing' in str(said[-1].message)\n"
        "print(model.logits([2, 5]).shape[0], model.tokenizer)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("2 None\n", "")


# ---- streaming


def test_a_stream_never_splits_a_character_and_loses_nothing(tmp_path):
    byte_level(vocab_size=280, special=["<eos>"]).save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path)
    ids = tokenizer.encode("a👩‍👩‍👧é字🙂b")
    pieces = streamed(tokenizer, ids)
    assert len(ids) > 15  # several tokens a character, else this tests nothing
    assert "".join(pieces) == "a👩‍👩‍👧é字🙂b"
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces.count("") > 8

    # What a model writes need not be UTF-8, may end in the middle, and may hold special tokens.
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, tokenizer.vocab_size + 5, size=rng.integers(1, 20)).tolist()
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
    cut = tokenizer.encode("ok 🙂")[:-1]
    pieces = streamed(tokenizer, cut)
    assert "".join(pieces[:-1]) == "ok " and set(pieces[-1]) == {"\ufffd"}


# ---- GGUF


def gguf_checkpoint(**metadata):
    metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    if "tokenizer.ggml.chat_template" in metadata:
        metadata["tokenizer.chat_template"] = metadata.pop("tokenizer.ggml.chat_template")
    path = Path(__file__)  # any file: what matters is that it is no directory
    return GGUFCheckpoint(path, {}, {}, metadata=metadata)


def gpt2_metadata(special=("<|end|>", "<|start|>")):
    backend = byte_level(special=special)
    vocabulary = backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*tokens, "<think>"],
        "merges": [" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]],
        "token_type": [3] * len(special) + [1] * (len(tokens) - len(special)) + [4],
        "bos_token_id": 1,
        "eos_token_id": 0,
    }


def test_gguf_gpt2_encodes_as_the_tokenizer_it_was_made_from():
    reference = byte_level(special=["<|end|>", "<|start|>"])
    for pre in ("gpt-2", "phi-2"):
        tokenizer = tokenizer_of(gguf_checkpoint(**gpt2_metadata() | {"pre": pre}))
        for text in TEXTS:
            assert tokenizer.encode(text) == reference.encode(text).ids
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (0,))
    think = len(reference.get_vocab())
    assert tokenizer.vocab_size == think + 1
    ids = tokenizer.encode("<|start|>The <think> window<|end|>")
    assert ids[0] == 1 and ids[-1] == 0 and think in ids
    assert tokenizer.decode(ids) == "The <think> window"  # user-defined tokens are text


def test_gguf_bos_chat_template_and_ends():
    more = {"add_bos_token": True, "eot_token_id": 5, "chat_template": "{{ eos_token }}!"}
    tokenizer = tokenizer_of(gguf_checkpoint(**gpt2_metadata(), **more))
    assert tokenizer.encode("The")[0] == 1
    assert tokenizer.encode("The", add_special_tokens=False)[0] != 1
    assert tokenizer.eos_ids == (0, 5)
    assert tokenizer.render_chat([]) == "<|end|>!"


def pieces_of(tokenizer, text):
    return [piece for piece, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)]


def test_gguf_pre_tokenizers_cut_as_their_models_learned():
    def tokenizer(pre):
        return tokenizer_of(gguf_checkpoint(**gpt2_metadata() | {"pre": pre}))

    text = "a   2024's 12"
    assert pieces_of(tokenizer("gpt-2"), text) == ["a", "ĠĠ", "Ġ2024", "'s", "Ġ12"]
    digits = ["2", "0", "2", "4"]
    assert pieces_of(tokenizer("smollm"), text) == ["a", "ĠĠĠ", *digits, "'s", "Ġ", "1", "2"]
    thousands = ["a", "ĠĠ", "Ġ", "202", "4", "'s", "Ġ", "12"]
    assert pieces_of(tokenizer("llama-bpe"), text) == thousands
    assert pieces_of(tokenizer("llama-bpe"), "x()\n\nI'LL") == ["x", "()ĊĊ", "I", "'LL"]
    # Llama 3 begins every text with its BOS, and takes words of the vocabulary whole.
    assert tokenizer("llama-bpe").encode("The")[0] == 1
    for pre in ("gpt-2", "smollm", "llama-bpe"):
        for example in TEXTS:
            assert tokenizer(pre).decode(tokenizer(pre).encode(example)) == example


def test_llama3_takes_words_of_the_vocabulary_whole():
    metadata = gpt2_metadata()
    metadata["tokens"] = [*metadata["tokens"], "qzq"]  # which no merge makes
    metadata["token_type"] = [*metadata["token_type"], 1]
    assert len(tokenizer_of(gguf_checkpoint(**metadata)).encode("qzq")) == 3
    ids = tokenizer_of(gguf_checkpoint(**metadata | {"pre": "llama-bpe"})).encode("qzq")
    assert ids == [1, len(metadata["tokens"]) - 1]


def sentencepiece_metadata():
    """A vocabulary as sentencepiece's BPE learns it, its merges thrown away."""
    backend = Backend(models.BPE())
    words = [text.replace(" ", "▁") for text in CORPUS]
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    backend.train_from_iterator(words, trainer)
    vocabulary = backend.get_vocab()
    learned = sorted(vocabulary, key=vocabulary.get)
    rare = set("🙂🙃日本語")  # left to byte tokens
    learned = [token for token in learned if not rare & set(token)]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *learned]
    letters = sum(len(token) == 1 for token in learned)
    scores = [0.0] * 259 + [-1000.0] * letters
    scores += [-float(rank) for rank in range(len(learned) - letters)]
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(learned),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def sentencepiece_ids(text, metadata):
    """Sentencepiece's rule as it is told: join the neighbors whose union scores best, leftmost
    first; spell what is not in the vocabulary in bytes."""
    ids = {token: id for id, token in enumerate(metadata["tokens"])}
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        unions = [symbols[i] + symbols[i + 1] for i in range(len(symbols) - 1)]
        scored = [(-metadata["scores"][ids[u]], i) for i, u in enumerate(unions) if u in ids]
        if not scored:
            break
        _, i = min(scored)
        symbols[i : i + 2] = [unions[i]]
    spelled = []
    for symbol in symbols:
        if symbol in ids:
            spelled.append(ids[symbol])
        else:
            spelled += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return [1, *spelled]


def test_gguf_sentencepiece_is_rebuilt_from_scores():
    metadata = sentencepiece_metadata()
    tokenizer = tokenizer_of(gguf_checkpoint(**metadata))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (
        1,
        (2,),
        len(metadata["tokens"]),
    )
    rng = np.random.default_rng(3)
    everything = "".join(CORPUS)
    starts = rng.integers(0, len(everything) - 60, size=60)
    cuts = [everything[start : start + 1 + start % 59] for start in starts.tolist()]
    for text in [*TEXTS, *cuts, "  two spaces before", "tokens that the"]:
        ids = tokenizer.encode(text)
        assert ids == sentencepiece_ids(text, metadata), text
        assert tokenizer.decode(ids) == text
        assert "".join(streamed(tokenizer, ids)) == text
    assert max(map(len, map(tokenizer.encode, cuts))) < 59  # words were joined, not spelled
    assert tokenizer.encode("a</s>")[-1] == 2


def test_streams_of_byte_tokens_equal_decode():
    # A run of byte tokens that is not UTF-8 as a whole decodes to one U+FFFD a byte, so a stream
    # must not give out the euro sign before it has seen where the run ends.
    tokenizer = tokenizer_of(gguf_checkpoint(**sentencepiece_metadata()))
    euro = [3 + byte for byte in "€".encode()]
    assert "".join(streamed(tokenizer, [*euro, 3 + 0xFF])) == "\ufffd" * 4
    rng = np.random.default_rng(4)
    for _ in range(300):
        ids = rng.integers(0, tokenizer.vocab_size, size=rng.integers(1, 15)).tolist()
        ids += euro[: rng.integers(0, 4)]
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_gguf_tokenizers_that_we_do_not_have():
    with pytest.raises(ValueError, match="holds no tokenizer"):
        tokenizer_of(gguf_checkpoint())
    with pytest.raises(ValueError, match=r"'bert'.*reads 'llama', and 'gpt2' with gpt-2, phi-2"):
        tokenizer_of(gguf_checkpoint(**gpt2_metadata() | {"model": "bert"}))
    with pytest.raises(ValueError, match=r"pre-tokenizer 'tekken'.*smollm, llama-bpe"):
        tokenizer_of(gguf_checkpoint(**gpt2_metadata() | {"pre": "tekken"}))
    with pytest.raises(ValueError, match="damaged tokenizer"):
        tokenizer_of(gguf_checkpoint(**gpt2_metadata() | {"merges": ["no such", "words"]}))
    twice = gpt2_metadata()
    twice["tokens"][300] = twice["tokens"][301]
    with pytest.raises(ValueError, match="damaged tokenizer .*spelled alike"):
        tokenizer_of(gguf_checkpoint(**twice))
    for id in (10**6, -1, "a", [1]):
        with pytest.raises(ValueError, match=r"ggml\.bos_token_id is .* has \d+ tokens"):
            tokenizer_of(gguf_checkpoint(**gpt2_metadata() | {"bos_token_id": id}))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"tokens": 5}, "what must be texts is not"),
        ({"tokens": ["a", None]}, "what must be texts is not"),
        ({"pre": ["gpt-2"]}, "what must be texts is not"),
        ({"model": {}}, "what must be texts is not"),
        ({"merges": 5}, "damaged tokenizer"),
        ({"merges": [5]}, "damaged tokenizer"),
        ({"token_type": 5}, "damaged tokenizer"),
        ({"chat_template": 5}, "the chat_template is neither a text"),
    ],
)
def test_damaged_gguf_tokenizers(wrong, said):
    with pytest.raises(ValueError, match=said):
        tokenizer_of(gguf_checkpoint(**gpt2_metadata() | wrong))


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_a_gguf_that_does_not_say_how_it_cuts_texts_is_refused(pre):
    metadata = {key: value for key, value in gpt2_metadata().items() if key != "pre"}
    metadata |= {} if pre is None else {"pre": pre}
    with pytest.raises(ValueError, match=r"does not say how .*tokenizer\.ggml\.pre.*gguf-new-meta"):
        tokenizer_of(gguf_checkpoint(**metadata))
    # Sentencepiece has one way only, and needs no such word.
    metadata = sentencepiece_metadata() | ({} if pre is None else {"pre": pre})
    assert tokenizer_of(gguf_checkpoint(**metadata)).encode("the")


def test_gguf_ends_are_found_by_their_spelling():
    special = ["<|end_of_text|>", "<|start|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "</s>"]
    metadata = gpt2_metadata(special)
    tokenizer = tokenizer_of(gguf_checkpoint(**metadata))
    assert sorted(tokenizer.eos_ids) == [0, 2, 3, 4, 5]
    # whatever type the file gives them, they are no text
    metadata["token_type"][2], metadata["token_type"][4] = 1, 4
    tokenizer = tokenizer_of(gguf_checkpoint(**metadata))
    assert sorted(tokenizer.eos_ids) == [0, 2, 3, 4, 5]
    ids = tokenizer.encode("a<|eot_id|>b<|im_end|>")
    assert ids[1] == 2 and ids[-1] == 4 and tokenizer.decode(ids) == "ab"
    named = tokenizer_of(gguf_checkpoint(**metadata, eot_token_id=9))
    assert named.eos_ids[:2] == (0, 9)


def test_gguf_says_what_is_put_around_a_text_and_names_its_special_tokens():
    more = {"add_bos_token": True, "add_eos_token": True, "padding_token_id": 4}
    tokenizer = tokenizer_of(gguf_checkpoint(**gpt2_metadata(), **more))
    ids = tokenizer.encode("The")
    assert (ids[0], ids[-1]) == (1, 0)
    fourth = tokenizer.backend.id_to_token(4)
    assert tokenizer.named == {
        "bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": fourth
    }  # fmt: skip


def test_gguf_qwen2_cuts_as_qwen2():
    metadata = gpt2_metadata() | {"pre": "qwen2"}
    tokenizer = tokenizer_of(gguf_checkpoint(**metadata))
    assert pieces_of(tokenizer, "x()\n\nI'LL 12") == ["x", "()ĊĊ", "I", "'LL", "Ġ", "1", "2"]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")  # normalized first
    assert tokenizer.encode("The")[0] != 1  # and begins with nothing


def test_gguf_with_several_templates():
    checkpoint = gguf_checkpoint(**gpt2_metadata(), chat_template="D")
    checkpoint.metadata["tokenizer.chat_template.tool_use"] = "T"
    tokenizer = tokenizer_of(checkpoint)
    assert tokenizer.chat_template == {"default": "D", "tool_use": "T"}
    assert tokenizer.render_chat([]) == "D"


# ---- chat

CHATML = (
    "{%- for message in messages %}\n"
    "    {%- if message['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\n"
    "{%- endfor %}\n"
    "  {% if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\n' -}}\n"
    "{% endif %}\n"
)
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


def with_template(template):
    return tokenizer_of(gguf_checkpoint(**gpt2_metadata(), chat_template=template))


def test_a_chat_is_rendered_as_templates_expect():
    tokenizer = with_template(CHATML)
    question = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
    assert tokenizer.render_chat(MESSAGES) == question + "<|im_start|>assistant\n"
    assert tokenizer.render_chat(MESSAGES, add_generation_prompt=False) == question
    words = with_template("{{ bos_token }}{{ messages|tojson }}{{ eos_token }}{{ tools is none }}")
    expected = '<|start|>[{"role": "user", "content": "Größe <b>"}]<|end|>True'
    assert words.render_chat([{"role": "user", "content": "Größe <b>"}]) == expected
    year = with_template("{{ strftime_now('%Y') }}{% for m in messages %}{% break %}{% endfor %}")
    assert 2024 <= int(year.render_chat(MESSAGES)) < 2200


def test_chats_that_a_template_refuses():
    with pytest.raises(ValueError, match="refuses these messages: no system here"):
        with_template(CHATML).render_chat([{"role": "system", "content": "Be brief."}])
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer_of(gguf_checkpoint(**gpt2_metadata())).render_chat(MESSAGES)
    with pytest.raises(ValueError, match="refuses these messages"):
        with_template("{% if %}").render_chat(MESSAGES)


@pytest.mark.parametrize(
    "attack",
    ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"],
)
def test_a_hostile_template_stays_in_its_sandbox(attack):
    messages = list(MESSAGES)
    with pytest.raises(ValueError, match="refuses these messages"):
        with_template(attack).render_chat(messages)
    assert messages == MESSAGES


def test_of_several_templates_the_default_is_taken(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    templates = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": templates})
    assert open_tokenizer(tmp_path).render_chat(MESSAGES) == "D"


@pytest.mark.slow
def test_smollm2_encodes_as_its_published_tokenizer():
    # The ids are transformers' for the same GGUF with Digits put before its ByteLevel, which is
    # the pre-tokenizer of the published tokenizer.json; equal on 2 560 texts.
    from tinyflash.checkpoint.gguf_file import open_gguf
    from tinyflash.checkpoint.sources import find_smollm2

    tokenizer = tokenizer_of(open_gguf(find_smollm2()))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (1, (2, 0), 49152)
    assert tokenizer.encode("  5") == [256, 37]
    assert tokenizer.encode("   7 apples") == [333, 39, 13855]
    assert tokenizer.encode("a  12") == [81, 256, 33, 34]
    ids = tokenizer.encode("<|im_start|>user\nWhy?<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    prompt = tokenizer.render_chat(MESSAGES)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
                           "<|im_start|>assistant\n")  # fmt: skip
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
