"""What transformers computes, under tinyflash's names: the reference of goldens and live tests.

Needs torch and transformers. Module hooks see what goes into and comes out of modules; what is
computed inside attention is seen by standing in for its function.
"""

import sys
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import torch
import transformers.utils.logging
from transformers import AutoModelForCausalLM

from tinyflash.families import read_config
from tinyflash.taps import tap_names, tap_shape

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # the models are tiny, and the same sums in the same order every time

# Where each family keeps the modules whose inputs and outputs are taps.
PLACES = {
    "opt": {
        "layers": "model.decoder.layers",
        "final_norm": "model.decoder.final_layer_norm",
        "attn.norm": "self_attn_layer_norm",
        "ffn.norm": "final_layer_norm",
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.out_proj",
        "ffn.up": "fc1",
        "ffn.down": "fc2",
    },
    "gpt2": {
        "layers": "transformer.h",
        "final_norm": "transformer.ln_f",
        "attn.norm": "ln_1",
        "ffn.norm": "ln_2",
        "attn.qkv": "attn.c_attn",
        "attn.o": "attn.c_proj",
        "ffn.up": "mlp.c_fc",
        "ffn.down": "mlp.c_proj",
    },
    "llama": {
        "layers": "model.layers",
        "final_norm": "model.norm",
        "attn.norm": "input_layernorm",
        "ffn.norm": "post_attention_layernorm",
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.gate": "mlp.gate_proj",
        "ffn.down": "mlp.down_proj",
    },
}
PLACES["mistral"] = PLACES["llama"]


def open_reference(directory):
    """transformers' model of a checkpoint, computing in float32 whatever is stored.

    Its attention is the one that is written out in Python.
    """
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def capture(model, ids):
    """Every intermediate tensor of transformers' forward pass, under tinyflash's names.

    model  : as `open_reference` returns it;  ids : list of int
    returns: dict tap name -> float32 array, in the order of taps.tap_names
    """
    config = read_config(model.config.to_dict())
    seen = {}

    def save(name, tensor):
        assert name not in seen, f"{name} was computed twice"
        seen[name] = tensor.detach().float().numpy().copy()

    places = PLACES[model.config.model_type]
    with ExitStack() as undo:
        watch_attention(model, config, save, undo)
        for i, layer in enumerate(model.get_submodule(places["layers"])):
            watch_layer(layer, i, places, config, save, undo)
        if config.final_norm:
            watch_output(model.get_submodule(places["final_norm"]), "final_norm", save, undo)
        save("logits", model(torch.tensor([ids]), use_cache=False).logits)
    seen["embed"] = seen["layers.0.resid_pre"]
    names, T = tap_names(config), len(ids)
    assert set(names) == set(seen), f"not the same taps: {set(names) ^ set(seen)}"
    return {name: seen[name].reshape(tap_shape(config, name, T, T)) for name in names}


def watch_layer(layer, i, places, config, save, undo):
    """Save what goes into and comes out of one layer's modules, until `undo` is closed."""

    def part(name):
        return layer.get_submodule(places[name])

    prefix = f"layers.{i}."
    watch_input(layer, prefix + "resid_pre", save, undo)
    watch_input(
        part("attn.norm" if config.norm_after else "ffn.norm"), prefix + "resid_mid", save, undo
    )
    watch_input(part("ffn.down"), prefix + "ffn.act", save, undo)
    outputs = {
        "attn.norm": "attn.norm",
        "attn.o": "attn.out",
        "ffn.norm": "ffn.norm",
        "ffn.up": "ffn.pre",
        "ffn.down": "ffn.out",
    }
    if "attn.qkv" in places:
        watch_output(part("attn.qkv"), prefix, lambda at, qkv: save_split(at, qkv, save), undo)
    else:
        outputs |= {f"attn.{x}": f"attn.{x}" for x in "qkv"}
    if "ffn.gate" in places:
        outputs["ffn.gate"] = "ffn.gate"
    for place, name in outputs.items():
        watch_output(part(place), prefix + name, save, undo)
    watch_output(layer, prefix + "resid_post", save, undo)


def save_split(prefix, qkv, save):
    """Save a fused (..., 3·D) tensor as queries, keys and values."""
    for x, tensor in zip("qkv", qkv.chunk(3, dim=-1), strict=True):
        save(f"{prefix}attn.{x}", tensor)


def watch_input(module, name, save, undo):
    hook = module.register_forward_pre_hook(lambda module, args: save(name, args[0]))
    undo.callback(hook.remove)


def watch_output(module, name, save, undo):
    hook = module.register_forward_hook(lambda module, args, output: save(name, output))
    undo.callback(hook.remove)


def watch_attention(model, config, save, undo):
    """Save what transformers' eager attention is given and computes, until `undo` is closed.

    Keys and queries arrive there turned by their positions. The scores are what it hands to its
    softmax when it is called without a mask.
    """
    home = sys.modules[type(model).__module__]
    original = home.eager_attention_forward

    def watched(module, query, key, value, mask, **settings):
        prefix = f"layers.{module.layer_idx}.attn."
        if config.positions == "rotary":
            save(prefix + "rot_q", query.transpose(1, 2))  # (1, T, H, K)
            save(prefix + "rot_k", key.transpose(1, 2))

        def softmax(scores, *args, **kwargs):
            save(prefix + "scores", scores)
            return scores

        with patch.object(torch.nn.functional, "softmax", softmax):
            original(module, query, key, value, None, **settings)
        z, pattern = original(module, query, key, value, mask, **settings)
        save(prefix + "pattern", pattern)
        save(prefix + "z", z)
        return z, pattern

    undo.enter_context(patch.object(home, "eager_attention_forward", watched))


@torch.no_grad()
def greedy(model, ids, new_tokens):
    """transformers' likeliest continuation, everything computed anew for each token.

    returns: list of int, and list of float: how far each was ahead of the second likeliest
    """
    ids, margins = list(ids), []
    for _ in range(new_tokens):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        (first, second), (token, _) = torch.topk(logits, 2)
        margins.append(float(first - second))
        ids.append(int(token))
    return ids[-new_tokens:], margins


def attention_entropy(pattern):
    """Mean entropy of the rows of attention patterns, as a share of the largest possible.

    1 is uniform attention, 0 is all attention on one token; rows with one visible token do not
    count.

    pattern : (H, T, S)
    """
    choices = np.count_nonzero(pattern, axis=-1)
    safe = np.where(pattern > 0, pattern, 1)
    entropy = -np.sum(pattern * np.log(safe), axis=-1)
    return float(np.mean((entropy / np.log(np.maximum(choices, 2)))[choices > 1]))
