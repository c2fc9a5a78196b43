"""Encoders: masks filled in, and pseudo-perplexity, against passes written out one by one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers_models import DISTILBERT_CONFIG, OPT_CONFIG, write_model
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import tinyflash
from tinyflash.cli import main
from tinyflash.evaluate import MASK, fill_mask, perplexity, pseudo_perplexity

WORDS = "the river knew every stone and it ran to sea when rain came ##s ##ing . ,".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK]
TEXT = "The river knew every stone, and every stone knew the rivers."


def write_word_pieces(directory):
    """A tokenizer.json as BERT's are: word pieces between [CLS] and [SEP]."""
    vocabulary = {word: id for id, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "DistilBertTokenizer", "mask_token": MASK, "pad_token": "[PAD]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("distilbert")
    config = DISTILBERT_CONFIG | {"vocab_size": 23, "max_position_embeddings": 12}
    write_model(directory, config, seed=2, dtype="float32", tokenizer=False)
    write_word_pieces(directory)
    return tinyflash.load(directory, dtype="float64")


def probabilities(model, ids, t):
    """Of the token at t, with Python numbers."""
    logits = model.logits(ids)[t].tolist()
    total = math.fsum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def test_masks_are_filled_with_the_likeliest_words(encoder):
    ids = encoder.encode(f"The {MASK} knew every {MASK}.")
    assert [ids[0], ids[2], ids[5], ids[-1]] == [2, 4, 4, 3] and len(ids) == 8
    fillings = fill_mask(encoder, f"The {MASK} knew every {MASK}.", top=3)
    assert len(fillings) == 2
    words = [*SPECIAL, *WORDS, ""]  # the model has one word more than the tokenizer
    for t, filling in zip((2, 5), fillings, strict=True):
        p = probabilities(encoder, ids, t)
        likeliest = sorted(range(23), key=lambda token: -p[token])[:3]
        assert [word for word, _ in filling] == [words[token] for token in likeliest]
        assert [q for _, q in filling] == pytest.approx([p[t] for t in likeliest], rel=1e-9)
    assert len(fill_mask(encoder, MASK)[0]) == 5


def test_pseudo_perplexity_masks_every_token_of_every_window_once(encoder):
    ids = encoder.tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(ids) == 14  # more than one window of 12 - 2
    losses = []
    for start in (0, 10):
        window = [2, *ids[start : start + 10], 3]
        for t in range(1, len(window) - 1):
            masked = [*window[:t], 4, *window[t + 1 :]]
            losses.append(-math.log(probabilities(encoder, masked, t)[window[t]]))
    told = []
    measured = pseudo_perplexity(encoder, TEXT, lambda *progress: told.append(progress))
    assert measured.nats == pytest.approx(math.fsum(losses) / 14, rel=1e-10)
    assert (measured.tokens, measured.context, measured.masked) == (14, 12, True)
    assert told == [(n, 14) for n in range(1, 15)]
    assert "pseudo-perplexity" in measured.rule and "12 tokens" in measured.rule
    assert perplexity(encoder, TEXT) == measured


def test_the_words_on_both_sides_count(encoder):
    """A pass that saw the left side only would fill the mask alike."""
    one, other = (fill_mask(encoder, f"the {MASK} {word}", top=23)[0] for word in ("sea", "ran"))
    assert dict(one) != pytest.approx(dict(other), rel=1e-3)


def test_evaluate_says_pseudo_perplexity(encoder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    assert main(["evaluate", str(encoder.path), "--text", str(text), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["perplexity"] == pytest.approx(pseudo_perplexity(encoder, TEXT).perplexity, 1e-3)
    assert result["context_rule"].startswith("pseudo-perplexity")


def test_what_cannot_be_filled_in_is_refused_in_a_sentence(encoder, tmp_path):
    decoder = tinyflash.load(write_model(tmp_path, OPT_CONFIG))
    for model, text, settings, words in (
        (encoder, "no mask", {}, "has no [MASK] to fill in"),
        (encoder, MASK, {"top": 0}, "At least 1 word"),
        (encoder, f"{MASK} the" * 20, {}, "do not fit this model's context"),
        (decoder, MASK, {}, "has not learned to fill in masks"),
        (replace(encoder, tokenizer=None), MASK, {}, "no tokenizer"),
        (replace(encoder, tokenizer=decoder.tokenizer), MASK, {}, "has no [MASK]"),
    ):
        with pytest.raises(ValueError) as error:
            fill_mask(model, text, **settings)
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no token to predict"):
        pseudo_perplexity(encoder, "")


def test_an_encoder_runs_from_flash(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flash = tinyflash.load(encoder.path, memory="90%", dtype="float64")
    ids = encoder.encode(TEXT)[:12]
    np.testing.assert_allclose(flash.logits(ids), encoder.logits(ids), rtol=1e-11, atol=1e-11)


def test_what_old_files_carry_besides_is_left_alone(tmp_path):
    """The tied projection under its own name, and a table of the numbers 0, 1, 2 …"""
    tensors_file = write_model(tmp_path, DISTILBERT_CONFIG, dtype="float32") / "model.safetensors"
    expected = tinyflash.load(tmp_path).logits([4, 5, 6])
    tensors = load_file(tensors_file)
    assert "vocab_projector.weight" not in tensors and "vocab_projector.bias" in tensors
    tensors["vocab_projector.weight"] = tensors["distilbert.embeddings.word_embeddings.weight"]
    tensors["distilbert.embeddings.position_ids"] = np.arange(96, dtype=np.int64)[None]
    save_file(tensors, tensors_file)
    np.testing.assert_array_equal(tinyflash.load(tmp_path).logits([4, 5, 6]), expected)
    save_file({**tensors, "classifier.weight": np.zeros(2, dtype=np.float32)}, tensors_file)
    with pytest.raises(ValueError, match="classifier.weight"):
        tinyflash.load(tmp_path)
