"""What small files say about words, each right value taken from transformers 5.23 by running it.

(test_live_tokenizers.py draws such directories at random and asks transformers itself.)
"""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tinyflash.tokenizer import open_tokenizer
from tinyflash.training.vocabulary import encode_documents

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256, of which ids are 0 to 255
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "Ġ 1", "Ċ Ċ", ") Ċ", "' L", "'L L"]
TEXT = "hello hello 12\u0301 x)\n\nI'LL e\u0301"
END = len(LETTERS) + len(MERGES)  # id of <|endoftext|>, the last one
MESSAGES = [{"role": "user", "content": "hi"}]


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def write_merges(directory, model_type="gpt2", **settings):
    """vocab.json and merges.txt, and a tokenizer_config.json if there are settings."""
    words = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    write_json(directory / "vocab.json", {word: id for id, word in enumerate(words)})
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES), encoding="utf-8")
    write_json(directory / "config.json", {"model_type": model_type})
    if settings:
        write_json(directory / "tokenizer_config.json", settings)
    return directory


def write_whole(directory, backend=None, **settings):
    """A tokenizer.json of the same words, and tokenizer_config.json."""
    write_merges(directory, "llama", **settings)
    if backend is None:
        vocabulary = json.loads((directory / "vocab.json").read_text())
        backend = Tokenizer(models.BPE(vocabulary, [tuple(m.split(" ")) for m in MERGES]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    return directory


def write_words(directory, **settings):
    """The vocab.txt of a DistilBERT."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] don don ' t we ? . hell ##o é e Don 中".split()
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    write_json(directory / "config.json", {"model_type": "distilbert"})
    write_json(directory / "tokenizer_config.json", settings)
    return directory


# ---- kinds

IDS = {
    "qwen2": [259, 260, 220, 16, 17, 136, 223, 220, 87, 8, 263, 40, 266, 220, 127, 102],
    "gpt2": [
        259, 260, 220, 261, 136, 223, 220, 87, 8, 198, 198, 40, 6, 43, 43, 220, 68, 136, 223
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "model_type, settings, kind",
    [
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}, "qwen2"),
        ("qwen2", {"tokenizer_class": "Qwen2TokenizerFast"}, "qwen2"),
        ("qwen2", {"bos_token": None}, "qwen2"),
        ("qwen2", {"tokenizer_class": "GPT2Tokenizer"}, "qwen2"),  # a known mistake
        ("llama", {"tokenizer_class": "Qwen2Tokenizer"}, "qwen2"),
        ("gpt2", {}, "gpt2"),
        ("gpt2", {"tokenizer_class": "GPT2Tokenizer"}, "gpt2"),
        ("gpt2", {"tokenizer_class": "GPT2TokenizerFast"}, "gpt2"),
        ("phi", {"tokenizer_class": "CodeGenTokenizer"}, "gpt2"),
        ("phi", {"unk_token": None}, "gpt2"),
        ("llama", {"tokenizer_class": "GPT2Tokenizer"}, "gpt2"),
    ],
)
def test_a_class_says_how_texts_are_cut(tmp_path, model_type, settings, kind):
    tokenizer = open_tokenizer(write_merges(tmp_path, model_type, **settings))
    assert tokenizer.encode(TEXT) == IDS[kind]


@pytest.mark.parametrize(
    "model_type, settings, said",
    [
        ("llama", {"tokenizer_class": "LlamaTokenizer"}, "its class is LlamaTokenizer"),
        ("roberta", {"tokenizer_class": "RobertaTokenizer"}, "its class is RobertaTokenizer"),
        ("clip", {"tokenizer_class": "CLIPTokenizerFast"}, "its class is CLIPTokenizer"),
        ("gpt2", {"tokenizer_class": "PreTrainedTokenizerFast"}, "no file names its class"),
        ("mistral", {"tokenizer_class": "GPT2Tokenizer"}, "no file names its class"),
        ("llama", {"eos_token": "a"}, "no file names its class"),
    ],
)
def test_a_class_whose_pieces_we_do_not_know_is_refused(tmp_path, model_type, settings, said):
    write_merges(tmp_path, model_type, **settings)
    with pytest.raises(ValueError, match=f"no whole tokenizer, and {said}; .*Qwen2Tokenizer"):
        open_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(ValueError, match=f"no whole tokenizer, and {said}; .*BertTokenizer"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "settings, ids, text",
    [
        ({"tokenizer_class": "DistilBertTokenizer"}, [6, 15], "don ' t we hello? e 中 中"),
        ({"do_lower_case": False}, [16, 14], "Don ' t we hello? é 中 中"),
        ({"strip_accents": False}, [6, 14], "don ' t we hello? é 中 中"),
        ({"clean_up_tokenization_spaces": True}, [6, 15], "don't we hello? e 中 中"),
    ],
)
def test_word_pieces_of_a_vocabulary(tmp_path, settings, ids, text):
    tokenizer = open_tokenizer(write_words(tmp_path, **settings))
    found = tokenizer.encode("Don't we hello? é [MASK] 中中")
    assert found == [2, ids[0], 7, 8, 9, 12, 13, 10, ids[1], 4, 17, 17, 3]
    assert tokenizer.decode(found) == text
    stream = tokenizer.decode_stream()
    assert "".join([*map(stream.step, found), stream.flush()]) == text
    assert tokenizer.named["mask_token"] == "[MASK]" and tokenizer.eos_ids == ()


def test_settings_of_word_pieces_count_beside_tokenizer_json(tmp_path):
    backend = open_tokenizer(write_words(tmp_path, tokenizer_class="BertTokenizer")).backend
    backend.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).encode("Don") == [2, 6, 3]
    write_words(tmp_path, tokenizer_class="BertTokenizer", do_lower_case=False)
    assert open_tokenizer(tmp_path).encode("Don") == [2, 16, 3]


# ---- what is put before and after a text, and before its first word


@pytest.mark.parametrize(
    "settings, ids",
    [
        ({}, [259]),
        ({"add_bos_token": True}, [END, 259]),
        ({"add_eos_token": True}, [259, END]),
        ({"add_bos_token": True, "add_eos_token": True, "eos_token": "x"}, [END, 259, 87]),
        ({"add_bos_token": True, "bos_token": None}, [259]),
        ({"add_prefix_space": True}, [260]),
    ],
)
def test_what_is_put_around_a_text(tmp_path, settings, ids):
    write_merges(tmp_path, tokenizer_class="GPT2Tokenizer", **settings)
    assert open_tokenizer(tmp_path).encode("hello") == ids


def test_a_space_before_the_first_word_beside_tokenizer_json(tmp_path):
    spaced = {"add_prefix_space": True}
    write_whole(tmp_path, tokenizer_class="GPT2Tokenizer", **spaced)
    assert open_tokenizer(tmp_path).encode("hello") == [260]
    write_whole(tmp_path, tokenizer_class="PreTrainedTokenizerFast", **spaced)
    assert open_tokenizer(tmp_path).encode("hello") == [259]  # nobody looks at it
    write_merges(tmp_path, tokenizer_class="Qwen2Tokenizer", **spaced)
    (tmp_path / "tokenizer.json").unlink()
    qwen2 = open_tokenizer(tmp_path)
    qwen2.backend.save(str(tmp_path / "tokenizer.json"))
    write_merges(tmp_path, tokenizer_class="Qwen2Tokenizer", add_prefix_space=False)
    assert qwen2.encode("hello") == [260] and open_tokenizer(tmp_path).encode("hello") == [259]


# ---- special tokens, and tokens that were added


def test_tokens_of_added_tokens_json(tmp_path):
    write_merges(tmp_path, tokenizer_class="GPT2Tokenizer", bos_token="<|endoftext|>")
    write_json(tmp_path / "added_tokens.json", {"<|user|>": END + 1, "<|end|>": END + 2})
    special = {"eos_token": "<|end|>", "extra_special_tokens": ["<|user|>"]}
    write_json(tmp_path / "special_tokens_map.json", special)
    tokenizer = open_tokenizer(tmp_path)
    ids = tokenizer.encode("<|user|>hello<|end|>")
    assert ids == [END + 1, 259, END + 2] and tokenizer.decode(ids) == "hello"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (END, (END + 2,))
    assert tokenizer.vocab_size == END + 3


def test_tokens_of_added_tokens_decoder(tmp_path):
    added = {str(END + 2): {"content": "<|end|>", "special": True}}
    added[str(END + 1)] = {"content": "<|user|>", "special": False}
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}
    write_merges(tmp_path, **settings, added_tokens_decoder=added)
    # the older files say nothing then
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": "a"})
    write_json(tmp_path / "added_tokens.json", {"<|older|>": 5})
    tokenizer = open_tokenizer(tmp_path)
    ids = tokenizer.encode("<|user|>hello<|end|>")
    assert ids == [END + 1, 259, END + 2] and tokenizer.decode(ids) == "<|user|>hello"
    assert tokenizer.eos_ids == (END + 2,)


def test_special_tokens_that_the_vocabulary_lacks_come_behind_it(tmp_path):
    more = {"eos_token": "<|end|>", "extra_special_tokens": ["<x>"], "image_token": "<img>"}
    write_merges(tmp_path, tokenizer_class="GPT2Tokenizer", **more)
    tokenizer = open_tokenizer(tmp_path)
    ids = tokenizer.encode("<|end|><x><img>hello")
    assert ids == [END + 1, END + 3, END + 2, 259] and tokenizer.decode(ids) == "hello"
    assert tokenizer.eos_ids == (END + 1,) and tokenizer.named["image_token"] == "<img>"


@pytest.mark.parametrize(
    "flags, apart, within",
    [
        ({}, [64, 220, END + 1, 220, 65], [64, END + 1, 65]),
        ({"lstrip": True}, [64, END + 1, 220, 65], [64, END + 1, 65]),
        ({"rstrip": True}, [64, 220, END + 1, 65], [64, END + 1, 65]),
        ({"single_word": True}, [64, 220, END + 1, 220, 65], [64, 27, 84, 29, 65]),
    ],
)
def test_flags_of_added_tokens(tmp_path, flags, apart, within):
    added = {str(END + 1): {"content": "<u>", **flags}}
    write_merges(tmp_path, tokenizer_class="GPT2Tokenizer", added_tokens_decoder=added)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("a <u> b") == apart and tokenizer.encode("a<u>b") == within


def test_special_tokens_that_are_to_be_spelled(tmp_path):
    write_merges(tmp_path, tokenizer_class="GPT2Tokenizer", split_special_tokens=True)
    ids = open_tokenizer(tmp_path).encode("a<|endoftext|>")
    assert ids == [64, 27, 91, 68, 77, 67, 78, 69, 83, 68, 87, 83, 91, 29]


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_ids_that_the_vocabulary_contradicts_are_refused(tmp_path, where):
    # transformers gives such a token another id, without a word.
    added = (
        {}
        if where == "added_tokens.json"
        else {"added_tokens_decoder": {"999": {"content": "<u>"}}}
    )
    write_merges(tmp_path, tokenizer_class="GPT2Tokenizer", **added)
    write_json(tmp_path / "added_tokens.json", {"<u>": 999})
    with pytest.raises(
        ValueError, match=f"{where} gives the token <u> the id 999.* it is {END + 1};"
    ):
        open_tokenizer(tmp_path)


# ---- chat templates


def rendered(directory):
    return open_tokenizer(directory).render_chat(MESSAGES, add_generation_prompt=False)


def test_what_templates_call_the_special_tokens(tmp_path):
    template = (
        "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ bos_token is defined }}"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    write_whole(tmp_path, **settings, bos_token=None, eos_token="h", pad_token={"content": "e"})
    write_json(tmp_path / "config.json", {"model_type": "llama", "bos_token_id": 0})
    assert rendered(tmp_path) == "|h|e||False"
    write_whole(tmp_path, **settings | {"tokenizer_class": "GPT2Tokenizer"}, pad_token="e")
    assert rendered(tmp_path) == "<|endoftext|>|<|endoftext|>|e|<|endoftext|>|True"
    write_whole(tmp_path, **settings | {"tokenizer_class": "GPT2Tokenizer"}, unk_token=None)
    assert rendered(tmp_path) == "<|endoftext|>|<|endoftext|>|||True"


def test_where_a_chat_template_stands(tmp_path):
    write_whole(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(ValueError, match="no chat template"):
        rendered(tmp_path)
    write_json(tmp_path / "chat_template.json", {"chat_template": "json"})
    assert rendered(tmp_path) == "json"
    for value in ("config", {"default": "config"}, [{"name": "default", "template": "config"}]):
        write_json(tmp_path / "tokenizer_config.json", {"chat_template": value})
        assert rendered(tmp_path) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered(tmp_path) == "file"
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("rag")
    assert rendered(tmp_path) == "file"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="the chat templates rag and none for plain conversation"):
        rendered(tmp_path)


# ---- damaged files, and panics of the native library


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("tokenizer_config.json", {"eos_token": 5}, "5 is no token"),
        ("tokenizer_config.json", {"eos_token": {}}, "{} is no token"),
        ("tokenizer_config.json", {"pad_token": {"content": "a", "lstrip": "no"}}, "is no token"),
        ("special_tokens_map.json", {"unk_token": []}, r"\[\] is no token"),
        ("tokenizer_config.json", {"extra_special_tokens": 5}, "extra special tokens are not"),
        ("tokenizer_config.json", {"additional_special_tokens": [5]}, "5 is no token"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "not given by their ids"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "not given by their ids"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": 5}}, "5 is no token"),
        ("added_tokens.json", {"<u>": [5]}, "not given by their ids"),
        ("added_tokens.json", {"<u>": None}, "not given by their ids"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, "no name of a class"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template is neither"),
        ("generation_config.json", {"eos_token_id": [[]]}, "must be a token id"),
        ("generation_config.json", {"eos_token_id": 2.5}, "must be a token id"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence_that_names_them(tmp_path, name, value, said):
    write_whole(tmp_path)
    write_json(tmp_path / name, value)
    with pytest.raises(ValueError, match=f"{name}.*{said}"):
        open_tokenizer(tmp_path)


def test_panics_of_the_native_library_are_refusals(tmp_path, capfd):
    write_whole(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    normalizer = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
    write_json(tmp_path / "tokenizer.json", whole | {"normalizer": normalizer})
    tokenizer = open_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="tokenizer fails on the text .*Regex"):
        tokenizer.encode("a" * 60 + "!")
    assert tokenizer.encode("h") == [71]  # and works on
    with pytest.raises(ValueError, match="tokenizer fails on the text .*Regex"):
        encode_documents(tokenizer.backend, "a" * 60 + "!")
    whole["model"]["continuing_subword_prefix"] = "4.0"
    write_json(tmp_path / "tokenizer.json", whole)
    with pytest.raises(ValueError, match=r"tokenizer\.json: the tokenizer cannot be read"):
        open_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="fails on these token ids"):
        tokenizer.decode([-1])
    with pytest.raises(ValueError, match="not in UTF-8"):
        tokenizer.encode("\udcff")
