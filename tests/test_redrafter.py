"""ReDrafter: checkpoints, beams and whole greedy texts as Apple's released code computes them.

tests/golden/redrafter/README.md says how its numbers were recorded.
"""

import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tinyflash
from tinyflash.ops import log_softmax
from tinyflash.sampling import distribution
from tinyflash.speculative.drafter_files import (
    DrafterConfig,
    DrafterNetwork,
    load_drafter,
    save_drafter,
    weight_shapes,
)
from tinyflash.speculative.redrafter import (
    CANDIDATES,
    ReDrafter,
    beam_search,
    embedder,
    next_logits,
    next_state,
)
from tinyflash.speculative.tree import pack, tokens_saved
from tinyflash.speculative.verify import released_rule, verify
from tinyflash.training.tape import value_and_grad

GOLDEN = Path(__file__).parent / "golden" / "redrafter"
CASES = ("square", "projected", "no-rnn")
SHAPES = ((1, 5), (3, 2), (4, 5), (10, 4), (64, 5))  # (W, N)
BOTH = [(case, *shape) for case in CASES for shape in SHAPES]


@cache
def golden(case):
    return load_file(GOLDEN / f"{case}.safetensors")


def recorded(case, W, N):
    """What was recorded for one beam shape: dict name -> array."""
    prefix = f"{W}x{N}/"
    return {
        name.removeprefix(prefix): array
        for name, array in golden(case).items()
        if name.startswith(prefix)
    }


def searched(case, W, N, dtype=np.float32):
    """Our beams and log-probabilities where theirs were recorded."""
    embedding, theirs = golden(case)["embedding"], recorded(case, W, N)
    drafter = load_drafter(GOLDEN / case, dtype)
    hidden = theirs["hidden"].astype(dtype)
    return beam_search(drafter, lambda ids: embedding[ids], hidden, int(theirs["token"][0]), W, N)


def random_drafter(config, seed=0, dtype=np.float32, spread=1.5):
    rng = np.random.default_rng(seed)
    weights = {
        name: (rng.standard_normal(shape) * spread / shape[-1] ** 0.5).astype(dtype)
        for name, shape in weight_shapes(config).items()
    }
    return DrafterNetwork(config, weights)


SMALL = DrafterConfig(vocab_size=5, width=6, exit_width=9, layers=2)
EMBEDDING = np.random.default_rng(8).standard_normal((5, 6)).astype(np.float32)
HIDDEN = np.random.default_rng(9).standard_normal(6).astype(np.float32)


def embed_small(ids):
    return EMBEDDING[ids]


# Against the released code.


