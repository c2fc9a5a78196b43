"""Speculation joined to generation: whatever is proposed, the text is the one of plain decoding."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_models import CONFIGS, write_model
from test_flash_model import with_predictors
from test_redrafter import random_drafter
from test_verify import assert_another_law, differ
from tokenizers import Tokenizer as Backend

import tinyflash
from tinyflash import places
from tinyflash.cli import main
from tinyflash.flash.store.convert import convert
from tinyflash.flash.store.directory import open_store
from tinyflash.flash.window import Window
from tinyflash.generate import Generation, compute, greedy
from tinyflash.kv_cache import KVCache
from tinyflash.sampling import distribution, next_distribution
from tinyflash.settings import Sampling
from tinyflash.speculative.draft_model import DraftModel
from tinyflash.speculative.drafter import Drafter
from tinyflash.speculative.drafter_files import DrafterConfig, load_drafter, save_drafter
from tinyflash.speculative.ngram import PromptLookup
from tinyflash.speculative.redrafter import ReDrafter, embedder
from tinyflash.speculative.replay import Replay, expected_tokens
from tinyflash.speculative.tree import Tree, chain, pack
from tinyflash.taps import DRAFT_TAPS
from tinyflash.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "redrafter"
PROMPT = [2, 50, 60, 70, 50, 60]
NEW = 24
DRAFTERS = ("ngram", "draft model", "itself", "redrafter", "replay", "beams", "twins")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return {
        name: write_model(directory / name, hf_config, seed=4, chat=True)
        for name, hf_config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def models(folders):
    """Every family's random model in float64: one pass and many then pick the same token."""
    return {name: tinyflash.load(folder, dtype="float64") for name, folder in folders.items()}


class Beams(Drafter):
    """Beams that follow the true text for a while and then stray; some are there twice."""

    width, length = 6, 5
    spare_nodes = 20

    def __init__(self, text, seed=0):
        self.text, self.rng = text, np.random.default_rng(seed)

    def propose(self, ids, hidden):
        right = self.text[len(ids) : len(ids) + self.length - 1]
        right = np.array([ids[-1], *right, *[3] * (self.length - 1 - len(right))])
        beams = self.rng.integers(0, 300, (self.width, self.length))
        for beam in beams:
            known = self.rng.integers(1, self.length + 1)
            beam[:known] = right[:known]
        beams[1] = beams[0]
        return pack(beams)[0]


class Twins(Drafter):
    """Any tree over a few words: siblings may be equal, and the true text may be in it twice."""

    spare_nodes = 16

    def __init__(self, text, seed=0):
        self.text, self.rng = text, np.random.default_rng(seed)

    def propose(self, ids, hidden):
        parents = [-1] + [int(self.rng.integers(0, node)) for node in range(1, 14)]
        depths, tokens = [0], [ids[-1]]
        for parent in parents[1:]:
            depths.append(depths[parent] + 1)
            place = len(ids) - 1 + depths[-1]
            known = place < len(self.text) and self.rng.random() < 0.7
            tokens.append(self.text[place] if known else int(self.rng.integers(0, 9)))
        return Tree(np.array(tokens), np.array(parents))


def drafter_named(name, model, other, text):
    """A drafter; `text` is the prompt with its true continuation."""
    if name == "ngram":
        return PromptLookup(longest=2, length=4)
    if name == "draft model":
        return DraftModel(model, other, 3)
    if name == "itself":
        return DraftModel(model, model, 3)
    if name == "redrafter":
        sizes = DrafterConfig(model.config.vocab_size, model.config.width, 17, 1)
        network = random_drafter(sizes, dtype=model.dtype)
        return ReDrafter(network, embedder(model.config, model.weights, network), 5, 4)
    if name == "replay":
        return Replay(text, 0.6, 4, model.config.vocab_size)
    return {"beams": Beams, "twins": Twins}[name](text)


def finished(model, prompt=PROMPT, **settings):
    """A Generation that has run to its end."""
    made = model.generate(prompt, **{"temperature": 0, "max_new_tokens": NEW} | settings)
    list(made)
    return made


