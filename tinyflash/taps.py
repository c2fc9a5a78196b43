"""The names of the intermediate tensors: frozen, in the order in which they are computed.

A tap is any function of (name, tensor). The names are TransformerLens's words where it has one,
so that two engines can be compared tensor by tensor; oracle/transformer_lens.py translates.
A layer's names stand behind `layers.{i}.`; the letters of the shapes are those of config.py.
`tests/test_goldens.py` pins names and shapes.
"""

from collections.abc import Callable

import numpy as np

from tinyflash.config import ModelConfig

Tap = Callable[[str, np.ndarray], object]

# name -> (shape, what it is)
MODEL_TAPS = {
    "embed": ("T D", "what enters layer 0: embeddings, scaled, with positions, normed"),
}
LAYER_TAPS = {
    "resid_pre": ("T D", "what enters the layer"),
    "attn.norm": ("T D", "norm(resid_pre); where norms stand after, norm(resid_mid)"),
    "attn.q": ("T H K", "attn.norm @ Wqᵀ + bq"),
    "attn.k": ("T G K", "attn.norm @ Wkᵀ + bk"),
    "attn.v": ("T G K", "attn.norm @ Wvᵀ + bv"),
    "attn.norm_q": ("T H K", "norm(attn.q), each head by itself"),
    "attn.norm_k": ("T G K", "norm(attn.k), each head by itself"),
    "attn.rot_q": ("T H K", "attn.q (or norm_q) turned by its position, see ops.rotary"),
    "attn.rot_k": ("T G K", "attn.k (or norm_k) turned by its position, see ops.rotary"),
    "attn.scores": ("H T S", "(q kᵀ + alibi) / √K, before the mask"),
    "attn.pattern": ("H T S", "softmax of the masked scores"),
    "attn.z": ("T H K", "attn.pattern @ v, head by head"),
    "attn.out": ("T D", "attn.z @ Woᵀ + bo"),
    "resid_mid": ("T D", "resid_pre + attn.out; parallel layers have none"),
    "ffn.norm": (
        "T D",
        "norm(resid_mid), in parallel layers norm(resid_pre) or, if they share a norm, none; "
        "where norms stand after, norm(attn.norm + ffn.out)",
    ),
    "ffn.pre": ("T F", "ffn.norm (or the norm that is shared) @ W_upᵀ + b_up"),
    "ffn.gate": ("T F", "ffn.norm @ W_gateᵀ + b_gate"),
    "ffn.act": (
        "T F",
        "act(ffn.pre), or act(ffn.gate) · ffn.pre; act cuts below a threshold if any",
    ),
    "ffn.out": ("T D", "ffn.act @ W_downᵀ + b_down"),
    "resid_post": ("T D", "resid_pre + attn.out + ffn.out; where norms stand after, ffn.norm"),
}
LAST_TAPS = {
    "unembed.transform": ("T D", "an encoder's act(resid_post @ Wᵀ + b); what final_norm is of"),
    "final_norm": ("T D", "norm of the last layer's resid_post"),
    "logits": ("T V", "one score for each token of the vocabulary"),
}

# What a feed-forward on flash shows instead of ffn.pre, ffn.gate and ffn.act.
FLASH_TAPS = {
    "ffn.predicted": ("T F", "bool: the neurons that each token uses"),
    "ffn.loaded": ("n", "the neurons read from flash, in order"),
    "ffn.evicted": ("m", "the neurons that gave their rows away, in order"),
    "ffn.reads": ("c 2", "sizes of the reads in bytes, and how many had each"),
}

# What speculation shows for each step, of a tree of n tokens.
DRAFT_TAPS = {
    "draft.tokens": ("n", "the tree's tokens, the model's own last one first"),
    "draft.parents": ("n", "which of them each follows; -1 for the first"),
    "draft.log_probs": ("n", "by the drafter, after their parents; only if it has any"),
    "draft.accepted": ("a", "places of those that stay: a path from the first on"),
}

SQUARE_TAPS = ("attn.scores", "attn.pattern")  # (H, T, S): they grow with the square of the text


def no_tap(name: str, tensor: np.ndarray) -> None:
    """The tap that looks at nothing.

    >>> no_tap("embed", np.zeros(3, dtype=np.float32))
    """


def under(tap: Tap, prefix: str) -> Tap:
    """A tap that puts `prefix` before every name.

    >>> show = under(lambda name, tensor: print(name, tensor.shape), "layers.3.")
    >>> show("ffn.out", np.zeros((2, 8), dtype=np.float32))
    layers.3.ffn.out (2, 8)
    """
    return lambda name, tensor: tap(prefix + name, tensor)


def tap_names(config: ModelConfig) -> list[str]:
    """All tap names of a model, in the order in which the forward pass computes them.

    Layers are those that are computed; two that share weights have taps of their own.

    >>> import tinyflash
    >>> tap_names(tinyflash.load("default").config)[:4]
    ['embed', 'layers.0.resid_pre', 'layers.0.attn.norm', 'layers.0.attn.q']
    """
    have = {
        "attn.norm_q": config.qk_norm,
        "attn.norm_k": config.qk_norm,
        "attn.rot_q": config.positions == "rotary",
        "attn.rot_k": config.positions == "rotary",
        "resid_mid": not config.parallel,
        "ffn.norm": not config.shared_norm,
        "ffn.gate": config.gated,
        "unembed.transform": config.unembed_transform,
        "final_norm": config.final_norm,
    }
    layer = [name for name in LAYER_TAPS if have.get(name, True)]
    if config.norm_after:
        for name, predecessor in (("attn.norm", "resid_mid"), ("ffn.norm", "ffn.out")):
            layer.remove(name)
            layer.insert(layer.index(predecessor) + 1, name)
    names = list(MODEL_TAPS)
    for i in range(config.layers):
        names += [f"layers.{i}.{name}" for name in layer]
    return names + [name for name in LAST_TAPS if have.get(name, True)]


def tap_shape(config: ModelConfig, name: str, T: int, S: int) -> tuple[int, ...]:
    """Shape of the tensor called `name` when T tokens are computed and S can be attended to.

    >>> import tinyflash
    >>> tap_shape(tinyflash.load("default").config, "layers.1.attn.scores", T=2, S=5)
    (3, 2, 5)
    """
    sizes = {
        "T": T,
        "S": S,
        "D": config.width,
        "H": config.heads,
        "G": config.kv_heads,
        "K": config.head_width,
        "F": config.ffn_width,
        "V": config.vocab_size,
    }
    letters, _ = (MODEL_TAPS | LAYER_TAPS | LAST_TAPS)[short_name(name)]
    return tuple(sizes[letter] for letter in letters.split())


def short_name(name: str) -> str:
    """A tap's name without its layer: `layers.3.attn.q` -> `attn.q`.

    >>> short_name("layers.3.attn.q"), short_name("logits")
    ('attn.q', 'logits')
    """
    return name.split(".", 2)[2] if name.startswith("layers.") else name
