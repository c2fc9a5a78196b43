"""Where to look for the fault when a tensor is the first that differs."""

from tinyflash.oracle.rows import Row
from tinyflash.taps import LAST_TAPS, LAYER_TAPS, MODEL_TAPS, short_name

EQUATIONS = {name: text for name, (_, text) in (MODEL_TAPS | LAYER_TAPS | LAST_TAPS).items()}

# Where to look when everything before this tensor agrees.
USUAL_FAULTS = {
    "embed": "the ids, where positions begin (OPT's table two rows late), an embedding scale",
    "resid_pre": "a residual stream that is written in place",
    "attn.norm": "eps, gain, bias, the biased variance; in TransformerLens's RMS norm the gain "
    "comes after this tensor",
    "attn.q": "a transposed or wrongly split matrix, its bias, rows in another rotary layout",
    "attn.k": "a transposed or wrongly split matrix, its bias, rows in another rotary layout",
    "attn.v": "a transposed or wrongly split matrix, its bias",
    "attn.norm_q": "eps, gain, bias; each head has a mean of its own",
    "attn.norm_k": "eps, gain, bias; each head has a mean of its own",
    "attn.rot_q": "the rotary layout (half-split or neighbors), positions, theta, scaling, how "
    "many numbers of a head are turned",
    "attn.rot_k": "the rotary layout (half-split or neighbors), positions, theta, scaling, how "
    "many numbers of a head are turned",
    "attn.scores": "the scale 1/√K, which key head each query head reads (h // (H/G)), ALiBi's "
    "slopes and whether it is scaled",
    "attn.pattern": "the mask, the window, the axis of the softmax",
    "attn.z": "which value head each query head reads, the order of heads and tokens",
    "attn.out": "a transposed matrix, its bias, the order of heads",
    "resid_mid": "which tensor the residual is taken from",
    "ffn.norm": "eps, gain, bias, the biased variance; norms before or after",
    "ffn.pre": "up and gate exchanged, a transposed matrix, its bias",
    "ffn.gate": "up and gate exchanged, a transposed matrix, its bias",
    "ffn.act": "the activation (tanh GELU or exact), which half is activated",
    "ffn.out": "a transposed matrix, its bias",
    "resid_post": "which tensor the residual is taken from",
    "unembed.transform": "a transposed matrix, its bias, the activation",
    "final_norm": "eps, gain, bias; a model without a final norm",
    "logits": "tied or untied embeddings, a missing projection",
}


def hint(row: Row) -> str:
    """What to do about a Row that differs: its equation, and what is usually wrong with it."""
    name = short_name(row.name)
    if name not in EQUATIONS:
        return f"{row.name} is no tensor of tinyflash's."
    return f"{row.name} = {EQUATIONS[name]}; look at: {USUAL_FAULTS[name]}."