def until_end(model, ids):
    """The tokens before the first that ends a text."""
    return list(itertools.takewhile(lambda token: token not in model.eos_ids, ids))


# The forward pass over a tree.


def random_tree(rng, n=14, words=300):
    """Deeper than the shortest window."""
    parents = [-1] + [int(rng.integers(max(0, node - 3), node)) for node in range(1, n)]
    return Tree(rng.integers(0, words, n), np.array(parents))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_node_of_a_tree_is_computed_as_if_alone_with_its_ancestors(models, name):
    model, rng = models[name], np.random.default_rng(5)
    before = rng.integers(0, 300, 19).tolist()
    for start in (0, 1, 6, 19):  # windows are 3 and 7 tokens long
        tree = random_tree(rng)
        cache = model.new_cache()
        if start:
            model.logits(before[:start], cache)
        logits, hidden = compute(model, tree.tokens, cache, tree=tree)
        assert cache.length == start + len(tree)
        for node in range(len(tree)):
            ids = before[:start] + tree.tokens[tree.path(node)].tolist()
            alone, its_hidden = compute(model, ids, None)
            error = np.abs(logits[node] - alone[-1]).max() / np.abs(alone).max()
            assert error <= 1e-12, (start, node)
            np.testing.assert_allclose(hidden[node], its_hidden[-1], rtol=1e-9, atol=1e-9)
        path = tree.path(int(np.argmax(tree.depths)))
        model.keep(cache, start, path)
        assert cache.length == start + len(path)
        ids = before[:start] + tree.tokens[path].tolist()
        following = model.logits([8, 9], cache)
        expected = model.logits([*ids, 8, 9])[-2:]
        np.testing.assert_allclose(following, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_chain_is_computed_as_without_a_tree(folders, name):
    model = tinyflash.load(folders[name])
    one, other = model.new_cache(), model.new_cache()
    for cache in (one, other):
        model.logits(PROMPT, cache)
    plain = model.logits([5, 6, 7, 8], one)
    treed = model.logits([5, 6, 7, 8], other, tree=chain([5, 6, 7, 8]))
    assert plain.tobytes() == treed.tobytes()


@pytest.mark.parametrize(
    "name, fault",
    [
        ("opt", "positions_of"),
        ("llama", "positions_of"),
        ("falcon-rw", "key_positions"),
        ("qwen2", "key_positions"),
        ("gpt2", "in_sight"),
    ],
)
def test_planted_faults_of_the_tree_are_seen(models, monkeypatch, name, fault):
    planted = {
        "positions_of": lambda T, start, tree=None: start + np.arange(T),
        "key_positions": lambda tree, start: np.arange(start + len(tree)),
        "in_sight": lambda tree, start, window=None: places.visible(
            start, len(tree), start + len(tree), window
        ),
    }
    model, tree = models[name], random_tree(np.random.default_rng(5))

    def computed():
        cache = model.new_cache()
        model.logits(PROMPT, cache)
        return model.logits(tree.tokens, cache, tree=tree)

    right = computed()
    monkeypatch.setattr(places, fault, planted[fault])
    assert np.abs(computed() - right).max() > 1e-3


def test_a_tree_may_have_more_nodes_than_the_context_but_not_be_deeper(models):
    model, rng = models["opt"], np.random.default_rng(1)
    broad = Tree(rng.integers(0, 300, 120), np.array([-1] + [0] * 119))
    cache = model.new_cache(96)
    model.logits([7] * 94, cache)
    assert model.logits(broad.tokens, cache, tree=broad).shape == (120, 307)
    model.keep(cache, 94, [0, 100])
    assert cache.length == 96
    with pytest.raises(ValueError, match="context of 96"):
        model.logits([1], cache, tree=chain([1]))


# Greedy.


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_speculative_is_greedy(models, name, drafter):
    model = models[name]
    nearly = {
        name: weight if hasattr(weight, "rows") else 1.1 * weight
        for name, weight in model.weights.items()
    }
    other = dataclasses.replace(model, weights=nearly)
    for prompt in (PROMPT, [9]):
        expected = greedy(model, prompt, NEW)
        proposing = drafter_named(drafter, model, other, prompt + expected)
        made = finished(model, prompt, drafter=proposing)
        assert made.ids == until_end(model, expected)
        counts = made.counts
        assert counts.tokens == made.cache.length - len(prompt)
        assert counts.passes == counts.steps + 1
        if drafter in ("itself", "replay", "beams", "twins"):
            assert counts.accepted > 0
        if drafter == "itself":
            assert counts.accepted == counts.drafted


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", ["opt", "mistral"])
def test_drafts_run_into_the_end_of_the_context(models, name, drafter):
    model = models[name]
    prompt = np.random.default_rng(2).integers(3, 300, 87).tolist()
    plain = finished(model, prompt, max_new_tokens=50)
    assert plain.stop_reason == "context" and len(plain.ids) == 10
    expected = greedy(model, prompt, 9)
    proposing = drafter_named(drafter, model, models["opt"], prompt + expected + [5] * 9)
    made = finished(model, prompt, max_new_tokens=50, drafter=proposing)
    assert (made.ids, made.stop_reason) == (plain.ids, "context") and made.ids[:9] == expected
    assert made.cache.length == plain.cache.length == 96


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_no_more_tokens_than_wanted(models, drafter):
    model = models["llama"]
    expected = greedy(model, PROMPT, NEW)
    for wanted in range(8):
        proposing = drafter_named(drafter, model, model, PROMPT + expected)
        made = finished(model, max_new_tokens=wanted, drafter=proposing)
        assert (made.ids, made.stop_reason) == (expected[:wanted], "length")
        assert made.cache.length == len(PROMPT) + max(0, wanted - 1)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_end_inside_an_accepted_draft(models, drafter):
    model = models["phi"]
    expected = greedy(model, PROMPT, NEW)
    for place in (1, 2, 3, 4, 5, 11):
        ends = dataclasses.replace(model, eos_ids=frozenset([expected[place]]))
        proposing = drafter_named(drafter, ends, model, PROMPT + expected)
        plain, made = finished(ends), finished(ends, drafter=proposing)
        first = expected.index(expected[place])
        assert (made.ids, made.stop_reason) == (expected[:first], "end") == (plain.ids, "end")
        assert made.cache.length == plain.cache.length  # nothing behind it is kept, nor itself


def top_2_margin(model, ids):
    """By how much the likeliest next token leads."""
    second, first = np.sort(model.logits(ids)[-1])[-2:]
    return float(first - second)


@pytest.mark.parametrize("name", CONFIGS)
def test_in_float32_texts_part_only_where_two_tokens_are_as_likely(folders, models, name):
    model = tinyflash.load(folders[name])
    plain = finished(model)
    for drafter in ("itself", "replay", "beams"):
        made = finished(model, drafter=drafter_named(drafter, model, model, PROMPT + plain.ids))
        same = len(
            list(
                itertools.takewhile(
                    lambda pair: pair[0] == pair[1], zip(made.ids, plain.ids, strict=False)
                )
            )
        )
        if made.ids != plain.ids:
            assert top_2_margin(models[name], PROMPT + plain.ids[:same]) < 1e-4, (drafter, same)


@pytest.mark.parametrize(
    "text", json.loads((GOLDEN / "generation.json").read_text()), ids=lambda t: str(t["width"])
)
def test_redrafter_takes_the_steps_of_the_released_code(text):
    model = tinyflash.load(GOLDEN / "llama")
    network = load_drafter(GOLDEN / "drafter")
    drafter = ReDrafter(
        network, embedder(model.config, model.weights, network), text["width"], text["length"]
    )
    steps = []
    new = len(text["ids"]) - len(text["prompt"])
    made = Generation(
        dataclasses.replace(model, eos_ids=frozenset()),
        text["prompt"],
        max_new_tokens=new,
        drafter=drafter,
    )
    made.tap = lambda name, x: steps.append(len(x)) if name == "draft.accepted" else None
    list(made)
    assert text["prompt"] + made.ids == text["ids"]
    # They draw the first token of a text in a step of its own, too.
    lengths = np.cumsum([len(text["prompt"]) + 1, *steps]).tolist()[1:]
    assert lengths == text["tokens_after_each_step"]


# Sampling.


@pytest.mark.parametrize("drafter", ["ngram", "redrafter", "replay", "beams"])
@pytest.mark.parametrize("name", ["opt", "llama", "falcon-rw", "qwen2"])
def test_one_seed_says_the_same_with_a_drafter_without_chance(models, name, drafter):
    model = models[name]
    for settings in ({"temperature": 1.0}, {"temperature": 0.7, "top_k": 30, "top_p": 0.9}):
        for seed in range(2):
            plain = finished(model, seed=seed, **settings)
            proposing = drafter_named(drafter, model, model, PROMPT + plain.ids)
            made = finished(model, seed=seed, drafter=proposing, **settings)
            assert (made.ids, made.stop_reason) == (plain.ids, plain.stop_reason)
            assert drafter not in ("replay", "beams") or made.counts.accepted > 0


class Table:
    """A model whose next token hangs on the last one only: logits (V, V), one row a token."""

    tokenizer = flash = None
    eos_ids = frozenset()
    name = "table"

    def __init__(self, logits):
        self.table = logits
        self.config = SimpleNamespace(
            context=99, final_norm=True, layers=1, causal=True, vocab_size=len(logits)
        )

    def new_cache(self, tokens=64):
        cache = SimpleNamespace(length=0)
        cache.truncate = lambda length: setattr(cache, "length", length)
        return cache

    def keep(self, cache, start, path):
        cache.length = start + len(path)

    def logits(self, ids, cache, tap=lambda name, x: None, tree=None):
        cache.length += len(ids)
        tap("final_norm", np.zeros((len(ids), 1)))
        return self.table[np.asarray(ids)]


def drawn_texts(drafter_of, settings, count=6000, new=3):
    """How often a table said what; and what plain sampling says, with its probability."""
    rng = np.random.default_rng(7)
    table, other = (Table(1.5 * rng.standard_normal((4, 4))) for _ in range(2))
    laws = [distribution(row, **settings) for row in table.table]
    expected = {}
    for text in itertools.product(range(4), repeat=new):
        pairs = itertools.pairwise((1, *text))
        expected[text] = float(np.prod([laws[a][b] for a, b in pairs]))
    drafter, counts = drafter_of(table, other), Counter()
    for seed in range(count):
        sampling = Sampling(seed=seed, **settings)
        made = Generation(table, [1], sampling, max_new_tokens=new, drafter=drafter)
        list(made)
        counts[tuple(made.ids)] += 1
    return counts, expected


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 3},
        {"temperature": 1.3, "top_p": 0.8},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_draft_model_changes_no_probability(settings):
    counts, expected = drawn_texts(lambda m, d: DraftModel(m, d, 2), settings, count=8000)
    z, variation = differ(counts, expected)
    assert z < 4 and variation < 0.04, (z, variation)


