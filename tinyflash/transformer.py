"""The forward pass of every family, written once: ids in, logits out.

    ids -> embed -> L blocks of (attention, feed-forward) -> final norm -> unembed -> logits

`weights` is a dict from the names of `config.weight_shapes` to anything that `ops.linear` can
multiply by. Quantized, factorized, half-precision or traced weights are other values under the
same names; a feed-forward that reads from flash is another function in `feed_forwards`. Nothing
here knows.

`tap(name, tensor)` is shown every named intermediate tensor (`taps.py` lists the names).
Arrays may carry leading batch axes in front of (T, D), as in training; then `cache` is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tinyflash.config import ModelConfig
from tinyflash.kv_cache import KVCache
from tinyflash.matrices.matrix import Lookup, Weights
from tinyflash.ops import (
    NORMS,
    activation,
    alibi,
    linear,
    rotary,
    rotary_frequencies,
    rows,
    softmax,
)
from tinyflash.places import Places, places_of
from tinyflash.taps import Tap, no_tap, under


class FeedForward(Protocol):
    """The feed-forward of one layer: `forward` asks for no more.

    >>> halving: FeedForward = lambda x: x / 2
    >>> halving(np.ones((1, 2), dtype=np.float32)).tolist()
    [[0.5, 0.5]]
    """

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(T, D) -> (T, D)."""
        ...


def forward(
    weights: Weights,
    config: ModelConfig,
    ids: np.ndarray,
    cache: KVCache | None = None,
    tap: Tap = no_tap,
    feed_forwards: Sequence[FeedForward] | None = None,
    tree: Any = None,
) -> np.ndarray:
    """Logits after each token: row t is the model's prediction for what follows token t.

    ids           : int (..., T), each in 0 … V-1
    cache         : KVCache of the tokens before these, or None when these are the first
    feed_forwards : one FeedForward a layer, or None for the dense ones
    tree          : None for plain text, where each token follows the one before it; or a tree of
                    the T tokens: `tree.depths` int (T,), how many of them stand before each, and
                    `tree.ancestors` bool (T, T), which of them each may look at
    returns       : (..., T, V); of an encoder, the prediction for token t itself
    raises        : ValueError for an encoder with a cache

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> ids = np.array(model.encode("To be, or not to"), dtype=np.int64)
    >>> logits = forward(model.weights, model.config, ids)
    >>> logits.shape[0] == len(ids), model.tokenizer.decode([logits[-1].argmax()])
    (True, ' be')
    """
    if cache is not None and not config.causal:
        raise ValueError(
            f"A {config.family} model is an encoder: it fills in masked words and cannot continue "
            "a text, so it has no KV cache."
        )
    T = ids.shape[-1]
    places = places_of(config, T, cache, tree)
    x = embed(weights, config, ids, places.positions)
    tap("embed", x)
    for i in range(config.layers):
        feed_forward = feed_forwards[i] if feed_forwards else None
        x = block(weights, config, i, x, places, tap, feed_forward)
    logits = unembed(weights, config, x, tap)
    if cache is not None:
        cache.advance(T)
    return logits


