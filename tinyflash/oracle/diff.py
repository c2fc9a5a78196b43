"""Compares two recordings tensor by tensor, in the order of computation, and names the first
that differs: everything before it agrees, so the fault is in the equation that computes it.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from tinyflash.oracle.transformer_lens import with_our_names
from tinyflash.taps import LAST_TAPS, LAYER_TAPS, MODEL_TAPS, short_name
from tinyflash.transformer import visible

# Root mean square of the difference of two engines that both are right, as a share of the
# reference's spread, by the less precise of the two dtypes they compute in. A single number may
# be off by LARGEST times as much: attention patterns and residual streams have heavy tails.
#
# Measured against transformers 5.23.0, worst tensor of 320 random models (1 to 3 layers, sharp
# attention, up to 90 tokens; float64: of 20 GPT-2) and of SmolLM2 (30 layers, 34 tokens):
#
#              random models            SmolLM2
#     float64  2.3e-15, largest 7e-14
#     float32  2.3e-6, largest 6e-5     3.0e-6, largest 4e-4
#     float16  8.8e-3, largest 0.25     5.1e-3, largest 0.42
#     bfloat16 8.5e-2, largest 1.8      5.0e-2, largest 3.6
#
# In float32 transformers itself is as far as that from our float64.
TOLERANCES = {"float64": 1e-14, "float32": 1e-5, "float16": 2e-2, "bfloat16": 2e-1}
LARGEST = 100

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


@dataclass(frozen=True)
class Row:
    """One tensor of the comparison.

    verdict   : "equal" (within the tolerance), "differs", "not finite" (NaN or Inf in either),
                "shape", "missing" (in the other recording) or "extra" (only in the other)
    tolerance : of rms; that of relative is LARGEST times it
    max_abs   : largest |other - reference|; None where it cannot be said, as are the next three
    spread    : standard deviation of the reference, see `spread`
    relative  : max_abs / spread
    rms       : root mean square of other - reference, / spread
    detail    : what the numbers cannot say, or ""
    """

    name: str
    verdict: str
    tolerance: float
    max_abs: float | None = None
    spread: float | None = None
    relative: float | None = None
    rms: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Comparison:
    """All tensors of two recordings, side by side.

    rows      : in the order of computation of the reference
    dtype     : the less precise of the two that the recordings were computed in
    notes     : differences of the manifests that may explain those of the tensors
    near_ties : one dict for each position whose likeliest token differs: the two tokens, the
                top-2 margins, and whether each is in the other's top 5
    """

    rows: list[Row]
    dtype: str
    notes: list[str]
    near_ties: list[dict]

    @property
    def first(self):
        """The Row of the first tensor that differs, or None."""
        return next((row for row in self.rows if row.verdict != "equal"), None)

    @property
    def equal(self):
        """Whether every tensor is in both recordings and within the tolerance."""
        return self.first is None

    def to_json(self):
        """A dict for `json.dumps`."""
        return {
            "equal": self.equal,
            "dtype": self.dtype,
            "tolerance": TOLERANCES[self.dtype],
            "first": None if self.equal else self.first.name,
            "hint": None if self.equal else hint(self.first),
            "notes": self.notes,
            "near_ties": self.near_ties,
            "rows": [asdict(row) for row in self.rows],
        }


def compare(a, b, dtype=None):
    """Every tensor of two recordings, in the order of computation.

    A tensor is equal if √mean((b - a)²) ≤ t · spread(a) and max|b - a| ≤ LARGEST · t · spread(a),
    with t = TOLERANCES[dtype]. What only one recording has, another shape, NaN and Inf are
    differences. Scores are compared where the mask lets tokens look: elsewhere they change
    nothing, and engines need not compute them.

    a, b   : the reference and the other, each (taps, manifest) as `read_recording` returns it;
             taps may have TransformerLens's names
    dtype  : a key of TOLERANCES; None: the less precise of the two manifests' compute_dtype
    raises : ValueError if the recordings are not of the same token ids
    """
    (reference, about_a), (other, about_b) = a, b
    if about_a["ids"] != about_b["ids"]:
        raise ValueError(
            "The two recordings are of different token ids, so their tensors have nothing in "
            "common; record both with the same --ids."
        )
    if dtype is None:
        dtype = max(about_a["compute_dtype"], about_b["compute_dtype"], key=TOLERANCES.get)
    if dtype not in TOLERANCES:
        raise ValueError(f"There is no tolerance for {dtype!r}; it is one of {list(TOLERANCES)}.")
    reference, other = with_our_names(reference), with_our_names(other)
    tolerance, window = TOLERANCES[dtype], about_a.get("window")
    rows = [
        row(name, reference[name], other.get(name), tolerance, window) for name in reference
    ] + [
        Row(name, "extra", tolerance, detail="only the other recording has it")
        for name in other
        if name not in reference
    ]
    near_ties = []
    if "logits" in reference and "logits" in other:
        near_ties = different_choices(reference["logits"], other["logits"])
    return Comparison(rows, dtype, different_conditions(about_a, about_b), near_ties)


def first_difference(a, b, dtype=None):
    """The Row of the first tensor in which two recordings differ, or None; see `compare`."""
    return compare(a, b, dtype).first


def row(name, a, b, tolerance, window=None):
    """One tensor of the reference beside the other's, which is None where it has none."""
    if b is None:
        return Row(name, "missing", tolerance, detail="the other recording lacks it")
    if a.shape != b.shape:
        return Row(name, "shape", tolerance, detail=f"{a.shape} in the reference, {b.shape} here")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if short_name(name) == "attn.scores":
        T, S = a.shape[-2:]
        seen = visible(S - T, T, S, window)
        a, b = a[..., seen], b[..., seen]
    for who, tensor in (("the reference", a), ("the other recording", b)):
        if not np.isfinite(tensor).all():
            return Row(name, "not finite", tolerance, detail=f"{who} holds NaN or Inf")
    difference, scale = b - a, spread(a)
    max_abs = float(np.max(np.abs(difference)))
    relative, rms = max_abs / scale, math.sqrt(np.mean(difference**2)) / scale
    verdict = "equal" if rms <= tolerance and relative <= LARGEST * tolerance else "differs"
    return Row(name, verdict, tolerance, max_abs, scale, relative, rms)