def test_a_draft_model_that_lies_about_its_law_would_be_seen():
    class Liar(DraftModel):
        def propose(self, ids, hidden=None):
            tree = super().propose(ids)
            laws = np.full_like(tree.drawn_from, 0.25)
            return Tree(tree.tokens, tree.parents, drawn_from=laws)

    counts, expected = drawn_texts(lambda m, d: Liar(m, d, 2), {"temperature": 1.0})
    assert_another_law(counts, expected)


def test_a_draft_model_reads_only_what_is_new(models):
    model = models["opt"]
    drafter = DraftModel(model, models["opt"], 3)
    first = drafter.propose([2, 5, 6])
    assert drafter.cached == [2, 5, 6, *first.tokens[1:3]] and drafter.cache.length == 5
    ids = [2, 5, 6, int(first.tokens[1]), 9, 10]  # its second draft was wrong
    second = drafter.propose(ids)
    alone = DraftModel(model, models["opt"], 3).propose(ids)
    assert np.array_equal(second.tokens, alone.tokens)
    whole, read = model.new_cache(), drafter.cache
    model.logits([*ids, *second.tokens[1:3]], whole)
    for i, keys in enumerate(read.keys):
        np.testing.assert_allclose(keys[:, :8], whole.keys[i][:, :8], rtol=1e-9, atol=1e-9)
    assert len(drafter.propose([5] * 96)) == 2  # its context holds the text and no draft
    assert len(drafter.propose([5] * 97)) == 1


