"""Verification is exact: greedy token for token, sampling in distribution; biased rules fail."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyflash.sampling import distribution, draw
from tinyflash.speculative.ngram import PromptLookup
from tinyflash.speculative.tree import Tree, chain, pack
from tinyflash.speculative.verify import drawn, released_rule, verify

DRAWS = 200_000


class RandomModel:
    """A language model without structure: a random law after every text, always the same one.

    Texts stand in for logits: `rows` gives a text for each node of a tree, `choose` its law.
    """

    def __init__(self, vocabulary, seed=0, spread=1.5, **sampling):
        self.vocabulary, self.seed, self.spread, self.sampling = vocabulary, seed, spread, sampling
        self.laws = {}

    def logits(self, text):
        rng = np.random.default_rng([self.seed, len(text), *text])
        return (rng.standard_normal(self.vocabulary) * self.spread).astype(np.float32)

    def choose(self, text, step=()):  # a text says all that was said before it
        if text not in self.laws:
            self.laws[text] = distribution(self.logits(text), **self.sampling)
        return self.laws[text]

    def rows(self, text, tree):
        """A key for each node: the text (without the root) and the tokens down to the node."""
        return [(*text[:-1], *tree.tokens[tree.path(node)].tolist()) for node in range(len(tree))]

    def joint(self, text, count):
        """Probability of every continuation of `count` tokens: dict tuple -> float."""
        if count == 0:
            return {(): 1.0}
        p = self.choose(text)
        return {
            (token, *rest): float(p[token]) * probability
            for token in range(self.vocabulary)
            for rest, probability in self.joint((*text, token), count - 1).items()
        }


def differ(counts, law):
    """How far counts are from a law: (z, total variation), z about standard normal if not at all.

    z is Pearson's chi-square through Wilson and Hilferty's cube root; cells that expect fewer
    than five draws are joined.

    counts : Counter of outcomes;  law : dict outcome -> probability
    """
    n = sum(counts.values())
    assert counts.keys() <= law.keys()
    if any(counts[outcome] for outcome, p in law.items() if p == 0):
        return math.inf, 1.0
    large = [(counts[outcome], n * p) for outcome, p in law.items() if n * p >= 5]
    seen, expected = sum(c for c, _ in large), sum(e for _, e in large)
    if n - expected >= 5:
        large.append((n - seen, n - expected))
    variation = 0.5 * sum(abs(counts[outcome] / n - p) for outcome, p in law.items())
    freedom = len(large) - 1
    if freedom == 0:
        return 0.0, variation
    chi_square = sum((c - e) ** 2 / e for c, e in large)
    share = 2 / (9 * freedom)
    return ((chi_square / freedom) ** (1 / 3) - (1 - share)) / math.sqrt(share), variation


def assert_same_law(counts, law):
    z, variation = differ(counts, law)
    assert z < 4 and variation < 0.01, (z, variation)


def assert_another_law(counts, law):
    z, variation = differ(counts, law)
    assert z > 10 and variation > 0.02, (z, variation)


class Row:
    """A random generator that gives out the numbers of one row."""

    def __init__(self, numbers):
        self.random = iter(numbers.tolist()).__next__


def verify_many(tree, laws, uniforms):
    """What `verify` says to each row of random numbers: the same walk for 10⁵ draws at once.

    laws   : the model's law after each node;  uniforms : (B, K)
    returns: int (B, depth + 1), the tokens of each step, -1 behind its last
    """
    B = len(uniforms)
    said = np.full((B, int(tree.depths.max()) + 1), -1)
    node, used = np.zeros(B, dtype=np.int64), np.zeros(B, dtype=np.int64)

    def take(who):
        used[who] += 1
        return uniforms[who, used[who] - 1]

    for depth in range(said.shape[1]):
        for here in np.unique(node[node >= 0]).tolist():
            undecided, p = np.flatnonzero(node == here), laws[here]
            node[undecided] = -1
            everyone = undecided
            for child in tree.children[here] if tree.drawn_from is not None else []:
                token, q = tree.tokens[child], tree.drawn_from[child]
                accepted = take(undecided) * q[token] < p[token]
                said[undecided[accepted], depth] = token
                undecided, left = undecided[~accepted], np.maximum(p - q, 0)
                p = left / np.sum(left) if np.sum(left) > 0 else p
            cumulated = np.cumsum(p)
            found = np.searchsorted(cumulated, take(undecided) * cumulated[-1], side="right")
            said[undecided, depth] = found
            for child in reversed(tree.children[here]):  # the first of twins has the last word
                node[everyone[said[everyone, depth] == tree.tokens[child]]] = child
        # A node that was reached is one level deeper, and is looked at in the next turn.
    return said


def counted(said, length):
    """Counter of the first `length` tokens of each row."""
    rows, counts = np.unique(said[:, :length], axis=0, return_counts=True)
    return Counter(dict(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True)))


def as_law(p):
    return {(token,): float(probability) for token, probability in enumerate(p)}


# p, the model's law, and q, the drafter's.
LAWS = {
    "p is q": ([0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]),
    "disjoint": ([0.6, 0.4, 0, 0], [0, 0, 0.5, 0.5]),
    "q one-hot": ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 0]),
    "p one-hot": ([0, 1, 0, 0], [0.4, 0.2, 0.2, 0.2]),
    "p peaked": ([0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]),
    "q peaked": ([0.3, 0.3, 0.2, 0.2], [0.002, 0.002, 0.002, 0.994]),
}
LAWS = {name: tuple(np.array(law, dtype=np.float64) for law in pair) for name, pair in LAWS.items()}


def first_tokens(p, q, draws, seed=1):
    """Counts of the first token of a step that proposes one token drawn from q."""
    rng, counts = np.random.default_rng(seed), Counter()
    for drafted, times in enumerate(rng.multinomial(draws, q)):
        if times:
            tree = chain([0, drafted], drawn_from=np.stack([q, q]))
            counts += counted(verify_many(tree, [p, p], rng.random((times, 3))), 1)
    return counts


@pytest.mark.parametrize("p, q", LAWS.values(), ids=LAWS)
def test_the_first_token_has_the_models_law(p, q):
    assert_same_law(first_tokens(p, q, DRAWS), as_law(p))


@pytest.mark.parametrize("name", ["disjoint", "q one-hot", "p peaked", "q peaked"])
def test_always_accepting_fails_the_same_test(name):
    p, q = LAWS[name]
    drafted = np.random.default_rng(1).multinomial(DRAWS, q)
    assert_another_law(Counter({(token,): n for token, n in enumerate(drafted)}), as_law(p))


def test_drafts_are_accepted_as_often_as_can_be():
    """Σ min(p, q) of the drafts (2211.17192, §3.1): the coupling is the best there is."""
    for name, (p, q) in LAWS.items():
        rng, accepted = np.random.default_rng(2), 0
        for drafted, times in enumerate(rng.multinomial(DRAWS, q)):
            if times:
                tree = chain([0, drafted], drawn_from=np.stack([q, q]))
                said = verify_many(tree, [p, p], rng.random((times, 3)))
                accepted += int(np.sum(said[:, 1] >= 0))  # the step went on behind the draft
        assert abs(accepted / DRAWS - np.minimum(p, q).sum()) < 0.01, name


LOGITS = np.array([1.2, -0.3, 0.9, 0.1, -1.5, 0.6], dtype=np.float32)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.7, "top_k": 3},
        {"temperature": 0.5, "top_p": 0.7},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.8},
    ],
    ids=str,
)
def test_p_is_what_temperature_top_k_and_top_p_leave(sampling):
    p = distribution(LOGITS, **sampling)
    q = distribution(-LOGITS / 2)  # drafts what is cut off, too
    assert np.count_nonzero(p) < len(p)
    assert_same_law(first_tokens(p, q, DRAWS), as_law(p))
    for drafted in range(len(p)):  # and `verify` takes its p from the logits so
        tree = chain([0, drafted], drawn_from=np.stack([q, q]))
        for row in np.random.default_rng(drafted).random((100, 3)):
            verdict = verify(
                tree, [LOGITS, LOGITS], lambda row, step: distribution(row, **sampling), Row(row)
            )
            said = verify_many(tree, [p, p], row[None])[0]
            assert verdict.tokens == [token for token in said.tolist() if token >= 0]


# Whole steps: every token of a step, and steps one after another.


def texts(model, propose, length, draws, seed=3):
    """Counts of the first `length` tokens that steps of speculation add to the text (0,).

    All draws that have come to the same text take their next step together.
    """
    rng, done = np.random.default_rng(seed), Counter()
    waiting = Counter({(0,): draws})
    while waiting:
        text = min(waiting, key=len)
        for tree, times in propose(text, waiting.pop(text), rng):
            laws = [model.choose(row) for row in model.rows(text, tree)]
            numbers = rng.random((times, 2 * len(tree)))
            for tokens, count in counted(verify_many(tree, laws, numbers), None).items():
                longer = (*text, *(token for token in tokens if token >= 0))
                if len(longer) > length:
                    done[longer[1 : length + 1]] += count
                else:
                    waiting[longer] += count
    return done


class Beams:
    """A drafter without chance: W beams of N tokens of its own, some of them twice."""

    def __init__(self, vocabulary, width=5, length=4, seed=0):
        self.vocabulary, self.width, self.length, self.seed = vocabulary, width, length, seed

    def tree(self, text):
        own = np.random.default_rng([self.seed, len(text), *text])
        beams = own.integers(0, self.vocabulary, (self.width, self.length))
        beams[:, 0], beams[-1] = text[-1], beams[0]
        return pack(beams)[0]

    def __call__(self, text, times, rng):
        return [(self.tree(text), times)]


class Sampled:
    """A smaller model that draws each token of a tree from its own distribution, after those above.


    Siblings are drawn independently, and may be the same token.
    """

    def __init__(self, draft_model, parents):
        self.draft_model, self.parents = draft_model, np.array(parents, dtype=np.int64)

    def __call__(self, text, times, rng):
        """(tree, how many of `times` draft it) for every tree that can be drawn."""
        ways = [([text], [], 1.0)]  # texts down to each node, laws, probability of all
        for parent in self.parents[1:]:
            ways = [
                ([*nodes, (*nodes[parent], token)], [*laws, law], probability * law[token])
                for nodes, laws, probability in ways
                for law in [self.draft_model.choose(nodes[parent])]
                for token in np.flatnonzero(law).tolist()
            ]
        shares = np.array([probability for _, _, probability in ways], dtype=np.float64)
        for (nodes, laws, _), count in zip(
            ways, rng.multinomial(times, shares / shares.sum()).tolist(), strict=True
        ):
            if count:
                tokens = np.array([node[-1] for node in nodes], dtype=np.int64)
                yield Tree(tokens, self.parents, drawn_from=np.stack([laws[0], *laws])), count


MODEL = RandomModel(3, seed=1)
DRAFTER = RandomModel(3, seed=2)
SHARP = RandomModel(4, seed=1, temperature=0.8, top_k=3)
PROPOSALS = {
    "beams": (MODEL, Beams(3)),
    "chain": (SHARP, Sampled(RandomModel(4, seed=2, temperature=0.7), [-1, 0, 1])),
    "sampled tree": (MODEL, Sampled(DRAFTER, [-1, 0, 0, 1, 2])),
}


@pytest.mark.parametrize("name", PROPOSALS)
def test_three_tokens_have_the_joint_law_of_plain_sampling(name):
    model, propose = PROPOSALS[name]
    assert_same_law(texts(model, propose, 3, DRAWS), model.joint((0,), 3))


@pytest.mark.parametrize("name", [*PROPOSALS, *LAWS])
def test_many_draws_at_once_say_what_verify_says_one_by_one(name):
    if name in LAWS:
        (p, q), rng = LAWS[name], np.random.default_rng(0)
        drafts = [draw(q, rng) for _ in range(20)]
        cases = [(chain([0, token], drawn_from=np.stack([q, q])), [p, p]) for token in drafts]
    else:
        model, propose = PROPOSALS[name]
        trees = [tree for tree, _ in propose((0,), 200, np.random.default_rng(0))]
        cases = [(tree, [model.choose(row) for row in model.rows((0,), tree)]) for tree in trees]
    for tree, laws in cases:
        numbers = np.random.default_rng(1).random((1 + 1000 // len(cases), 2 * len(tree)))
        for row, said in zip(numbers, verify_many(tree, laws, numbers), strict=True):
            verdict = verify(tree, laws, lambda p, step: p, Row(row))
            assert verdict.tokens == [token for token in said.tolist() if token >= 0]


def test_a_second_draft_of_the_same_law_helps():
    """p = (.5, .3, .2), q uniform: 1/3 + .3 + .2 is accepted at first, and 1/3 of the rest then."""
    p, q = np.array([0.5, 0.3, 0.2]), np.full(3, 1 / 3)
    rng, accepted = np.random.default_rng(5), 0
    for x, y in itertools.product(range(3), repeat=2):
        tree = Tree(np.array([0, x, y]), np.array([-1, 0, 0]), drawn_from=np.stack([q, q, q]))
        accepted += np.sum(verify_many(tree, [p, p, p], rng.random((DRAWS // 9, 6)))[:, 1] >= 0)
    assert accepted / (DRAWS // 9 * 9) == pytest.approx(5 / 6 + 1 / 6 / 3, abs=0.005)


def test_a_forgotten_residual_fails_the_same_test():
    """A planted fault: after a rejected draft, draw from p instead of max(p - q, 0)."""
    rng = np.random.default_rng(1)
    p, q = MODEL.choose((0,)), DRAFTER.choose((0,))
    drafted = rng.choice(3, DRAWS, p=q)
    accepted = rng.random(DRAWS) * q[drafted] < p[drafted]
    said = np.where(accepted, drafted, rng.choice(3, DRAWS, p=p))
    assert_another_law(counted(said[:, None], 1), as_law(p))
    assert_same_law(first_tokens(p, q, DRAWS), as_law(p))


def test_the_released_rule_fails_the_same_test():
    """Beams by beam search, u < p / q for each token of each, the longest: not the model's law."""
    model, drafter = MODEL, DRAFTER
    beams = np.array([(0, *tokens) for tokens in best_of(drafter, 2)[:3]])
    ways = [[tuple(beam[: end + 1]) for end in range(3)] for beam in beams.tolist()]
    p = np.array([[model.choose(way) for way in beam] for beam in ways])
    q = np.array([[drafter.choose(way) for way in beam[:-1]] for beam in ways])
    rng, counts = np.random.default_rng(6), Counter()
    for uniforms in rng.random((DRAWS // 10, 3, 2)):
        accepted, beam, law = released_rule(beams, p, q, uniforms)
        tokens = (*beams[beam, 1 : accepted + 1].tolist(), draw(law, rng))
        counts[tokens[:1]] += 1
    assert_another_law(counts, model.joint((0,), 1))
    # The same beams as a tree, verified by the exact rule.
    tree, _ = pack(beams)
    assert_same_law(
        texts(model, lambda text, times, rng: [(tree, times)], 1, DRAWS), model.joint((0,), 1)
    )


def best_of(model, count):
    """Continuations of (0,), the likeliest first: what a wide enough beam search finds."""
    joint = model.joint((0,), count)
    return sorted(joint, key=joint.get, reverse=True)


# A drafter without chance changes not even the random numbers.


def plainly(model, count, rng, ends=()):
    text = (0,)
    while len(text) <= count and text[-1] not in ends:
        text += (draw(model.choose(text), rng),)
    return list(text[1:])


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6, "top_p": 0.8}], ids=str)
def test_with_one_seed_speculation_says_what_plain_sampling_says(seed, sampling):
    model, propose = RandomModel(4, seed=seed, **sampling), Beams(4, seed=seed)
    rng, text = np.random.default_rng(seed), (0,)
    steps = 0
    while len(text) <= 30:
        tree = propose.tree(text)
        text += tuple(verify(tree, model.rows(text, tree), model.choose, rng).tokens)
        steps += 1
    assert list(text[1:31]) == plainly(model, 30, np.random.default_rng(seed))
    assert steps < 30


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 1000))
def test_prompt_lookup_says_what_plain_sampling_says(beginning, seed):
    model = RandomModel(4, seed=seed)
    rng, text = np.random.default_rng(seed), (0, *beginning)
    tree = PromptLookup(longest=2, length=4).propose(text)
    verdict = verify(tree, model.rows(text, tree), model.choose, rng)
    rng = np.random.default_rng(seed)
    for token in verdict.tokens:
        assert token == draw(model.choose(text), rng)
        text += (token,)


