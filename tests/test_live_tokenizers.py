"""Random directories of small files, and what transformers makes of them: `pytest -m live`.

Every run draws other directories; TINYFLASH_SEED=... repeats one. What tinyflash refuses must be
one of the refusals below: then it reads nothing wrong.
"""

import inspect
import json
import os
import random
import re
import secrets
import warnings

import pytest
from test_chat_template import MESSAGES, WRITTEN, rendered
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tinyflash.checkpoint.backends import LLAMA3_PIECES, QWEN2_PIECES
from tinyflash.tokenizer import open_tokenizer

pytestmark = pytest.mark.live

SEED = int(os.environ.get("TINYFLASH_SEED", secrets.randbelow(10**9)))
DIRECTORIES = 150
CORPUS = [
    "Hello world, it's 2024 and I'd like 12345 apples.\n\n  Two  spaces\tand tabs; naïve café!",
    "the quick brown fox jumps over the lazy dog. It's I'LL 1234 5678, don't you ?",
] * 4
SPECIAL = ["<s>", "</s>", "<unk>", "<|endoftext|>"]  # in the vocabulary
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEXTS = [
    "",
    " ",
    "Hello world",
    "  Two  spaces, it's I'LL don't ? naïve café 日本語 12345\n\n",
    "<s>Hi</s> <|new|> x <|end|> y<x> <unk>z <extra> [MASK] a[CLS]b",
    "e\u0301 <|END|> hello<|endoftext|>",
]
REFUSALS = "gives the token .* the id|no whole tokenizer"


@pytest.fixture(scope="module")
def transformers():
    try:
        import transformers
    except ImportError as error:
        pytest.fail(f'This compares with transformers ({error}): pip install -e ".[test,live]"')
    transformers.logging.set_verbosity_error()
    return transformers


def qwen2_pieces():
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), letters])


def trained(pieces):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pieces
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def as_written(draw, text):
    """A token as files give it: a text, or a dictionary with flags."""
    if draw.random() < 0.5:
        return text
    flags = {f: draw.random() < 0.5 for f in ("lstrip", "rstrip", "single_word", "normalized")}
    return {"__type": "AddedToken", "content": text, **flags, "special": draw.random() < 0.5}


def write_vocabulary(draw, directory):
    """The large files; returns the kind of tokenizer and the number of its words."""
    kind = draw.choice(["GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer", "BertTokenizer"])
    if kind == "BertTokenizer":
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *"abcdefghijklmnopqrstuvwxyz12345'?.,",
        ]
        words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz12345"] + ["hello", "don"]
        (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        return kind, len(words), True
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = trained(qwen2_pieces() if kind == "Qwen2Tokenizer" else byte_level)
    whole = draw.random() < 0.5
    if whole:
        kind = draw.choice([kind, "PreTrainedTokenizerFast", "TokenizersBackend"])
        if kind == "Qwen2Tokenizer":
            from tokenizers import normalizers

            backend.normalizer = normalizers.NFC()
        if draw.random() < 0.5:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
            )
        backend.save(str(directory / "tokenizer.json"))
    else:
        backend.model.save(str(directory))
    return kind, backend.get_vocab_size(), not whole