# Padded vocabularies: 300 words, and matrices of more rows.


def padded(folders, rows, name, seed=4):
    """A model whose matrices have so many rows; one of fewer has lost the last words."""
    config = CONFIGS["opt"] | {"vocab_size": rows}
    return tinyflash.load(write_model(folders["opt"].parent / name, config, seed=seed, chat=True))


@pytest.mark.parametrize("rows", [300, 303, 311, 400])
def test_a_draft_model_with_another_padding_drafts_what_both_have(folders, models, rows):
    model, draft = models["opt"], padded(folders, rows, f"padded {rows}")
    plain = finished(model)
    made = finished(model, drafter=str(draft.path))
    assert made.ids == plain.ids and made.counts.drafted > 0
    proposed = DraftModel(model, draft, 3)
    for seed in range(5):
        proposed.begin(
            lambda logits, step: np.full(len(logits), 1 / len(logits)), np.random.default_rng(seed)
        )
        tree = proposed.propose([2, 5, 6])
        assert tree.drawn_from.shape == (4, 307) and tree.tokens.max() < min(307, rows)
        assert np.all(tree.drawn_from[:, rows:] == 0)


def test_a_text_that_the_draft_model_cannot_read_is_not_drafted_on(folders, models):
    model, draft = models["opt"], padded(folders, 300, "fewer rows")
    for settings in ({}, {"temperature": 2.0, "seed": 3}):
        made = model.generate(
            [2, 50, 305, 60], max_new_tokens=12, drafter=str(draft.path), **settings
        )
        plain = model.generate([2, 50, 305, 60], max_new_tokens=12, **settings)
        list(made), list(plain)
        assert made.ids == plain.ids and made.counts.drafted == 0


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4)], ids=str)
def test_another_padding_changes_no_probability(sizes):
    rng = np.random.default_rng(7)
    table, other = (Table(1.5 * rng.standard_normal((V, V))) for V in sizes)
    settings = {"temperature": 1.0, "repetition_penalty": 1.5}
    counts = Counter()
    with pytest.raises(ValueError, match="without the tokenizers of both"):
        DraftModel(table, other, 2)
    words = {str(token): token for token in range(4)}
    for one in (table, other):
        one.tokenizer = SimpleNamespace(backend=SimpleNamespace(get_vocab=lambda: words))
    drafter = DraftModel(table, other, 2)
    table.tokenizer = None  # ids are enough
    for seed in range(3000):
        sampling = Sampling(seed=seed, **settings)
        made = Generation(table, [1], sampling, max_new_tokens=3, drafter=drafter)
        list(made)
        counts[tuple(made.ids)] += 1
    expected = {}
    for text in itertools.product(range(sizes[0]), repeat=3):
        p = 1.0
        for t, token in enumerate(text):
            before = (1, *text[:t])
            row = next_distribution(table.table[before[-1]], Sampling(**settings), [1], before[1:])
            p *= float(row[token])
        expected[text] = p
    z, variation = differ(counts, expected)
    assert z < 4 and variation < 0.12, (z, variation)
    assert made.counts.drafted > 0


