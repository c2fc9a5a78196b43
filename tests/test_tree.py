"""Beams packed into a prefix tree: against brute force, and what the tree says of itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyflash.ops import softmax
from tinyflash.speculative.ngram import PromptLookup
from tinyflash.speculative.tree import Tree, chain, pack, pack_slowly, tokens_saved

NO_PREFIX = [[7, 1, 3, 4], [7, 2, 3, 4], [7, 1, 3, 5]]  # 3 and 4 follow different beginnings


@st.composite
def beams(draw_from):
    """W beams of N tokens with one root; few words, so that beams share and repeat."""
    W, N = draw_from(st.integers(1, 9)), draw_from(st.integers(1, 6))
    row = st.lists(st.integers(0, 2), min_size=N - 1, max_size=N - 1)
    rows = draw_from(st.lists(row, min_size=W, max_size=W))
    return np.array([[5, *row] for row in rows], dtype=np.int64)


def beginnings(beams):
    """Every distinct beginning of the beams, the first met first: the tree by brute force."""
    found = []
    for beam in beams.tolist():
        for end in range(1, len(beam) + 1):
            if beam[:end] not in found:
                found.append(beam[:end])
    return found


@given(beams())
def test_packing_is_what_brute_force_expands(beams):
    tree, unpacker = pack(beams)
    found = beginnings(beams)
    assert [tree.tokens[tree.path(node)].tolist() for node in range(len(tree))] == found
    assert tree.depths.tolist() == [len(beginning) - 1 for beginning in found]
    for a, ours in enumerate(found):  # each sees exactly the beginnings of its own beginning
        for b, theirs in enumerate(found):
            assert tree.ancestors[a, b] == (ours[: len(theirs)] == theirs)
    for beam, nodes in zip(beams.tolist(), unpacker.tolist(), strict=True):
        assert [found[node] for node in nodes] == [beam[: end + 1] for end in range(len(beam))]
    assert (tree.tokens.tolist(), tree.parents.tolist(), unpacker.tolist()) == pack_slowly(
        beams.tolist()
    )
    assert tokens_saved(tree, unpacker) == 1 - len(found) / beams.size


@given(beams())
def test_beams_that_occur_twice_change_nothing(beams):
    tree, unpacker = pack(beams)
    twice, both = pack(np.concatenate([beams, beams[::-1]]))
    assert twice.tokens.tolist() == tree.tokens.tolist()
    assert twice.parents.tolist() == tree.parents.tolist()
    assert both.tolist() == [*unpacker.tolist(), *unpacker[::-1].tolist()]


@given(beams(), st.integers(0, 6))
def test_a_tree_cut_is_the_tree_of_shorter_beams(beams, depth):
    W, N = beams.shape
    log_probs = np.arange(W * N, dtype=np.float32).reshape(W, N)
    tree, cut = pack(beams, log_probs)[0].cut(depth), pack(beams[:, : depth + 1])[0]
    # The same nodes, those of the long beams in the order of the long beams.
    assert sorted(tree.tokens[tree.path(i)].tolist() for i in range(len(tree))) == sorted(
        cut.tokens[cut.path(i)].tolist() for i in range(len(cut))
    )
    assert len(tree.log_probs) == len(tree)


@given(beams())
def test_children_are_parents_the_other_way_round(beams):
    tree, _ = pack(beams)
    for node, children in enumerate(tree.children):
        assert children == np.flatnonzero(tree.parents == node).tolist()


def attend(x, visible):
    """Attention of one head in which keys, queries and values are x itself."""
    return softmax(np.where(visible, x @ x.T, -np.inf)) @ x


def test_attention_over_the_tree_is_attention_over_each_beam():
    rng = np.random.default_rng(0)
    beams = np.concatenate([np.full((12, 1), 3), rng.integers(0, 3, (12, 5))], axis=1)
    beams[4] = beams[9]
    embeddings, positions = rng.standard_normal((5, 8)), rng.standard_normal((20, 8))
    past = rng.standard_normal((7, 8))
    tree, unpacker = pack(beams)
    assert len(tree) < beams.size
    x = np.concatenate([past, embeddings[tree.tokens] + positions[7 + tree.depths]])
    visible = np.concatenate([np.ones((len(tree), 7), dtype=bool), tree.ancestors], axis=1)
    visible = np.concatenate([np.tri(7, 7 + len(tree), dtype=bool), visible])
    packed = attend(x, visible)[7:][unpacker]  # (W, N, 8)
    for beam, theirs in zip(beams, packed, strict=True):
        x = np.concatenate([past, embeddings[beam] + positions[7 : 7 + len(beam)]])
        np.testing.assert_allclose(attend(x, np.tri(len(x), dtype=bool))[7:], theirs, rtol=1e-12)


def test_tokens_alone_do_not_make_a_node():
    tree, unpacker = pack(NO_PREFIX)
    assert tree.tokens.tolist() == [7, 1, 3, 4, 2, 3, 4, 5]
    assert tree.parents.tolist() == [-1, 0, 1, 2, 0, 4, 5, 2]
    assert unpacker.tolist() == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 1, 2, 7]]


def test_a_planted_fault_in_packing_is_caught(monkeypatch):
    """Without the accumulation, tokens match where their beginnings differ."""

    class Forgetful:
        accumulate = staticmethod(lambda equal, axis: equal)

    monkeypatch.setattr(np, "logical_and", Forgetful)
    tree, unpacker = pack(NO_PREFIX)
    assert (tree.tokens.tolist(), tree.parents.tolist(), unpacker.tolist()) != pack_slowly(
        NO_PREFIX
    )


def test_a_chain_is_a_tree():
    tree = chain([4, 4, 2], log_probs=np.zeros(3, dtype=np.float32))
    packed, _ = pack([[4, 4, 2]])
    assert tree.parents.tolist() == packed.parents.tolist() == [-1, 0, 1]
    assert tree.depths.tolist() == [0, 1, 2] and tree.children == [[1], [2], []]
    assert np.array_equal(tree.ancestors, np.tri(3, dtype=bool))
    assert tree.cut(1).tokens.tolist() == [4, 4] and tree.cut(0).children == [[]]
    assert len(chain([9])) == 1


def test_log_probs_follow_their_tokens():
    tree, unpacker = pack(NO_PREFIX, np.array([[0, 1, 2, 3], [0, 4, 5, 6], [0, 1, 2, 7]]) / -8)
    assert tree.log_probs.tolist() == [0, -1 / 8, -2 / 8, -3 / 8, -4 / 8, -5 / 8, -6 / 8, -7 / 8]
    assert np.array_equal(tree.tokens[unpacker], NO_PREFIX)


@pytest.mark.parametrize("wrong", [[], [[]], [1, 2], [[1, 2], [3, 2]]])
def test_what_are_no_beams(wrong):
    with pytest.raises(ValueError, match="[Bb]eams"):
        pack(wrong)


@pytest.mark.parametrize(
    "tokens, parents",
    [([], []), ([1], [0]), ([1, 2], [-1]), ([1, 2], [-1, -1]), ([1, 2, 3], [-1, 2, 0])],
)
def test_what_is_no_tree(tokens, parents):
    with pytest.raises(ValueError, match="tree"):
        Tree(np.array(tokens, dtype=np.int64), np.array(parents, dtype=np.int64))


def test_rows_that_are_not_the_trees():
    with pytest.raises(ValueError, match="3 tokens has 2 rows"):
        chain([1, 2, 3], drawn_from=np.ones((2, 4)))


# Prompt lookup: the drafter that copies.


@pytest.mark.parametrize(
    "ids, drafted",
    [
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3]),  # three tokens found again
        ([5, 3, 8, 9, 4, 3, 8], [9, 4, 3, 8]),  # two
        ([3, 6, 4, 3, 7, 2, 3], [7, 2, 3, 7]),  # one: the most recent, and on into itself
        ([1, 2, 1, 2], [1, 2, 1, 2]),
        ([7, 7], [7, 7, 7, 7]),
        ([1, 2, 3], []),  # new
        ([4], []),
    ],
)
def test_prompt_lookup_copies_what_followed(ids, drafted):
    tree = PromptLookup(longest=3, length=4).propose(ids)
    assert tree.tokens.tolist() == [ids[-1], *drafted]
    assert tree.parents.tolist() == list(range(-1, len(drafted)))


def test_the_longest_match_wins_over_a_later_one():
    ids = [1, 2, 3, 5, 5, 9, 3, 6, 1, 2, 3]
    assert PromptLookup(longest=3, length=2).propose(ids).tokens.tolist() == [3, 5, 5]
    assert PromptLookup(longest=1, length=2).propose(ids).tokens.tolist() == [3, 6, 1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 6))
def test_what_prompt_lookup_copies_stands_in_the_text(ids, longest, length):
    drafted = PromptLookup(longest, length).propose(ids).tokens.tolist()[1:]
    assert len(drafted) == (length if ids[-1] in ids[:-1] else 0)
    text, last = [*ids, *drafted], len(ids) - 1
    copies = [
        start
        for start in range(last)
        if text[start] == ids[-1] and text[start + 1 : start + 1 + len(drafted)] == drafted
    ]
    assert copies or not drafted


@pytest.mark.parametrize("settings", [{"longest": 0}, {"length": 0}, {"length": -3}])
def test_prompt_lookup_of_nothing(settings):
    with pytest.raises(ValueError, match="at least 1"):
        PromptLookup(**settings)