@pytest.mark.parametrize("case, W, N", BOTH)
def test_beams_are_those_of_the_released_code(case, W, N):
    theirs = recorded(case, W, N)
    beams, log_probs = searched(case, W, N)
    assert np.array_equal(beams, theirs["beams"])
    assert np.all(log_probs[:, 0] == 0)
    np.testing.assert_allclose(log_probs[:, 1:], theirs["log_probs"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case, W, N", BOTH)
def test_packed_trees_are_those_of_the_released_code(case, W, N):
    theirs = recorded(case, W, N)
    tree, unpacker = pack(theirs["beams"])
    n = len(tree)
    assert np.array_equal(tree.tokens, theirs["packed"])
    assert np.array_equal(unpacker, theirs["unpacker"])
    assert np.array_equal(tree.depths, theirs["depths"])
    mask = np.unpackbits(theirs["mask"], count=n * (7 + n)).reshape(n, 7 + n)
    assert np.all(mask[:, :7] == 1)  # the seven tokens before
    assert np.array_equal(tree.ancestors, mask[:, 7:] == 1)


def greedily(logits, step):
    return distribution(logits, 0)


@pytest.mark.parametrize("case, W, N", [shape for shape in BOTH if shape[1] <= 10])
def test_greedy_acceptance_is_that_of_the_released_code(case, W, N):
    theirs = recorded(case, W, N)
    tree, _ = pack(theirs["beams"])
    for i, logits in enumerate(theirs["logits"]):
        verdict = verify(tree, logits, greedily, np.random.default_rng(0))
        accepted, beam = theirs["accepted"][i], theirs["beams"][theirs["beam"][i]]
        assert tree.tokens[verdict.path].tolist() == beam[: accepted + 1].tolist()
        assert verdict.path[-1] == theirs["node"][i]  # whose hidden state the next draft gets
        assert verdict.token == theirs["next"][i]
        assert verdict.tokens == [*beam[1 : accepted + 1], theirs["next"][i]]
    assert set(theirs["accepted"]) >= {1, N - 1}


@pytest.mark.parametrize("case, W, N", [shape for shape in BOTH if shape[1] <= 4])
def test_the_released_sampling_rule_is_theirs(case, W, N):
    theirs = recorded(case, W, N)
    beams, q = theirs["beams"], np.exp(theirs["all_log_probs"].astype(np.float64))
    for i, logits in enumerate(theirs["logits"]):
        laws = np.array([distribution(row / np.float32(8)) for row in logits])
        p = laws[theirs["unpacker"]]
        accepted, beam, law = released_rule(beams, p, q, theirs["uniforms"][i])
        assert (accepted, beam) == (theirs["released_accepted"][i], theirs["released_beam"][i])
        np.testing.assert_allclose(law, theirs["released_law"][i], atol=1e-5)


TEXTS = json.loads((GOLDEN / "generation.json").read_text())


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{text['width']}x{text['length']}")
def test_greedy_texts_and_their_steps_are_those_of_the_released_code(text):
    """Each node is verified by a whole forward pass over its path: no cache, no tree attention."""
    model = tinyflash.load(GOLDEN / "llama")
    drafter = load_drafter(GOLDEN / "drafter")
    embed = embedder(model.config, model.weights, drafter)
    redrafter = ReDrafter(drafter, embed, text["width"], text["length"])

    def passed(ids):
        taps = {}
        model.logits(ids, tap=lambda name, tensor: taps.update({name: tensor[-1]}))
        return taps["logits"], taps["final_norm"]

    ids, lengths = list(text["prompt"]), []
    logits, hidden = passed(ids)
    ids.append(int(np.argmax(logits)))
    while len(ids) < len(text["ids"]):
        tree = redrafter.propose(ids, hidden)
        results = [passed(ids[:-1] + tree.tokens[tree.path(i)].tolist()) for i in range(len(tree))]
        logits = np.array([row for row, _ in results])
        verdict = verify(tree, logits, greedily, np.random.default_rng(0))
        hidden = results[verdict.path[-1]][1]
        ids += verdict.tokens
        lengths.append(len(ids))
    released = text["tokens_after_each_step"]
    assert ids[: len(text["ids"])] == text["ids"]
    assert lengths[:-1] == released[:-1]  # they cut the last one
    if text["width"] > 4:
        assert len(released) < len(text["ids"]) - len(text["prompt"]) - 5  # some were accepted


# Beam search.


def exhaustive(drafter, length):
    """Log-probabilities of all continuations of token 2, one by one."""
    config, weights = drafter.config, drafter.weights
    scores = {}
    for tokens in itertools.product(range(config.vocab_size), repeat=length - 1):
        state, total, before = np.zeros(config.width, dtype=np.float32), 0.0, 2
        for token in tokens:
            state = next_state(config, weights, embed_small(before), state)
            total += float(log_softmax(next_logits(config, weights, HIDDEN, state))[token])
            before = token
        scores[(2, *tokens)] = total
    return scores


@pytest.mark.parametrize("exit_width", [9, 12])
def test_a_beam_as_wide_as_the_tree_finds_the_best(exit_width):
    config = DrafterConfig(vocab_size=5, width=6, exit_width=exit_width, layers=2)
    drafter = random_drafter(config)
    scores = exhaustive(drafter, 4)
    beams, log_probs = beam_search(drafter, embed_small, HIDDEN, 2, 125, 4)
    assert len(beams) == 125 and abs(np.exp(list(scores.values())).sum() - 1) < 1e-5
    for beam, rows in zip(beams.tolist(), log_probs, strict=True):
        assert abs(scores[tuple(beam)] - float(np.sum(rows))) < 1e-5
    totals = np.sum(log_probs, axis=1)
    assert np.all(np.diff(totals) <= 1e-6) and totals[0] == pytest.approx(max(scores.values()))


def test_a_narrow_beam_is_greedy_by_score():
    drafter = random_drafter(SMALL)
    beams, _ = beam_search(drafter, embed_small, HIDDEN, 2, 1, 4)
    ids, state = [2], np.zeros(6, dtype=np.float32)
    for _ in range(3):
        state = next_state(SMALL, drafter.weights, embed_small(ids[-1]), state)
        ids.append(int(np.argmax(next_logits(SMALL, drafter.weights, HIDDEN, state))))
    assert beams.tolist() == [ids]


def test_there_are_no_more_beams_than_continuations():
    beams, _ = beam_search(random_drafter(SMALL), embed_small, HIDDEN, 2, 64, 2)
    assert sorted(beams[:, 1]) == [0, 1, 2, 3, 4]
    config = DrafterConfig(vocab_size=70, width=6, exit_width=12, layers=1)
    embedding = np.random.default_rng(1).standard_normal((70, 6)).astype(np.float32)
    beams, log_probs = beam_search(
        random_drafter(config), lambda ids: embedding[ids], HIDDEN, 2, 64, 2
    )
    assert len(beams) == CANDIDATES and np.exp(log_probs[:, 1]).sum() == pytest.approx(1, abs=1e-5)
    assert len(beam_search(random_drafter(SMALL), embed_small, HIDDEN, 2, 3, 1)[0]) == 1


def test_float64_stays_float64():
    _, log_probs = searched("projected", 4, 5, np.float64)
    assert log_probs.dtype == np.float64
    _, narrow = searched("projected", 4, 5)
    assert narrow.dtype == np.float32 and np.abs(log_probs - narrow).max() < 1e-5


def test_beams_share_their_beginnings():
    """ReDrafter saves 30-60 % of the tokens at length 5; random drafters, 10 texts a width."""
    config = DrafterConfig(vocab_size=120, width=16, exit_width=32, layers=2)
    embedding = np.random.default_rng(1).standard_normal((120, 16)).astype(np.float32)
    drafter = random_drafter(config, spread=2.5)  # about as sure of itself as a trained one
    shares = {}
    for W in (5, 10, 20, 40, 70):
        each = []
        for seed in range(10):
            hidden = np.random.default_rng(seed).standard_normal(16).astype(np.float32)
            beams, _ = beam_search(drafter, lambda ids: embedding[ids], hidden, seed, W, 5)
            each.append(tokens_saved(*pack(beams)))
        shares[W] = float(np.mean(each))
    print(shares)
    assert shares[5] < shares[10] < shares[20] < shares[40] < shares[70]
    assert all(0.3 <= share <= 0.65 for share in shares.values())


@pytest.mark.parametrize("rnn", [True, False])
def test_the_tape_differentiates_the_drafter(rnn):
    """The gradient of a loss over two steps is that of finite differences (float64)."""
    config = DrafterConfig(vocab_size=5, width=6, exit_width=9, layers=1, rnn=rnn)
    weights = random_drafter(config, dtype=np.float64).weights
    hidden, embeddings = (
        np.stack([HIDDEN, -HIDDEN]).astype(np.float64),
        EMBEDDING.astype(np.float64),
    )

    def loss(weights):
        state, total = np.zeros((2, 6), dtype=np.float64), 0.0
        for tokens, targets in (([2, 0], [4, 3]), ([4, 3], [1, 1])):
            state = next_state(config, weights, embeddings[tokens], state)
            log_probs = log_softmax(next_logits(config, weights, hidden, state))
            total = total - np.sum(log_probs[[0, 1], targets])
        return total

    _, gradients = value_and_grad(loss, weights)
    assert gradients.keys() == weights.keys()
    rng = np.random.default_rng(3)
    for name, weight in weights.items():
        direction = rng.standard_normal(weight.shape)
        up, down = ({**weights, name: weight + s * 1e-6 * direction} for s in (1, -1))
        slope = (loss(up) - loss(down)) / 2e-6
        assert float(np.sum(gradients[name] * direction)) == pytest.approx(slope, rel=1e-5)


# Files.


@pytest.mark.parametrize("case", [*CASES, "drafter"])
def test_what_is_saved_is_what_was_loaded(case, tmp_path):
    drafter = load_drafter(GOLDEN / case)
    save_drafter(tmp_path / "out", drafter)
    directories = (tmp_path / "out", GOLDEN / case)
    ours, theirs = (load_file(directory / "model.safetensors") for directory in directories)
    assert ours.keys() == theirs.keys()
    assert ("input_proj.weight" in ours) == (case in ("projected", "drafter"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in directories)
    assert ours == {key: theirs[key] for key in theirs if key != "transformers_version"}
    assert load_drafter(tmp_path / "out").config == drafter.config


def test_16_bits_stay_16_bits(tmp_path):
    drafter = load_drafter(GOLDEN / "projected")
    save_drafter(tmp_path / "half", drafter, "float16")
    half = load_drafter(tmp_path / "half")
    assert half.weights["rnn_w.weight"].nbytes == drafter.weights["rnn_w.weight"].nbytes / 2
    theirs, embedding = recorded("projected", 4, 5), golden("projected")["embedding"]
    beams, log_probs = beam_search(half, lambda i: embedding[i], theirs["hidden"], 22, 4, 5)
    assert len(beams) == 4 and np.isfinite(log_probs).all()
    save_drafter(tmp_path / "again", half, "float16")
    files = [tmp_path / name / "model.safetensors" for name in ("half", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def write(directory, drafter, keys=None, extra=None):
    """A drafter's directory with other keys in its config, or other tensors."""
    save_drafter(directory, drafter)
    config_file, tensor_file = directory / "config.json", directory / "model.safetensors"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | (keys or {})))
    tensors = {name: array.copy() for name, array in load_file(tensor_file).items()}
    tensors = {name: a for name, a in (tensors | (extra or {})).items() if a is not None}
    save_file(tensors, tensor_file)
    return directory


def test_the_mlx_ports_checkpoint_loads(tmp_path):
    mlx = {"emb_norm": True, "rms_norm_eps": 1e-5}
    norm = {"emb_norm.weight": np.ones(6, dtype=np.float32)}
    drafter = random_drafter(SMALL)
    loaded = load_drafter(write(tmp_path / "mlx", drafter, mlx, norm))
    assert loaded.config == SMALL and "emb_norm.weight" not in loaded.weights
    assert all(
        np.array_equal(loaded.weights[name], drafter.weights[name]) for name in loaded.weights
    )


@pytest.mark.parametrize(
    "keys, extra, sentence",
    [
        ({"model_type": "llama"}, {}, "not a ReDrafter drafter: its model_type is 'llama'"),
        ({"exit_dim": 12}, {}, "input_proj"),  # 2 · 6: then there is none
        ({"exit_dim": "9"}, {}, "exit_width must be a whole number"),
        ({"hidden_size": 0}, {}, "width must be a whole number"),
        ({"num_draft_layers": -1}, {}, "layers must be a whole number"),
        ({"num_draft_layers": 10**8}, {}, "at most 4,096"),  # before a name is made for each
        ({"num_draft_layers": 1}, {}, "does not call for"),
        ({"rnn": "yes"}, {}, "true or false"),
        ({"rnn": False}, {}, "3 tensors that config.json does not call for, rnn_"),
        ({}, {"rnn_u.bias": None}, "no tensor named rnn_u.bias"),
        ({}, {"rnn_u.bias": np.zeros(5, dtype=np.float32)}, "rnn_u.bias is 5 where .* for 6"),
        ({}, {"rnn_u.bias": np.full(6, np.inf, dtype=np.float32)}, "Inf or NaN"),
        ({"vocab_size": 7}, {}, r"lm_head.2.weight is 5 × 9 where config.json calls for 7 × 9"),
    ],
)
def test_what_is_no_drafter_is_refused_in_one_sentence(keys, extra, sentence, tmp_path):
    directory = write(tmp_path / "wrong", random_drafter(SMALL), keys, extra)
    with pytest.raises(ValueError, match=sentence):
        load_drafter(directory)


def test_a_config_that_says_too_little(tmp_path):
    directory = write(tmp_path / "wrong", random_drafter(SMALL))
    keys = json.loads((directory / "config.json").read_text())
    del keys["exit_dim"]
    (directory / "config.json").write_text(json.dumps(keys))
    with pytest.raises(ValueError, match="does not say exit_dim"):
        load_drafter(directory)
    with pytest.raises(FileNotFoundError):
        load_drafter(tmp_path / "nowhere")


def test_float16_that_is_too_narrow_writes_nothing(tmp_path):
    drafter = random_drafter(SMALL)
    drafter.weights["rnn_u.bias"] = np.full(6, 1e6, dtype=np.float32)
    with pytest.raises(ValueError, match="save it as float32"):
        save_drafter(tmp_path / "out", drafter, "float16")
    assert not (tmp_path / "out").exists()


# At work for a model.


def test_a_drafter_of_another_model_is_refused():
    model = tinyflash.load(GOLDEN / "llama")
    for config, sentence in (
        (DrafterConfig(14, 16, 32, 1), "its vocabulary is 14 and the model's is 13"),
        (DrafterConfig(13, 18, 36, 1), "its width is 18 and the model's is 16"),
    ):
        with pytest.raises(ValueError, match=sentence):
            embedder(model.config, model.weights, random_drafter(config))


@pytest.mark.parametrize("width, length", [(0, 5), (4, 0), (-1, 3), (2.5, 3)])
def test_a_draft_of_nothing_is_refused(width, length):
    with pytest.raises(ValueError, match="at least 1 beam of at least 1 token"):
        ReDrafter(random_drafter(SMALL), embed_small, width, length)


def test_weights_that_are_nan_are_said_to_be():
    drafter = random_drafter(SMALL)
    drafter.weights["rnn_w.weight"] = np.full((6, 6), np.nan, dtype=np.float32)
    with pytest.raises(ValueError, match="The drafter's logits are Inf or NaN"):
        ReDrafter(drafter, embed_small).propose([1, 2], HIDDEN)


def test_it_proposes_the_tree_of_its_beams():
    drafter = random_drafter(SMALL)
    tree = ReDrafter(drafter, embed_small, 6, 4).propose([1, 3, 2], HIDDEN)
    beams, log_probs = beam_search(drafter, embed_small, HIDDEN, 2, 6, 4)
    packed, unpacker = pack(beams)
    assert np.array_equal(tree.tokens, packed.tokens) and tree.drawn_from is None
    assert np.array_equal(tree.log_probs[unpacker], log_probs)
    assert ReDrafter(drafter, embed_small, 6, 1).propose([1, 3, 2], HIDDEN).tokens.tolist() == [2]