# Greedy.


@st.composite
def trees(draw_from):
    """Any tree of up to nine nodes over three words, siblings of one word included."""
    n = draw_from(st.integers(1, 9))
    parents = [-1, *(draw_from(st.integers(0, node - 1)) for node in range(1, n))]
    tokens = [0, *(draw_from(st.integers(0, 2)) for _ in range(n - 1))]
    return Tree(np.array(tokens, dtype=np.int64), np.array(parents, dtype=np.int64))


def is_in(tree, text):
    """Whether some path of the tree bears exactly this text."""
    return any(tree.tokens[tree.path(node)].tolist() == list(text) for node in range(len(tree)))


@settings(max_examples=200)
@given(trees(), st.integers(0, 10_000))
def test_greedy_takes_what_greedy_decoding_says_and_no_less(tree, seed):
    model = RandomModel(3, seed=seed, temperature=0)
    verdict = verify(tree, model.rows((0,), tree), model.choose, np.random.default_rng(0))
    greedy = plainly(model, len(verdict.tokens), np.random.default_rng(1))
    assert verdict.tokens == greedy and verdict.token == greedy[-1]
    assert tree.tokens[verdict.path].tolist() == [0, *greedy[:-1]]
    assert [tree.parents[node] for node in verdict.path] == [-1, *verdict.path[:-1]]
    first = verdict.path  # of twins the walk takes the first, whose children are its own
    assert not any(tree.tokens[child] == verdict.token for child in tree.children[first[-1]])


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5))
def test_greedy_over_beams_takes_the_longest(seed, width, length):
    model = RandomModel(2, seed=seed, temperature=0)
    beams = np.random.default_rng(seed).integers(0, 2, (width, length))
    beams[:, 0] = 0
    tree, _ = pack(beams)
    verdict = verify(tree, model.rows((0,), tree), model.choose, np.random.default_rng(0))
    greedy = plainly(model, length, np.random.default_rng(0))
    agreed = [
        next((i for i in range(length - 1) if beam[i + 1] != greedy[i]), length - 1)
        for beam in beams
    ]
    assert len(verdict.path) - 1 == max(agreed)