def spread(tensor):
    """Standard deviation, but at least half the root mean square; 1 for nothing but zeros.

    (Few numbers may be alike by chance, and the pattern of a single token is all ones.)
    """
    size = math.sqrt(np.mean(tensor**2))
    return max(float(np.std(tensor)), size / 2) or 1.0


def top_two_margins(logits):
    """How far the likeliest token is ahead of the second: (..., V) -> (...)."""
    second, first = np.moveaxis(np.partition(logits, -2, axis=-1)[..., -2:], -1, 0)
    return first - second


def different_choices(a, b):
    """The positions at which two recordings' likeliest tokens differ, each as a dict.

    a, b : (T, V) logits; none are reported if the shapes differ or a number is not finite
    """
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return []
    first_a, first_b = np.argmax(a, axis=-1), np.argmax(b, axis=-1)
    margins_a, margins_b = top_two_margins(a), top_two_margins(b)
    return [
        {
            "position": int(t),
            "reference_token": int(first_a[t]),
            "other_token": int(first_b[t]),
            "reference_margin": float(margins_a[t]),
            "other_margin": float(margins_b[t]),
            "in_each_others_top_5": bool(
                np.sum(a[t] > a[t, first_b[t]]) < 5 and np.sum(b[t] > b[t, first_a[t]]) < 5
            ),
        }
        for t in np.flatnonzero(first_a != first_b)
    ]


def different_conditions(a, b):
    """What two manifests say differently, a sentence each."""
    notes = []
    if a["checkpoint"].get("digests") != b["checkpoint"].get("digests"):
        notes.append("The recordings are of different checkpoint files (by their SHA-256).")
    if a["norm_eps"] != b["norm_eps"]:
        notes.append(f"The norms' eps differ: {a['norm_eps']:g} and {b['norm_eps']:g}.")
    if a["rotary_layout"] != b["rotary_layout"]:
        notes.append(
            f"The rotary layouts differ: {a['rotary_layout']} and {b['rotary_layout']}; q and k "
            "may hold the same numbers in another order."
        )
    for key in ("window", "embedding_scale", "norm_plus_one", "rotary_width"):
        if key in a and key in b and a[key] != b[key]:
            notes.append(f"The manifests' {key} differ: {a[key]} and {b[key]}.")
    return notes


def hint(row):
    """What to do about a Row that differs: its equation, and what is usually wrong with it."""
    name = short_name(row.name)
    if row.verdict in ("missing", "extra"):
        return f"{row.name} is in one recording only; record it in both."
    if name not in EQUATIONS:
        return f"{row.name} is no tensor of tinyflash's."
    return f"{row.name} = {EQUATIONS[name]}; look at: {USUAL_FAULTS[name]}."


def print_comparison(comparison, show_all=False):
    """The comparison for people: a table, then the first tensor that differs and where to look."""
    from tinyflash import terminal

    different = [row for row in comparison.rows if row.verdict != "equal"]
    lines = []
    for row in comparison.rows if show_all else different:
        numbers = (row.max_abs, row.spread, row.relative, row.rms)
        texts = ["" if number is None else f"{number:.3g}" for number in numbers]
        lines.append((row.name, *texts, row.detail or row.verdict))
    if lines:
        tolerance = TOLERANCES[comparison.dtype]
        title = f"{comparison.dtype}: rms ≤ {tolerance:g}, relative ≤ {LARGEST * tolerance:g}"
        header = ("tensor", "max |difference|", "spread", "relative", "rms", "verdict")
        terminal.table(title, header, lines)
    for note in comparison.notes:
        print(note)
    for tie in comparison.near_ties:
        print(
            f"Position {tie['position']}: token {tie['reference_token']} (ahead by "
            f"{tie['reference_margin']:.3g}) became {tie['other_token']} (ahead by "
            f"{tie['other_margin']:.3g}); each is "
            f"{'' if tie['in_each_others_top_5'] else 'not '}in the other's top 5."
        )
    if comparison.equal:
        print(f"Equal: all {len(comparison.rows)} tensors agree.")
    else:
        print(
            f"{len(different)} of {len(comparison.rows)} tensors differ, first "
            f"{comparison.first.name}.\n{hint(comparison.first)}"
        )