# What is streamed, and the conversation.


@pytest.mark.parametrize("drafter", ["replay", "itself", "beams"])
def test_a_stop_string_inside_a_step(models, drafter):
    model = models["opt"]
    text = finished(model, "The river").text
    stop = text[len(text) // 3 : len(text) // 3 + 3]
    plain = finished(model, "The river", stop=stop)
    prompt = plain.prompt_ids
    proposing = drafter_named(drafter, model, model, prompt + greedy(model, prompt, NEW))
    made = finished(model, "The river", stop=stop, drafter=proposing)
    assert (made.text, made.ids, made.stop_reason) == (plain.text, plain.ids, "stop")


@pytest.mark.parametrize("drafter", ["replay", "itself", "beams"])
def test_a_special_token_that_stops_inside_a_step(models, drafter):
    model = models["opt"]
    ids = finished(model, "The river").ids
    backend = Backend.from_str(model.tokenizer.backend.to_str())
    stop = backend.id_to_token(ids[9])
    backend.add_special_tokens([stop])
    words = Tokenizer(backend, model.tokenizer.bos_id, model.tokenizer.eos_ids)
    model = dataclasses.replace(model, tokenizer=words)
    prompt = model.encode("The river")
    proposing = drafter_named(drafter, model, model, prompt + greedy(model, prompt, NEW))
    made = finished(model, prompt, stop=stop, drafter=proposing)
    assert (made.ids, made.stop_reason) == (ids[: ids.index(ids[9]) + 1], "stop")


def test_conversations(tmp_path):
    config = CONFIGS["opt"] | {"max_position_embeddings": 400}
    folder = write_model(tmp_path / "model", config, seed=4, chat=True)
    model = tinyflash.load(folder, dtype="float64")

    def converse(drafter):
        chat, texts = model.chat(), []
        settings = {"temperature": 0, "max_new_tokens": 12, "drafter": drafter}
        for asked in ("the", "sun"):
            made = chat.say(asked, **settings, stop=[texts[0][4:6]] if texts else [])
            texts.append("".join(made))
        texts.append(next(chat.say("a", **settings)))  # interrupted amid a step
        return [*texts, "".join(chat.say("b", **settings))]

    assert converse(None) == converse(DraftModel(model, model, 4)) == converse("ngram")


def test_steps_are_counted_and_shown(models):
    model, seen = models["gpt2"], {}
    text = PROMPT + greedy(model, PROMPT, 21)
    for alpha, per_step in ((1.0, 5), (0.0, 1)):
        made = finished(
            dataclasses.replace(model, eos_ids=frozenset()),
            max_new_tokens=21,
            drafter=Replay(text, alpha, 4, 307),
            tap=lambda name, tensor: seen.setdefault(name, []).append(tensor),
        )
        counts = made.counts
        assert counts.tokens_per_step == per_step == expected_tokens(alpha, 4)
        assert counts.steps == 20 / per_step and counts.tokens == 20
        assert counts.accepted == alpha * counts.drafted
    assert [len(tokens) for tokens in seen["draft.tokens"][:4]] == [5] * 4
    assert seen["draft.accepted"][0].tolist() == [0, 1, 2, 3, 4]
    assert {name for name in seen if name.startswith("draft.")} == {*DRAFT_TAPS} - {
        "draft.log_probs"  # a replay has none
    }
    assert len(seen["logits"]) == 4 + 20 + 2
    plain = finished(model, max_new_tokens=5)
    assert plain.counts.drafted == 0 and plain.counts.tokens_per_step == 1
    assert finished(model, max_new_tokens=1).counts.tokens_per_step is None


def test_a_replay_is_right_as_often_as_it_is_told():
    text = list(range(100, 200))
    for alpha in (0.25, 0.75):
        drafter = Replay(text, alpha, 10, 1000, seed=3)
        right = [
            np.mean(drafter.propose(text[:n]).tokens[1:] == text[n : n + 10])
            for n in list(range(1, 90)) * 3
        ]
        assert abs(np.mean(right) - alpha) < 0.04
    assert len(Replay(text, 1.0, 10, 1000).propose(text)) == 1


# With flash.


@pytest.mark.parametrize(
    "name, mode",
    [("opt", "hybrid"), ("opt", "window"), ("opt", "all"), ("llama", "all"), ("falcon-40b", "all")],
)
def test_flash_and_a_drafter_say_what_plain_decoding_says(models, folders, tmp_path, name, mode):
    dense, new = models[name], 12
    expected = until_end(dense, greedy(dense, PROMPT, new))
    store = convert(folders[name], tmp_path / "store")
    opened = tinyflash.load(store, dtype="float64")
    layers, rows = opened.config.layers, opened.config.ffn_width // 2
    memory = opened.flash.budget.resident + layers * rows * opened.flash.store.row_bytes
    windows = []
    for drafter in (None, "replay", "twins", "draft model"):
        flash = tinyflash.load(store, memory=memory, mode=mode, k=2, dtype="float64")
        if drafter:
            drafter = drafter_named(drafter, flash, dense, PROMPT + expected)
        made = finished(flash, max_new_tokens=new, drafter=drafter)
        assert made.ids == expected
        if mode != "hybrid":
            windows.append([layer.window for layer in flash.flash.feed_forwards])
    for others in windows[1:]:  # what was rejected has not been used
        for one, other in zip(windows[0], others, strict=True):
            assert (one.k, one.tokens) == (other.k, other.tokens)
            assert np.array_equal(one.last_used, other.last_used)


def test_guessed_neurons_are_the_same_with_a_drafter(folders, tmp_path):
    """Predictors that miss many neurons: what a token gets must not hang on rejected drafts."""
    store = with_predictors(open_store(convert(folders["opt"], tmp_path / "store")))
    texts, windows = [], []
    for drafter in (None, "replay", "twins", "beams"):
        model = tinyflash.load(store.path, memory="120%", mode="all", k=3, dtype="float64")
        if drafter:
            drafter = drafter_named(drafter, model, model, PROMPT + texts[0])
        made = finished(model, drafter=drafter)
        assert drafter is None or made.counts.accepted > 0
        texts.append(made.ids)
        windows.append([layer.window.last_used for layer in model.flash.feed_forwards])
    assert texts[1:] == texts[:1] * 3 and len(texts[0]) > 5
    for others in windows[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(windows[0], others, strict=True))


def test_a_window_forgets_what_was_rejected():
    rng = np.random.default_rng(0)
    for _ in range(200):
        F, k = 30, int(rng.integers(1, 6))
        window, expected = Window(F, k), Window(F, k)
        for _ in range(5):
            active = rng.random((int(rng.integers(1, 7)), F)) < 0.2
            path = [0, *np.flatnonzero(rng.random(len(active) - 1) < 0.5) + 1]
            older = window.used_within(k)
            window.suppose(len(active))
            window.use(active)
            assert np.all(window.used_within(window.k) >= older)  # nothing goes for a guess
            window.keep(path)
            expected.use(active[path])
            assert np.array_equal(window.last_used, expected.last_used)
            assert (window.tokens, window.k) == (expected.tokens, k)
    window.suppose(3)
    window.suppose(0)  # a pass that failed
    window.keep([0])
    assert window.k == k and np.array_equal(window.last_used, expected.last_used)


# The command, and bad input.


@pytest.fixture
def stranger(tmp_path):
    config = DrafterConfig(vocab_size=11, width=6, exit_width=9, layers=1)
    save_drafter(tmp_path / "stranger", random_drafter(config))
    return tmp_path / "stranger"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--drafter", "STRANGER"], "trained for another model"),
        (["--drafter", "STRANGER", "--draft-width", "0"], "trained for another model"),
        (["--drafter", "ngram", "--draft-length", "0"], "at least 1"),
        (["--drafter", "MODEL", "--draft-length", "0"], "at least 1 token"),
        (["--drafter", "ngram", "--draft-width", "3"], "several beams"),
        (["--draft-length", "3"], "without a drafter"),
        (["--drafter", "OTHER"], "different tokenizers"),
        (["--drafter", "WORDLESS"], "without the tokenizers of both nobody knows"),
        (["--drafter", "ENCODER"], "encoder"),
        (["--drafter", "no/such/place"], "There is no"),
    ],
)
def test_bad_drafters_are_one_sentence(folders, stranger, tmp_path, capsys, arguments, words):
    from helpers_models import DISTILBERT_CONFIG

    wordless = CONFIGS["opt"] | {"vocab_size": 311}
    wordless = write_model(tmp_path / "wordless", wordless, tokenizer=False)
    encoder = write_model(tmp_path / "encoder", DISTILBERT_CONFIG)
    places = {"STRANGER": stranger, "MODEL": folders["opt"], "OTHER": "default"}
    places |= {"ENCODER": encoder, "WORDLESS": wordless}
    arguments = [str(places.get(word, word)) for word in arguments]
    assert main(["generate", "The", "--model", str(folders["opt"]), *arguments]) == 2
    told = capsys.readouterr()
    assert words in told.err.splitlines()[-1] and told.out == ""
    assert told.err.count("tinyflash:") == 1 and "Traceback" not in told.err


