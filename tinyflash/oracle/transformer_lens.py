"""Reads recordings whose tensors have TransformerLens's names, and its batch axis of one."""

import re

from tinyflash.taps import LAST_TAPS, LAYER_TAPS, short_name

# Ours -> TransformerLens's, for one layer ("blocks.{i}." stands in front) and for the model.
TRANSFORMER_LENS = {
    "resid_pre": "hook_resid_pre",
    "attn.norm": "ln1.hook_normalized",
    "attn.q": "attn.hook_q",
    "attn.k": "attn.hook_k",
    "attn.v": "attn.hook_v",
    "attn.rot_q": "attn.hook_rot_q",
    "attn.rot_k": "attn.hook_rot_k",
    "attn.scores": "attn.hook_attn_scores",
    "attn.pattern": "attn.hook_pattern",
    "attn.z": "attn.hook_z",
    "attn.out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "ffn.norm": "ln2.hook_normalized",
    "ffn.pre": "mlp.hook_pre",  # of a gated feed-forward: hook_pre_linear
    "ffn.gate": "mlp.hook_pre",  # TransformerLens calls the gate's input `pre`
    "ffn.act": "mlp.hook_post",
    "ffn.out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
    "final_norm": "ln_final.hook_normalized",
}

WORDS = {word: ours for ours, word in TRANSFORMER_LENS.items() if ours != "ffn.gate"}
# In a gated feed-forward TransformerLens calls the gate's input `pre`, and ours `pre_linear`.
GATED_WORDS = {**WORDS, "mlp.hook_pre": "ffn.gate", "mlp.hook_pre_linear": "ffn.pre"}


def with_our_names(taps):
    """The same taps under our names; a name that TransformerLens does not have stays.

    `embed`, for which it has no word, is by definition what enters layer 0.

    taps   : dict name -> array; TransformerLens's arrays may have a batch axis of one in front
    raises : ValueError if two names mean the same tensor
    """
    gated = any(name.endswith(".mlp.hook_pre_linear") for name in taps)
    renamed = {}
    for name, tensor in taps.items():
        ours = our_name(name, GATED_WORDS if gated else WORDS)
        if ours is None:
            ours = name
        elif tensor.ndim == axes(ours) + 1 and len(tensor) == 1:
            tensor = tensor[0]
        if ours in renamed:
            raise ValueError(f"The recording holds {ours} twice, once under the name {name}.")
        if name == "blocks.0.hook_resid_pre" and "embed" not in taps:
            renamed["embed"] = tensor
        renamed[ours] = tensor
    return renamed


def our_name(name, words):
    """`blocks.3.attn.hook_q` -> `layers.3.attn.q`; None for what is not TransformerLens's."""
    if name == TRANSFORMER_LENS["final_norm"]:
        return "final_norm"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None or match[2] not in words:
        return None
    return f"layers.{match[1]}.{words[match[2]]}"


def axes(name):
    """Number of axes of the tap called `name`."""
    letters, _ = (LAYER_TAPS | LAST_TAPS)[short_name(name)]
    return len(letters.split())


def transformer_lens_name(name: str) -> str | None:
    """What TransformerLens calls our tap, or None where it has no word.

    `layers.3.attn.q` -> `blocks.3.attn.hook_q`

    >>> transformer_lens_name("layers.3.attn.q"), transformer_lens_name("logits")
    ('blocks.3.attn.hook_q', None)
    """
    word = TRANSFORMER_LENS.get(short_name(name))
    if word is None or not name.startswith("layers."):
        return word
    return f"blocks.{name.split('.')[1]}.{word}"
