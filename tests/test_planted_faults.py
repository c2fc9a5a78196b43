"""Faults that engines really have, planted one by one: each is caught, and the first wrong tensor
is the one that the fault computes.
"""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from helpers_goldens import golden, largest_relative, model_of, recorded

from tinyflash import places, transformer
from tinyflash.config import Rope
from tinyflash.ops import rms_norm
from tinyflash.oracle.diff import compare
from tinyflash.oracle.hints import hint


def settings(**changes):
    """The fault of reading a config wrongly."""
    return lambda model, patch: replace(model, config=replace(model.config, **changes))


def weights(edit):
    """The fault of binding weights wrongly: `edit` changes a copy of the dict."""

    def plant(model, patch):
        changed = dict(model.weights)
        edit(changed)
        return replace(model, weights=changed)

    return plant


def function(name, faulty, module=transformer):
    """The fault of a formula: `module.name` is another function."""

    def plant(model, patch):
        patch.setattr(module, name, faulty)
        return model

    return plant


def formula(table, name, faulty):
    """The fault of a formula that is looked up in one of the transformer's tables."""

    def plant(model, patch):
        patch.setitem(getattr(transformer, table), name, faulty)
        return model

    return plant


def edited(name, *changes):
    """The fault of a line: `transformer.name` with pieces of its source text exchanged."""

    def plant(model, patch):
        source = inspect.getsource(getattr(transformer, name))
        for old, new in changes:
            assert source.count(old) == 1, f"{name} no longer says {old!r}: plant the fault anew"
            source = source.replace(old, new)
        namespace = dict(vars(transformer))
        exec(source, namespace)
        patch.setattr(transformer, name, namespace[name])
        return model

    return plant


def rotary_of_neighbors(x, positions, frequencies):
    """The layout of the paper and of GGUF files: pairs (2i, 2i + 1)."""
    angles = positions[:, None].astype(np.float32) * frequencies
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.stack((even * cos - odd * sin, odd * cos + even * sin), axis=-1)
    return turned.reshape(x.shape)


def rotary_one_late(x, positions, frequencies, rotary=transformer.rotary):
    return rotary(x, positions + 1, frequencies)


def unbiased_layer_norm(x, gain, bias, eps):
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True, ddof=1)
    return centered / np.sqrt(variance + eps) * gain + bias


def unrounded_alibi(H, S):
    slopes = 2.0 ** -np.array([*range(1, 9), 0.5, 1.5], dtype=np.float32)  # of ten heads
    return slopes[:, None, None] * np.arange(S, dtype=np.float32)


def evenly_spaced_alibi(H, S):
    slopes = 2.0 ** (-8 / H * np.arange(1, H + 1, dtype=np.float32))
    return slopes[:, None, None] * np.arange(S, dtype=np.float32)


def doubled_alibi(H, S, alibi=transformer.alibi):
    return 2 * alibi(H, S)


def sees_the_next_token(start, T, S, window=None, visible=places.visible):
    return visible(start + 1, T, S, window)


def exchange(a, b):
    def edit(named):
        named[a], named[b] = named[b], named[a]

    return weights(edit)


def transpose(name):
    return weights(lambda named: named.update({name: np.ascontiguousarray(named[name].T)}))


def without(name):
    return weights(lambda named: named.pop(name))


def fused_in_thirds(kv_heads):
    """The fault of cutting all queries, then all keys, then all values off a fused matrix that
    holds them group by group."""

    def edit(named):
        names = [f"layers.0.attn.{x}.weight" for x in "qkv"]
        whole = [named[name] for name in names]
        groups = [matrix.reshape(kv_heads, -1, matrix.shape[-1]) for matrix in whole]
        fused = np.concatenate(groups, axis=1).reshape(-1, whole[0].shape[-1])
        edges = np.cumsum([len(matrix) for matrix in whole])
        named.update(zip(names, np.split(fused, edges[:-1]), strict=True))

    return weights(edit)


# Queries in head order, and keys repeated 0 1 0 1 0 1 where they are 0 0 0 1 1 1.
TILED_KEYS = edited(
    "attention",
    ("q.swapaxes(-3, -2).reshape(*batch, G, (H // G) * T, K)", "q.swapaxes(-3, -2)"),
    (
        "k, v = k.swapaxes(-3, -2), v.swapaxes(-3, -2)",
        "k, v = (np.tile(x.swapaxes(-3, -2), (H // G, 1, 1)) for x in (k, v))",
    ),
    ("pattern = pattern.reshape(*batch, G, (H // G) * T, S)", ""),
)
TILED_VALUES = edited(
    "attention",
    ("pattern = pattern.reshape(*batch, G, (H // G) * T, S)", "v = np.tile(v, (H // G, 1, 1))"),
)