def embed(
    weights: Weights, config: ModelConfig, ids: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Token embeddings plus, in families that learn them, position embeddings.

    Gemma scales the tokens' by config.embed_scale; encoders normalize the sum.

    ids : int (..., T);  positions : int (T,);  returns: (..., T, D)

    >>> import tinyflash
    >>> model, ids = tinyflash.load("default"), np.array([5, 5], dtype=np.int64)
    >>> x = embed(model.weights, model.config, ids, np.arange(2, dtype=np.int64))
    >>> x.shape, bool(np.all(x[0] == x[1]))  # the same token, at two positions
    ((2, 192), False)
    """
    x = rows(weights["embed.weight"], ids)  # (..., T, E)
    if config.embed_scale != 1:
        x = x * config.embed_scale
    if config.embed_width != config.width:
        x = linear(x, weights["embed.project.weight"])  # (..., T, D)
    if config.positions == "learned":
        x = x + rows(weights["positions.weight"], config.position_offset + positions)
    if config.embed_norm:
        x = norm(weights.get, config, "embed.norm", x, no_tap)
    return x


def block(
    weights: Weights,
    config: ModelConfig,
    i: int,
    x: np.ndarray,
    places: Places,
    tap: Tap,
    feed_forward: FeedForward | None = None,
) -> np.ndarray:
    """Layer i: attention and feed-forward, each added to what came in.

    Norms stand before each part (x + f(norm(x))) or, where config.norm_after, after the sum
    (norm(x + f(x))), as in the first transformers, in OPT-350m and in encoders. Where
    config.parallel, both parts read what came in (GPT-J, Falcon, Phi).

    Layers that share weights stand in a row: layer i has those of layer i // layer_repeats, and a
    KV cache of its own (MobileLLM, arXiv 2402.14905, §2.3).

    x : (..., T, D);  places : Places of the T;  returns: (..., T, D)

    >>> import tinyflash
    >>> model, x = tinyflash.load("default"), np.ones((2, 192), dtype=np.float32)
    >>> block(model.weights, model.config, 0, x, places_of(model.config, 2), no_tap).shape
    (2, 192)
    """
    tap = under(tap, f"layers.{i}.")
    layer = under_prefix(weights, f"layers.{config.weight_layer(i)}.")
    feed_forward = feed_forward or (lambda x: dense_feed_forward(layer, config, x, tap))

    tap("resid_pre", x)
    if config.norm_after:
        x = x + attention(layer, config, i, x, places, tap)
        tap("resid_mid", x)
        x = norm(layer, config, "attn.norm", x, tap)
        x = norm(layer, config, "ffn.norm", x + feed_forward(x), tap)
    elif config.parallel:
        normed = norm(layer, config, "attn.norm", x, tap)
        attended = attention(layer, config, i, normed, places, tap)
        if not config.shared_norm:
            normed = norm(layer, config, "ffn.norm", x, tap)
        x = x + attended + feed_forward(normed)
    else:
        normed = norm(layer, config, "attn.norm", x, tap)
        x = x + attention(layer, config, i, normed, places, tap)
        tap("resid_mid", x)
        x = x + feed_forward(norm(layer, config, "ffn.norm", x, tap))
    tap("resid_post", x)
    return x


def attention(
    layer: Lookup, config: ModelConfig, i: int, x: np.ndarray, places: Places, tap: Tap
) -> np.ndarray:
    """Every token looks at itself and at those before it, through H heads.

    pattern = softmax(q kᵀ / √K), z = pattern v      (Attention is all you need, §3.2.1)

    In an encoder it looks at those after it too. H/G query heads share each key/value head (GQA,
    arXiv 2305.13245, §2.2): their queries are stacked under one another, so that no key is ever
    copied.

    x : (..., T, D);  places : Places of the T;  returns: (..., T, D)

    >>> import tinyflash
    >>> model, x = tinyflash.load("default"), np.ones((2, 192), dtype=np.float32)
    >>> layer, places = under_prefix(model.weights, "layers.0."), places_of(model.config, 2)
    >>> out = attention(layer, model.config, 0, x, places, no_tap)
    >>> bool(np.allclose(out[0], out[1], atol=1e-4))  # a mixture of equal values is that value
    True
    """
    *batch, T, _ = x.shape
    H, G, K = config.heads, config.kv_heads, config.head_width

    q = linear(x, layer("attn.q.weight"), layer("attn.q.bias"))  # (..., T, H·K)
    k = linear(x, layer("attn.k.weight"), layer("attn.k.bias"))  # (..., T, G·K)
    v = linear(x, layer("attn.v.weight"), layer("attn.v.bias"))
    q = q.reshape(*batch, T, H, K)  # (..., T, H, K)
    k, v = k.reshape(*batch, T, G, K), v.reshape(*batch, T, G, K)  # (..., T, G, K)
    tap("attn.q", q)
    tap("attn.k", k)
    tap("attn.v", v)
    if config.qk_norm:
        q = norm(layer, config, "attn.norm_q", q, tap)
        k = norm(layer, config, "attn.norm_k", k, tap)
    if config.positions == "rotary":
        frequencies = rotary_frequencies(config.rope, config.turned)
        q = rotary(q, places.positions, frequencies)
        k = rotary(k, places.positions, frequencies)
        tap("attn.rot_q", q)
        tap("attn.rot_k", k)

    q = q.swapaxes(-3, -2).reshape(*batch, G, (H // G) * T, K)  # (..., G, H/G·T, K)
    k, v = k.swapaxes(-3, -2), v.swapaxes(-3, -2)  # (..., G, T, K)
    if places.cache is not None:
        k, v = places.cache.append(i, k, v)  # (G, S, K)
    S = k.shape[-2]

    scores = q @ k.swapaxes(-2, -1)  # (..., G, H/G·T, S)
    scores = scores.reshape(*batch, H, T, S) * (1 / math.sqrt(K))  # (..., H, T, S)
    if config.positions == "alibi":
        bias = alibi(H, S)[..., places.keys]  # (H, 1, S)
        scores = scores + bias.astype(scores.dtype) * (1 / math.sqrt(K))
    tap("attn.scores", scores)
    seen = places.seen[config.window_of(i)]  # (T, S)
    if not seen.all():
        scores = np.where(seen, scores, -math.inf)
    pattern = softmax(scores)
    tap("attn.pattern", pattern)

    pattern = pattern.reshape(*batch, G, (H // G) * T, S)  # (..., G, H/G·T, S)
    z = (pattern @ v).reshape(*batch, H, T, K)  # (..., H, T, K)
    z = z.swapaxes(-3, -2)  # (..., T, H, K)
    tap("attn.z", z)
    z = z.reshape(*batch, T, H * K)  # (..., T, H·K)
    out = linear(z, layer("attn.o.weight"), layer("attn.o.bias"))
    tap("attn.out", out)
    return out


def dense_feed_forward(layer: Lookup, config: ModelConfig, x: np.ndarray, tap: Tap) -> np.ndarray:
    """The feed-forward with all of its neurons: down(act(up(x))), or gated down(act(gate) · up).

    A neuron is one row of up (and of gate) and one column of down: F of them.
    (GLU variants improve transformer, arXiv 2002.05202, §2)

    x : (..., T, D);  returns: (..., T, D)

    >>> import tinyflash
    >>> model, x = tinyflash.load("default"), np.ones((3, 192), dtype=np.float32)
    >>> dense_feed_forward(under_prefix(model.weights, "layers.1."), model.config, x, no_tap).shape
    (3, 192)
    """
    activate = activation(config.activation, layer("ffn.threshold"))
    pre = linear(x, layer("ffn.up.weight"), layer("ffn.up.bias"))  # (..., T, F)
    tap("ffn.pre", pre)
    if config.gated:
        gate = linear(x, layer("ffn.gate.weight"), layer("ffn.gate.bias"))
        tap("ffn.gate", gate)
        act = activate(gate) * pre
    else:
        act = activate(pre)
    tap("ffn.act", act)
    out = linear(act, layer("ffn.down.weight"), layer("ffn.down.bias"))
    tap("ffn.out", out)
    return out


def unembed(weights: Weights, config: ModelConfig, x: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """Final norm, then one score for each word of the vocabulary.

    Before the norm an encoder's head transforms what it was given: act(x Wᵀ + b).

    x : (..., T, D);  returns: (..., T, V)

    >>> import tinyflash
    >>> model = tinyflash.load("default")
    >>> unembed(model.weights, model.config, np.ones((3, 192), dtype=np.float32)).shape  # (T, V)
    (3, 2048)
    """
    if config.unembed_transform:
        W, b = weights["unembed.transform.weight"], weights["unembed.transform.bias"]
        x = activation(config.activation)(linear(x, W, b))
        tap("unembed.transform", x)
    if config.final_norm:
        x = norm(weights.get, config, "final_norm", x, tap)
    if config.embed_width != config.width:
        x = linear(x, weights["unembed.project.weight"])  # (..., T, E)
    W = weights["embed.weight" if config.tied else "unembed.weight"]
    logits = linear(x, W, weights.get("unembed.bias"))
    tap("logits", logits)
    return logits


def norm(layer: Lookup, config: ModelConfig, name: str, x: np.ndarray, tap: Tap) -> np.ndarray:
    """The family's norm with the gain and bias stored under `name`.

    >>> import tinyflash
    >>> model, x = tinyflash.load("default"), np.ones((1, 192), dtype=np.float32)
    >>> y = norm(model.weights.get, model.config, "final_norm", x, no_tap)  # no variance
    >>> bool(np.allclose(y, model.weights["final_norm.bias"]))
    True
    """
    gain, bias = layer(f"{name}.weight"), layer(f"{name}.bias")
    if config.norm_plus_one and gain is not None:
        gain = 1 + gain
    y = NORMS[config.norm](x, gain, bias, config.norm_eps)
    tap(name, y)
    return y


def under_prefix(weights: Weights, prefix: str) -> Lookup:
    """A lookup of the weights whose names begin with `prefix`; None for one that is not there.

    >>> under_prefix({"layers.0.ffn.up.weight": "up"}, "layers.0.")("ffn.up.weight")
    'up'
    """
    return lambda name: weights.get(prefix + name)