def test_no_redrafter_is_one_sentence(models, monkeypatch):
    monkeypatch.setattr(tinyflash.speculative.drafters, "EMBEDDED", "nothing-of-this-name")
    with pytest.raises(FileNotFoundError, match="^No ReDrafter drafter comes with"):
        models["opt"].drafter("redrafter")


@pytest.mark.parametrize("width, length", [(0, 5), (4, 0)])
def test_redrafter_wants_a_width_and_a_length(models, tmp_path, width, length):
    model = models["opt"]
    config = DrafterConfig(model.config.vocab_size, model.config.width, 9, 1)
    save_drafter(tmp_path / "drafter", random_drafter(config))
    with pytest.raises(ValueError, match="at least 1 beam of at least 1 token"):
        model.drafter(tmp_path / "drafter", width, length)
    made = finished(model, drafter=str(tmp_path / "drafter"))
    assert made.ids == until_end(model, greedy(model, PROMPT, NEW)) and made.counts.drafted > 0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"alpha": 1.5}, "probability"),
        ({"length": 0}, "at least 1 token"),
        ({"vocab_size": 1}, "vocabulary of one"),
    ],
)
def test_a_replay_of_nothing_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Replay([1, 2], **{"alpha": 0.5, "length": 3, "vocab_size": 9} | settings)