# what is wrong: (golden, how it is planted, the first wrong tensor)
FAULTS = {
    "rotary layout of neighbors": (
        "llama",
        function("rotary", rotary_of_neighbors),
        "0.attn.rot_q",
    ),
    "Llama 3 scaling forgotten": ("llama3", settings(rope=Rope(theta=100.0)), "0.attn.rot_q"),
    "linear scaling forgotten": (
        "llama-linear",
        settings(rope=Rope(theta=1000.0)),
        "0.attn.rot_q",
    ),
    "position table begins one row early": ("opt", settings(position_offset=1), "embed"),
    "eps of another family": ("llama", settings(norm_eps=1e-6), "0.attn.norm"),
    "eps of OPT a tenth": ("opt-bare", settings(norm_eps=1e-6), "0.attn.norm"),
    "unbiased variance": ("gpt2", formula("NORMS", "layer", unbiased_layer_norm), "0.attn.norm"),
    "RMS norm where a layer norm belongs": (
        "gpt2",
        formula("NORMS", "layer", rms_norm),
        "0.attn.norm",
    ),
    "keys repeated in the wrong order": ("llama", TILED_KEYS, "0.attn.scores"),
    "values repeated in the wrong order": ("llama", TILED_VALUES, "0.attn.z"),
    "scores without their scale": (
        "opt",
        edited("attention", ("H, T, S) * (1 / math.sqrt(K))", "H, T, S)")),
        "0.attn.scores",
    ),
    "window one too long": ("mistral", settings(window=6), "0.attn.pattern"),
    "window one too short": ("mistral", settings(window=4), "0.attn.pattern"),
    "window forgotten": ("mistral", settings(window=None), "0.attn.pattern"),
    "mask lets the next token through": (
        "gpt2",
        function("visible", sees_the_next_token, places),
        "0.attn.pattern",
    ),
    "bias of the values missing": ("gpt2", without("layers.1.attn.v.bias"), "1.attn.v"),
    "bias of the output missing": ("llama-biases", without("layers.0.attn.o.bias"), "0.attn.out"),
    "bias of the down matrix missing": ("opt", without("layers.1.ffn.down.bias"), "1.ffn.out"),
    "square matrix transposed": ("opt", transpose("layers.0.attn.o.weight"), "0.attn.out"),
    "Conv1D not transposed": ("gpt2", transpose("layers.1.attn.q.weight"), "1.attn.q"),
    "keys and values exchanged": (
        "llama",
        exchange("layers.1.attn.k.weight", "layers.1.attn.v.weight"),
        "1.attn.k",
    ),
    "gate and up exchanged": (
        "mistral",
        exchange("layers.0.ffn.gate.weight", "layers.0.ffn.up.weight"),
        "0.ffn.pre",
    ),
    "exact GELU": ("gpt2", settings(activation="gelu"), "0.ffn.act"),
    "norms exchanged": (
        "opt",
        exchange("layers.0.attn.norm.weight", "layers.0.ffn.norm.weight"),
        "0.attn.norm",
    ),
    "norms before where they stand after": ("opt-350m", settings(norm_after=False), "0.attn.q"),
    "final norm forgotten": ("opt", settings(final_norm=False), "final_norm"),
    "tied where it is not": ("llama", settings(tied=True), "logits"),
    "queries, keys and values of 40B in thirds": ("falcon-40b", fused_in_thirds(2), "0.attn.q"),
    "queries, keys and values of RW in thirds": ("falcon-rw", fused_in_thirds(10), "0.attn.q"),
    "queries, keys and values of Persimmon in thirds": (
        "persimmon",
        fused_in_thirds(3),
        "0.attn.q",
    ),
    "parallel parts in turn": (
        "falcon",
        edited("block", ("feed_forward(normed)", "feed_forward(normed + attended)")),
        "0.ffn.pre",
    ),
    "attention left out of the parallel sum": (
        "phi",
        edited("block", ("x + attended + feed_forward(normed)", "x + feed_forward(normed)")),
        "0.resid_post",
    ),
    "one norm for both parallel parts": (
        "falcon-40b",
        settings(shared_norm=True),
        "0.ffn.norm",
    ),
    "the norms of the parallel parts exchanged": (
        "falcon-40b",
        exchange("layers.0.attn.norm.weight", "layers.0.ffn.norm.weight"),
        "0.attn.norm",
    ),
    "ALiBi forgotten": (
        "falcon-rw",
        function("alibi", lambda H, S: np.zeros((H, 1, S), dtype=np.float32)),
        "0.attn.scores",
    ),
    "ALiBi added twice, as transformers' written-out attention does": (
        "falcon-rw",
        function("alibi", doubled_alibi),
        "0.attn.scores",
    ),
    "ALiBi not divided by the scale": (
        "falcon-rw",
        edited("attention", (".astype(scores.dtype) * (1 / math.sqrt(K))", "")),
        "0.attn.scores",
    ),
    "ALiBi not rounded to bfloat16": (
        "falcon-rw",
        function("alibi", unrounded_alibi),
        "0.attn.scores",
    ),
    "ALiBi's slopes evenly spaced though ten is no power of two": (
        "falcon-rw",
        function("alibi", evenly_spaced_alibi),
        "0.attn.scores",
    ),
    "all of a head turned": ("phi", settings(rotary_width=None), "0.attn.rot_q"),
    "too little of a head turned": ("persimmon", settings(rotary_width=2), "0.attn.rot_q"),
    "bias of the logits missing": ("phi", without("unembed.bias"), "logits"),
    "no norm of queries and keys": ("persimmon", settings(qk_norm=False), "0.attn.norm_q"),
    "norms of queries and keys exchanged": (
        "persimmon",
        exchange("layers.0.attn.norm_q.weight", "layers.0.attn.norm_k.weight"),
        "0.attn.norm_q",
    ),
    "bias of the norm of keys missing": (
        "persimmon",
        without("layers.1.attn.norm_k.bias"),
        "1.attn.norm_k",
    ),
    "ReLU not squared": ("persimmon", settings(activation="relu"), "0.ffn.act"),
    "embeddings not scaled": ("gemma", settings(embed_scale=1.0), "embed"),
    "the scale of embeddings rounded to bfloat16": (
        "gemma",
        settings(embed_scale=5.28125),
        "embed",
    ),
    "gains without their one": ("gemma", settings(norm_plus_one=False), "0.attn.norm"),
    "SiLU in Gemma's gate": ("gemma", settings(activation="silu"), "0.ffn.act"),
    "exact GELU in Gemma's gate": ("gemma", settings(activation="gelu"), "0.ffn.act"),
    "bias of the queries missing": ("qwen2", without("layers.0.attn.q.bias"), "0.attn.q"),
    "a window in every layer": ("qwen2-window", settings(window_layers=None), "0.attn.pattern"),
    "a window in no layer": ("qwen2-window", settings(window=None), "1.attn.pattern"),
    "shared layers run one round after the other": (
        "mobilellm-ls",
        edited("block", ("config.weight_layer(i)", "i % config.weight_layers")),
        "1.attn.norm",
    ),
    "shared layers run once": (
        "mobilellm-ls",
        settings(layers=2, layer_repeats=1),
        "1.attn.norm",
    ),
    "an encoder that sees only what came before": (
        "distilbert",
        settings(causal=True),
        "0.attn.pattern",
    ),
    "embeddings without their norm": ("distilbert", settings(embed_norm=False), "embed"),
    "the head's transform left out": (
        "distilbert",
        settings(unembed_transform=False),
        "unembed.transform",
    ),
    "the head's transform without its activation": (
        "distilbert",
        edited("unembed", ("activation(config.activation)(linear(x, W, b))", "linear(x, W, b)")),
        "unembed.transform",
    ),
    "tanh GELU in an encoder": ("distilbert", settings(activation="gelu_new"), "0.ffn.act"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_and_named(fault, monkeypatch):
    name, plant, first_wrong = FAULTS[fault]
    reference = golden(name)
    broken = plant(model_of(name), monkeypatch)
    comparison = compare(reference, recorded(broken, reference[1]["ids"]))
    expected = f"layers.{first_wrong}" if first_wrong[0].isdigit() else first_wrong
    assert not comparison.equal
    # A step that is left out leaves no tensor behind: it is what is unseen before the first.
    assert [*comparison.unseen, comparison.first.name][0] == expected
    assert hint(comparison.first).startswith(comparison.first.name)
    # What was computed from the wrong tensor is wrong too: the fault did not cancel out.
    assert comparison.rows[-1].verdict == "differs"


def test_a_fault_that_no_logit_shows_is_caught_too(monkeypatch):
    # Rotary attention sees distances only: all positions one too late change no score.
    reference = golden("llama3")
    broken = function("rotary", rotary_one_late)(model_of("llama3"), monkeypatch)
    comparison = compare(reference, recorded(broken, reference[1]["ids"]))
    wrong = [row.name for row in comparison.rows if row.verdict != "equal"]
    assert wrong == [f"layers.{i}.attn.rot_{x}" for i in (0, 1) for x in "qk"]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in FAULTS.values()}))
def test_without_a_fault_nothing_is_caught(name):
    reference = golden(name)
    comparison = compare(reference, recorded(model_of(name), reference[1]["ids"]))
    assert comparison.equal and comparison.not_compared == []


@pytest.mark.parametrize("function_name", ["attention", "block", "embed", "unembed"])
def test_exchanging_source_text_is_itself_no_fault(function_name, monkeypatch):
    reference = golden("llama")
    model = edited(function_name)(model_of("llama"), monkeypatch)
    assert compare(reference, recorded(model, reference[1]["ids"])).equal


def test_a_position_that_is_wrong_only_with_a_cache_is_caught_by_a_cache(monkeypatch):
    plant = function("positions_of", lambda T, start, tree: np.arange(T, dtype=np.int64), places)
    model = plant(model_of("llama"), monkeypatch)
    reference = golden("llama")
    ids = reference[1]["ids"]
    assert compare(reference, recorded(model, ids)).equal
    cache = model.new_cache()
    model.logits(ids[:5], cache)
    assert largest_relative(model.logits(ids)[5:], model.logits(ids[5:], cache)) > 0.01
