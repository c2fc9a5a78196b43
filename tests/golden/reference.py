"""What transformers computes, under tinyflash's names: the reference of goldens and live tests.

Needs torch and transformers. Module hooks see what goes into and comes out of modules; what is
computed inside attention is seen by standing in for its function.
"""

import math
import sys
from contextlib import ExitStack
from itertools import count
from unittest.mock import patch

import numpy as np
import torch
import transformers.utils.logging
from mobilellm import is_mobilellm, open_mobilellm
from places import places_of, split_qkv
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from tinyflash.families import read_config
from tinyflash.taps import tap_names, tap_shape

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # the models are tiny, and the same sums in the same order every time


def open_reference(directory):
    """transformers' model of a checkpoint, computing in float32 whatever is stored.

    Its attention is the one that is written out in Python; of Falcon it is the one that
    transformers chooses, for its written-out one adds ALiBi's bias twice (as of 5.23.0).
    """
    if is_mobilellm(directory):
        return open_mobilellm(directory)
    config = AutoConfig.from_pretrained(directory)
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    return (
        model_class(config)
        .from_pretrained(directory, dtype=torch.float32, attn_implementation=attention)
        .eval()
    )


def model_class(hf_config):
    """transformers' class of the models that end in a score for every word."""
    is_encoder = hf_config.model_type == "distilbert"
    return AutoModelForMaskedLM if is_encoder else AutoModelForCausalLM


def logits_of(model, ids):
    """Logits after each token, everything computed anew: (1, T, V)."""
    is_encoder = model.config.model_type == "distilbert"
    return model(torch.tensor([ids]), **({} if is_encoder else {"use_cache": False})).logits


def capture(model, ids):
    """Every intermediate tensor of transformers' forward pass, under tinyflash's names.

    model  : as `open_reference` returns it;  ids : list of int
    returns: dict tap name -> float32 array, in the order of taps.tap_names
    """
    config, seen, T = read_config(model.config.to_dict()), watch(model, ids), len(ids)
    names = tap_names(config)
    assert set(names) == set(seen), f"not the same taps: {set(names) ^ set(seen)}"
    return {name: seen[name].reshape(tap_shape(config, name, T, T)) for name in names}


@torch.no_grad()
def watch(model, ids):
    """Every intermediate tensor as transformers shapes it: dict tap name -> float32 array."""
    seen = {}

    def save(name, tensor):
        assert name not in seen, f"{name} was computed twice"
        seen[name] = tensor.detach().float().numpy().copy()

    places = places_of(model.config)
    with ExitStack() as undo:
        layers = model.get_submodule(places["layers"])
        if model.config.model_type == "falcon":
            watch_falcon_attention(model.config, save, undo)
        else:
            watch_attention(model, layers, save, undo)
        for i, layer in enumerate(layers):
            watch_layer(layer, i, places, model.config, save, undo)
        if "final_norm" in places:
            watch_output(model.get_submodule(places["final_norm"]), "final_norm", save, undo)
        if "unembed.transform" in places:
            transformed = model.get_submodule(places["unembed.transform"])
            watch_input(transformed, "unembed.transform", save, undo)
        save("logits", logits_of(model, ids))
    seen["embed"] = seen["layers.0.resid_pre"]
    return seen


def watch_layer(layer, i, places, hf_config, save, undo):
    """Save what goes into and comes out of one layer's modules, until `undo` is closed."""
    prefix = f"layers.{i}."
    inputs = {"resid_mid": "resid_mid", "ffn.down": "ffn.act"}
    outputs = {
        "attn.norm": "attn.norm",
        "attn.q": "attn.q",
        "attn.k": "attn.k",
        "attn.v": "attn.v",
        "attn.o": "attn.out",
        "ffn.norm": "ffn.norm",
        "ffn.up": "ffn.pre",
        "ffn.gate": "ffn.gate",
        "ffn.down": "ffn.out",
    }
    watch_input(layer, prefix + "resid_pre", save, undo)
    watch_output(layer, prefix + "resid_post", save, undo)
    for names, watch_one in ((inputs, watch_input), (outputs, watch_output)):
        for place, name in names.items():
            if place in places:
                watch_one(layer.get_submodule(places[place]), prefix + name, save, undo)

    def save_split(prefix, qkv):
        for x, tensor in zip("qkv", split_qkv(hf_config, qkv), strict=True):
            save(f"{prefix}attn.{x}", tensor)

    def save_by_token(name, tensor):
        by_head = hf_config.model_type == "phi"  # (1, H, T, K)
        save(name, tensor.transpose(1, 2) if by_head else tensor)

    if "attn.qkv" in places:
        watch_output(layer.get_submodule(places["attn.qkv"]), prefix, save_split, undo)
    for name in ("attn.norm_q", "attn.norm_k"):
        if name in places:
            watch_output(layer.get_submodule(places[name]), prefix + name, save_by_token, undo)


def watch_input(module, name, save, undo):
    hook = module.register_forward_pre_hook(lambda module, args: save(name, args[0]))
    undo.callback(hook.remove)


def watch_output(module, name, save, undo):
    def see(module, args, output):
        save(name, output[0] if isinstance(output, tuple) else output)

    undo.callback(module.register_forward_hook(see).remove)


def watch_attention(model, layers, save, undo):
    """Save what transformers' eager attention is given and computes, until `undo` is closed.

    Keys and queries arrive there turned by their positions. The scores are what it hands to its
    softmax when it is called without a mask.
    """
    home = sys.modules[type(model).__module__]
    original = home.eager_attention_forward
    layer_of = {module: i for i, layer in enumerate(layers) for module in layer.modules()}
    turns = hasattr(model.base_model, "rotary_emb")

    def watched(module, query, key, value, mask, **settings):
        prefix = f"layers.{layer_of[module]}.attn."
        if turns:
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


def watch_falcon_attention(hf_config, save, undo):
    """Save what PyTorch's own attention is given and computes for Falcon, until `undo` is closed.

    It shows neither scores nor pattern: they are computed here, and z from them is checked. With
    ALiBi the mask is a number for each key, divided by √K like the scores.
    """
    original = torch.nn.functional.scaled_dot_product_attention
    calls = count()

    def watched(query, key, value, attn_mask, **settings):
        T, K = query.shape[-2:]
        prefix = f"layers.{next(calls)}.attn."
        seen = torch.ones(T, T, dtype=torch.bool).tril()
        scores = query @ key.transpose(-1, -2) / math.sqrt(K)  # (1, H, T, T)
        if hf_config.alibi:
            scores = scores + attn_mask[..., -1:, :]  # the last token sees every key's bias
        else:
            groups = hf_config.num_kv_heads if hf_config.new_decoder_architecture else key.shape[1]
            save(prefix + "rot_q", query.transpose(1, 2))  # (1, T, H, K)
            save(prefix + "rot_k", key[:, :: key.shape[1] // groups].transpose(1, 2))
        pattern = torch.where(seen, scores, -torch.inf).softmax(dim=-1)
        z = original(query, key, value, attn_mask=attn_mask, **settings)
        assert torch.allclose(pattern @ value, z, rtol=1e-4, atol=1e-5)
        save(prefix + "scores", scores)
        save(prefix + "pattern", pattern)
        save(prefix + "z", z.transpose(1, 2))
        return z

    undo.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", watched))


@torch.no_grad()
def greedy(model, ids, new_tokens):
    """transformers' likeliest continuation, everything computed anew for each token.

    returns: list of int, and list of float: how far each was ahead of the second likeliest
    """
    ids, margins = list(ids), []
    for _ in range(new_tokens):
        logits = logits_of(model, ids)[0, -1]
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