def write_directory(seed, directory):
    """A directory that says what models' files say about words, at random."""
    draw = random.Random(seed)
    kind, size, bare = write_vocabulary(draw, directory)
    if kind == "BertTokenizer":
        roles, here = ROLES[2:], ["[MASK]", "[UNK]", "hello"]
    else:
        roles, here = ROLES, SPECIAL
    settings = {"tokenizer_class": kind}
    for role in roles:
        what = draw.random()
        if what < 0.3:
            settings[role] = as_written(draw, draw.choice(here))
        elif what < 0.4 and role not in ("cls_token", "sep_token", "unk_token"):
            settings[role] = draw.choice([None, as_written(draw, "<|end|>")])
    for flag in ("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens"):
        if draw.random() < 0.3:
            settings[flag] = draw.random() < (0.2 if flag == "split_special_tokens" else 0.5)
    if draw.random() < 0.5:
        settings["clean_up_tokenization_spaces"] = draw.random() < 0.5
    if draw.random() < 0.4:
        name = draw.choice(["additional_special_tokens", "extra_special_tokens"])
        settings[name] = draw.choice([["<extra>"], ["<extra>", "<|new|>"]])
    if draw.random() < 0.2:
        settings["image_token"] = "<x>"
    # (A lower-casing tokenizer takes <|END|> for <|end|>, or not, from one run to the next.)
    added = ["<|new|>", "<|end|>", "<|END|>"][: draw.randrange(3 if kind == "BertTokenizer" else 4)]
    where = draw.random()
    if added and where < 0.4:
        listed = {size + i: as_written(draw, token) for i, token in enumerate(added)}
        listed = {id: {"content": t} if isinstance(t, str) else t for id, t in listed.items()}
        for token in listed.values():
            token.pop("__type", None)
        if not bare:  # such files list the tokens of tokenizer.json, too
            listed |= {i: {"content": text, "special": True} for i, text in enumerate(SPECIAL)}
        settings["added_tokens_decoder"] = listed
    elif added and where < 0.8:
        write_json(directory / "added_tokens.json", {t: size + i for i, t in enumerate(added)})
    if draw.random() < 0.4:
        name = draw.choice(["additional_special_tokens", "extra_special_tokens"])
        extra = draw.choice([["<extra>", "<x>"], ["<|end|>"], ["<|new|>", "<x>"]])
        special = {"eos_token": draw.choice(here), name: extra}
        write_json(directory / "special_tokens_map.json", special)
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}"
    settings["chat_template"] = draw.choice(
        [template, {"default": template}, [{"name": "default", "template": template}]]
    )
    write_json(directory / "tokenizer_config.json", settings)
    model = {
        "GPT2Tokenizer": ["gpt2", "llama", "phi"],
        "CodeGenTokenizer": ["phi"],
        "Qwen2Tokenizer": ["qwen2"],
        "BertTokenizer": ["distilbert"],
    }.get(kind, ["llama", "gpt2"])
    write_json(directory / "config.json", {"model_type": draw.choice(model)})


@pytest.mark.parametrize("number", range(DIRECTORIES))
def test_a_directory_means_what_it_means_to_transformers(number, tmp_path, transformers):
    seed = SEED + number
    write_directory(seed, tmp_path)
    again = f"TINYFLASH_SEED={seed} makes this directory the first"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours = open_tokenizer(tmp_path)
        except ValueError as refusal:
            assert re.search(REFUSALS, str(refusal)), again
            return
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            wanted = theirs.encode(text, add_special_tokens=special)
            assert ids == wanted, (text, special, again)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), (text, again)
            stream = ours.decode_stream()
            pieces = [*(stream.step(id) for id in ids), stream.flush()]
            assert "".join(pieces) == ours.decode(ids), (text, again)
    messages = [{"role": "user", "content": "hi"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False)
    assert ours.render_chat(messages, add_generation_prompt=False) == rendered, again
    assert ours.eos_ids == ((theirs.eos_token_id,) if theirs.eos_token else ()), again
    assert ours.bos_id == theirs.bos_token_id, again


@pytest.mark.parametrize("template", WRITTEN)
def test_a_template_says_what_it_says_to_transformers(template, transformers):
    render = transformers.utils.chat_template_utils.render_jinja_template
    theirs, _ = render([MESSAGES], chat_template=template, add_generation_prompt=True)
    assert rendered(template, tools=None, documents=None) == theirs[0]


def test_llama3_and_qwen2_cut_as_in_transformers(transformers):
    from transformers.convert_slow_tokenizer import TikTokenConverter

    llama3 = inspect.signature(TikTokenConverter).parameters
    assert llama3["pattern"].default == LLAMA3_PIECES
    qwen2 = transformers.Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    pieces = json.loads(qwen2.backend_tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
    assert pieces[0]["pattern"]["Regex"] == QWEN2_PIECES