def test_greedy_with_drafts_that_were_drawn_is_greedy():
    model = RandomModel(3, seed=7, temperature=0)
    rng = np.random.default_rng(0)
    for tree, _ in Sampled(DRAFTER, [-1, 0, 0, 1, 1])((0,), 300, rng):
        verdict = verify(tree, model.rows((0,), tree), model.choose, rng)
        assert verdict.tokens == plainly(model, len(verdict.tokens), rng)


# The end of the text.


def test_nothing_stands_behind_the_end_of_the_text():
    model = RandomModel(3, seed=11)
    ended = 0
    for seed in range(300):
        propose, text = Beams(3, seed=seed), (0,)
        rng = np.random.default_rng(seed)
        while len(text) <= 8 and text[-1] != 2:
            tree = propose.tree(text)
            verdict = verify(tree, model.rows(text, tree), model.choose, rng, ends=(2,))
            assert 2 not in tree.tokens[verdict.path[1:]]  # the cache keeps nothing of it
            assert verdict.tokens == [*tree.tokens[verdict.path[1:]], verdict.token]
            text += tuple(verdict.tokens)
        assert list(text[1:9]) == plainly(model, 8, np.random.default_rng(seed), ends=(2,))
        ended += 2 in text[:-1] or text[-1] == 2
    assert ended > 200


