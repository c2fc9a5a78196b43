"""Compares two recordings tensor by tensor, and names the first that differs.

They are compared in the order of computation: everything before the first agrees, so the fault is
in the equation that computes it. A manifest is not believed where the numbers can be asked: see
`shown_dtype` and `scores_that_count`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from tinyflash.oracle.hints import hint
from tinyflash.oracle.rows import Row, compared_row, is_floats
from tinyflash.oracle.tolerances import LARGEST, TOLERANCES, shown_dtype
from tinyflash.oracle.transformer_lens import with_our_names
from tinyflash.places import visible
from tinyflash.taps import short_name

MASKED = -1e4  # scores below are an engine's mark for what it masks; -inf is the usual one


@dataclass(frozen=True)
class Comparison:
    """All tensors of two recordings, side by side.

    rows           : in the order of computation of the reference
    dtype          : the less precise of the two that the recordings were computed in
    contradictions : what both manifests cannot mean of one computation, a sentence each
    notes          : what else is said differently, and may explain what differs
    near_ties      : one dict for each position whose likeliest token differs: the two tokens, the
                     top-2 margins, and whether each is in the other's top 5
    """

    rows: list[Row]
    dtype: str
    contradictions: list[str]
    notes: list[str]
    near_ties: list[dict]

    @property
    def compared(self) -> list[Row]:
        """The tensors that both recordings have; at least one."""
        return [row for row in self.rows if row.compared]

    @property
    def not_compared(self) -> list[Row]:
        """The tensors that only one recording has."""
        return [row for row in self.rows if not row.compared]

    @property
    def first(self) -> Row | None:
        """The first tensor that differs, or None."""
        return next((row for row in self.rows if row.differs), None)

    @property
    def unseen(self) -> list[str]:
        """What the other recording lacks between the last tensor that agrees and the first that
        differs, in order: the fault may be in these, too."""
        names = []
        for row in self.rows[: self.rows.index(self.first)] if self.first else []:
            names = [*names, row.name] if row.verdict == "missing" else []
        return names

    @property
    def equal(self) -> bool:
        """Whether all that both have is within the tolerance and nothing contradicts itself."""
        return self.first is None and not self.contradictions

    def to_json(self) -> dict:
        """A dict for `json.dumps`."""
        return {
            "equal": self.equal,
            "compared": len(self.compared),
            "not_compared": [row.name for row in self.not_compared],
            "dtype": self.dtype,
            "tolerance": TOLERANCES[self.dtype],
            "tolerance_of_largest": LARGEST * TOLERANCES[self.dtype],
            "first": self.first.name if self.first else None,
            "unseen": self.unseen,
            "hint": hint(self.first) if self.first else None,
            "contradictions": self.contradictions,
            "notes": self.notes,
            "near_ties": self.near_ties,
            "rows": [asdict(row) for row in self.rows],
        }


def compare(a: tuple[dict, dict], b: tuple[dict, dict], dtype: str | None = None) -> Comparison:
    """Every tensor of two recordings, in the order of computation.

    A tensor is equal if √mean((b - a)²) ≤ t · spread(a) and max|b - a| ≤ LARGEST · t · spread(a),
    with t = TOLERANCES[dtype]. Another shape, NaN and Inf are differences. What only one recording
    has is not compared, and named.

    a, b   : the reference and the other, each (taps, manifest) as `read_recording` returns it;
             taps may have TransformerLens's names
    dtype  : a key of TOLERANCES; None: the less precise of the two that the recordings show
    raises : ValueError if the recordings are not of the same token ids, or have no tensor in common
    """
    (reference, about_a), (other, about_b) = a, b
    if about_a["ids"] != about_b["ids"]:
        raise ValueError(
            "The two recordings are of different token ids, so their tensors have nothing in "
            "common; record both with the same --ids."
        )
    if dtype is not None and dtype not in TOLERANCES:
        raise ValueError(f"There is no tolerance for {dtype!r}; it is one of {list(TOLERANCES)}.")
    reference, other = with_our_names(reference), with_our_names(other)
    if not set(reference) & set(other):
        raise ValueError(
            f"The two recordings have no tensor in common ({some(list(reference))} in the "
            f"reference, {some(list(other))} in the other), so there is nothing to compare."
        )
    dtype_a, notes_a = dtype_of(reference, about_a, "the reference")
    dtype_b, notes_b = dtype_of(other, about_b, "the other recording")
    dtype = dtype or max(dtype_a, dtype_b, key=TOLERANCES.get)
    masks = masks_of(about_a, about_b)
    rows = [row_of(name, reference, other, TOLERANCES[dtype], masks) for name in reference] + [
        Row(name, "extra", TOLERANCES[dtype], detail="only the other recording has it")
        for name in other
        if name not in reference
    ]
    near_ties = []
    if "logits" in reference and "logits" in other:
        near_ties = different_choices(reference["logits"], other["logits"])
    notes = notes_a + notes_b + different_conditions(about_a, about_b)
    return Comparison(rows, dtype, contradictions(about_a, about_b, masks), notes, near_ties)


def first_difference(a: tuple[dict, dict], b: tuple[dict, dict], dtype=None) -> Row | None:
    """The Row of the first tensor in which two recordings differ, or None; see `compare`."""
    return compare(a, b, dtype).first


def row_of(name, reference, other, tolerance, masks):
    """The Row of one tensor of the reference; for the arguments see `compare` and `masks_of`."""
    if name not in other:
        return Row(name, "missing", tolerance, detail="the other recording lacks it")
    counts = scores_that_count(name, reference, other, masks)
    return compared_row(name, reference[name], other[name], tolerance, counts)


def dtype_of(taps, manifest, who):
    """The dtype that a recording's numbers show, and a note if its manifest says another."""
    claimed = manifest["compute_dtype"]
    floats = {name: tensor for name, tensor in taps.items() if is_floats(tensor)}
    shown = shown_dtype(floats, claimed)
    if shown == claimed:
        return shown, []
    return shown, [
        f"The manifest of {who} says {claimed}, and most of its numbers are none that {claimed} "
        f"has: they are compared as {shown}, unless you say --dtype {claimed}."
    ]