def test_a_proposal_for_another_text_is_refused(models):
    class Mistaken(Drafter):
        def propose(self, ids, hidden):
            return chain([0 if ids[-1] else 1, 5])

    with pytest.raises(ValueError, match="last token"):
        finished(models["opt"], drafter=Mistaken())


def test_the_command_says_what_was_drafted(folders, capsys):
    arguments = ["generate", "The river", "--model", str(folders["opt"]), "--temperature", "0"]
    arguments += ["--max-new-tokens", "15"]
    texts = []
    for more in (
        [],
        ["--drafter", "ngram"],
        ["--drafter", str(folders["opt"])],
        ["--drafter", "ngram", "--memory", "90%"],
    ):
        assert main([*arguments, *more, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        texts.append(told["text"])
        assert told["passes"] == told["steps"] + 1 and told["drafted"] >= told["accepted"]
        assert told["tokens"] in (
            told["steps"] + told["accepted"] + 1,
            told["steps"] + told["accepted"],
        )
    assert len(set(texts)) == 1
    assert told["flash"]["bytes_wanted"] > 0 and told["drafter"] == "ngram"
    assert main([*arguments, "--drafter", str(folders["opt"])]) == 0
    assert "tokens a step" in capsys.readouterr().err


def test_bytes_are_by_accepted_token(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tinyflash.load(folders["opt"], memory="100%", mode="naive", dtype="float64")
    model = dataclasses.replace(model, eos_ids=frozenset())
    text = PROMPT + greedy(model, PROMPT, 21)
    made = finished(model, max_new_tokens=21, drafter=Replay(text, 1.0, 4, 307))
    cost = made.spent.per_token(made.counts.steps, made.counts.tokens)
    store = model.flash.store
    every_byte = store.config.layers * store.config.ffn_width * store.row_bytes
    assert cost["bytes_wanted"] == every_byte / 5  # five tokens shared each reading of all


def test_a_path_that_lies_in_place_moves_nothing(models):
    config = models["opt"].config
    cache = KVCache(config)
    cache.length = 5
    for buffer in (*cache.keys, *cache.values):
        buffer[:] = np.arange(buffer.shape[1], dtype=np.float32)[:, None]
    cache.keep(2, [0, 2])
    assert cache.length == 4 and cache.keys[0][0, :4, 0].tolist() == [0, 1, 2, 4]
    cache.keep(2, [0, 1])
    assert cache.length == 4 and cache.values[0][0, :4, 0].tolist() == [0, 1, 2, 4]
