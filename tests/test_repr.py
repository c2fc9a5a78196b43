"""What Python and a notebook show of an object is one short line, whatever it holds."""

import numpy as np
from helpers_models import OPT_CONFIG, write_model

import tinyflash
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.flash.predictor import Predictor
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store
from tinyflash.matrices.half import HalfMatrix


def one_line(thing, *words):
    shown = repr(thing)
    assert len(shown) < 200 and shown.isprintable() and shown[0] == "<" and shown[-1] == ">"
    for word in (type(thing).__name__, *words):
        assert word in shown, shown


def test_the_repr_of_a_model_and_what_belongs_to_it(tmp_path):
    model = tinyflash.load("default")
    one_line(model, "'default'", "opt", "float32")
    one_line(model.tokenizer)
    made = model.generate("Once upon a time", temperature=0, max_new_tokens=40)
    one_line(made, "0 of 40", "in the making")
    list(made)
    one_line(made, "40 of 40", "ended by length", "…")
    one_line(made.cache, f"{made.cache.length} tokens")
    one_line(model.drafter("redrafter"), "Drafter", "beams")
    one_line(model.drafter("redrafter").drafter)
    one_line(model.drafter("default"), "<Model 'default'")


def test_the_repr_of_a_chat_and_of_names_with_control_characters(tmp_path):
    path = write_model(tmp_path / "a\x1b[31m\nb", OPT_CONFIG, seed=4, chat=True)
    chat = tinyflash.load(path).chat()
    list(chat.say("Why?", max_new_tokens=2))
    one_line(chat, "2 messages")
    one_line(chat.model, "\\x1b[31m\\nb")


def test_the_repr_of_files_and_matrices(tmp_path):
    path = write_model(tmp_path / "opt", OPT_CONFIG, seed=4)
    checkpoint = open_checkpoint(path)
    one_line(checkpoint, "tensors", "opt")
    one_line(checkpoint["model.decoder.embed_tokens.weight"], "float16")
    store = open_store(convert(path, tmp_path / "flash"))
    one_line(store, "row-column", "float16", "bytes")
    model = tinyflash.load(store.path, memory="98%", mode="naive")
    one_line(model, "flash in mode naive")
    one_line(model.flash, "mode naive")
    one_line(HalfMatrix(np.zeros((3, 4), dtype=np.float16), "layers.0.up"), "layers.0.up", "(3, 4)")
    down, up = np.zeros((2, 5), dtype=np.float32), np.zeros((7, 2), dtype=np.float32)
    one_line(Predictor(down, up, np.zeros(7, dtype=np.float32)), "7 neurons by rank 2")