def masks_of(about_a, about_b):
    """Where each of two manifests lets tokens look: two bool (T, T).

    What one manifest does not say is what the other says.
    """
    T, masks = len(about_a["ids"]), []
    for one, another in ((about_a, about_b), (about_b, about_a)):
        causal = one.get("causal", another.get("causal", True))
        window = one.get("window", another.get("window"))
        everything = np.ones((T, T), dtype=np.bool_)
        masks.append(visible(0, T, T, window) if causal else everything)
    return masks


def scores_that_count(name, reference, other, masks):
    """Which numbers of attn.scores are compared, bool (H, T, S); None for all, or another tensor.

    Scores of tokens that are not looked at change nothing, and engines need not compute them. That
    a token is not looked at is believed if both manifests say so and the attention pattern is 0
    there; where no pattern was recorded, if either engine masked the score.
    """
    scores = reference[name]
    if short_name(name) != "attn.scores" or scores.shape != other[name].shape:
        return None
    if scores.shape[1:] != masks[0].shape:
        return None
    hidden = np.broadcast_to(~(masks[0] | masks[1]), scores.shape)
    pattern_name = name.replace("attn.scores", "attn.pattern")
    for taps in (reference, other):
        pattern = taps.get(pattern_name)
        if pattern is not None and pattern.shape == scores.shape:
            return ~(hidden & (pattern == 0))
    return ~(hidden & ((scores < MASKED) | (other[name] < MASKED)))


def top_two_margins(logits):
    """How far the likeliest token is ahead of the second: (..., V) -> (...)."""
    second, first = np.moveaxis(np.partition(logits, -2, axis=-1)[..., -2:], -1, 0)
    return first - second


def different_choices(a, b):
    """The positions at which two recordings' likeliest tokens differ, each as a dict.

    a, b : (T, V) logits; none are reported if they have other shapes or a number is not finite
    """
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) == 0 or a.shape[1] < 2:
        return []
    if not (is_floats(a) and is_floats(b) and np.isfinite(a).all() and np.isfinite(b).all()):
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


def contradictions(a, b, masks):
    """What two manifests cannot both mean of one computation: sentences, none if all is well."""
    if np.array_equal(*masks):
        return []
    causal, window = ([about.get(key) for about in (a, b)] for key in ("causal", "window"))
    return [
        "By their manifests the recordings are of models whose tokens look at other tokens: causal "
        f"{causal[0]!r} and {causal[1]!r}, window {window[0]!r} and {window[1]!r}."
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
            f"The rotary layouts differ: {a['rotary_layout']!r} and {b['rotary_layout']!r}; q and "
            "k may hold the same numbers in another order."
        )
    for key in ("causal", "window", "embedding_scale", "norm_plus_one", "rotary_width"):
        if key in a and key in b and a[key] != b[key]:
            notes.append(f"The manifests' {key} differ: {a[key]!r} and {b[key]!r}.")
    return notes


def some(names):
    """The first names of a list, for a sentence."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") or "nothing"


def print_comparison(comparison, show_all=False):
    """The comparison for people: a table, then the first tensor that differs and where to look."""
    from tinyflash import terminal

    lines = []
    for row in comparison.rows:
        if show_all or row.differs:
            numbers = (row.max_abs, row.spread, row.relative, row.rms)
            texts = ["" if number is None else f"{number:.3g}" for number in numbers]
            lines.append((row.name, *texts, row.detail or row.verdict))
    if lines:
        header = ("tensor", "max |difference|", "spread", "relative", "rms", "verdict")
        terminal.table(tolerance_text(comparison.dtype), header, lines)
    for sentence in comparison.contradictions + comparison.notes:
        terminal.say(sentence)
    for tie in comparison.near_ties:
        terminal.say(
            f"Position {tie['position']}: token {tie['reference_token']} (ahead by "
            f"{tie['reference_margin']:.3g}) became {tie['other_token']} (ahead by "
            f"{tie['other_margin']:.3g}); each is "
            f"{'' if tie['in_each_others_top_5'] else 'not '}in the other's top 5."
        )
    terminal.say(verdict_text(comparison))


def tolerance_text(dtype):
    """The tolerance of a dtype, for a title."""
    t = TOLERANCES[dtype]
    return f"{dtype}: rms ≤ {t:g}, largest ≤ {LARGEST * t:g} of the reference's spread"


def verdict_text(comparison):
    """What a comparison comes to: how many tensors were compared, and how far they may differ."""
    number, left_out = len(comparison.compared), comparison.not_compared
    if comparison.equal:
        all_of_them = "" if left_out else "all "
        tensors = "1 tensor agrees" if number == 1 else f"{all_of_them}{number} tensors agree"
        text = f"Equal: {tensors} ({tolerance_text(comparison.dtype)})."
    elif comparison.first is None:
        text = f"The {number} tensors agree, and their manifests do not."
    else:
        wrong = sum(row.differs for row in comparison.rows)
        text = f"{wrong} of {number} tensors differ, first {comparison.first.name}.\n"
        text += hint(comparison.first)
        if comparison.unseen:
            text += f"\nOr in what leads to it, and is not in the other: {some(comparison.unseen)}."
    if left_out:
        names = some([row.name for row in left_out])
        text += f"\nNot compared, for only one recording has them: {len(left_out)} ({names})."
    return text