def test_the_root_alone_is_plain_decoding():
    model = RandomModel(5)
    verdict = verify(chain([0]), [(0,)], model.choose, np.random.default_rng(3))
    token = draw(model.choose((0,)), np.random.default_rng(3))
    assert (verdict.path, verdict.token, verdict.tokens) == ([0], token, [token])


# Bad input, and rounding.


def as_they_are(logits, step):
    return distribution(logits)


def test_logits_of_another_tree():
    with pytest.raises(ValueError, match="tree of 3 tokens was verified with 2 logits"):
        verify(chain([0, 1, 2]), np.zeros((2, 4)), as_they_are, np.random.default_rng(0))


def test_a_law_of_another_vocabulary():
    tree = chain([0, 1], drawn_from=np.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="drafter knows 3 tokens and the model 4"):
        verify(tree, np.zeros((2, 4), dtype=np.float32), as_they_are, np.random.default_rng(0))


def test_a_draft_that_its_own_law_forbids():
    tree = chain([0, 1], drawn_from=np.array([[1, 0, 0], [1, 0, 0]], dtype=np.float64))
    with pytest.raises(ValueError, match="proposed token 1, to which its own distribution"):
        verify(tree, np.zeros((2, 3), dtype=np.float32), as_they_are, np.random.default_rng(0))


def test_laws_that_differ_by_rounding_leave_no_residual_of_nothing():
    class Last:
        def random(self):
            return 1 - 2**-53

    p = np.array([0.5, 0.5], dtype=np.float64)
    q = np.array([0.5 + 2**-52, 0.5], dtype=np.float64)  # nowhere below p
    assert drawn(p, [(0, q)], Last()) == 1
