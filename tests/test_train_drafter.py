"""Training a drafter: its examples, its loss, that it resumes bit for bit, and that it learns."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from helpers_models import (
    CONFIGS,
    DISTILBERT_CONFIG,
    OPT_CONFIG,
    TOKENIZER_TEXT,
    random_weights,
    write_model,
)

import tinyflash
from tinyflash.cli import main
from tinyflash.families import read_config
from tinyflash.flash.store.convert import convert
from tinyflash.generate import greedy
from tinyflash.speculative.drafter_files import (
    DrafterConfig,
    DrafterNetwork,
    load_drafter,
    weight_shapes,
)
from tinyflash.speculative.redrafter import beam_search, embedder
from tinyflash.speculative.training import examples as drafter_examples
from tinyflash.speculative.training import learning as drafter_training
from tinyflash.speculative.training import run as train_drafter
from tinyflash.speculative.training.examples import (
    HIDDEN,
    TOKENS,
    Examples,
    all_examples,
    cut_windows,
    examples_of,
    record_examples,
)
from tinyflash.speculative.training.learning import (
    Recipe,
    accuracy,
    draft_loss,
    ranks,
    tokens_per_step,
    train,
)
from tinyflash.training import loop
from tinyflash.training.loop import begin_or_resume
from tinyflash.training.run_files import load_state
from tinyflash.training.tape import value_and_grad

N = 3  # offsets, where a test may choose
SMALL = DrafterConfig(vocab_size=11, width=4, exit_width=7, layers=2)


def small_case(dtype=np.float64, config=SMALL, seed=3):
    """Weights, embeddings, hidden states and tokens of a tiny drafter."""
    rng = np.random.default_rng(seed)
    weights = drafter_training.random_weights(config, seed, 1.0)
    weights = {
        name: (w + 0.3 * rng.standard_normal(w.shape)).astype(dtype) for name, w in weights.items()
    }
    embedding = rng.standard_normal((config.vocab_size, config.width)).astype(dtype)
    hidden = rng.standard_normal((5, config.width)).astype(dtype)
    tokens = rng.integers(0, config.vocab_size, (5, N + 1))
    return weights, embedding, hidden, tokens


# The loss.


def plain_silu(x):
    return x / (1 + np.exp(-x))


def plain_loss(weights, embedding, hidden, tokens):
    """The loss again, number by number, for SMALL."""
    total = 0.0
    for h, row in zip(hidden, tokens, strict=True):
        state = np.zeros(SMALL.width, dtype=np.float64)
        for fed, right in zip(row[:-1], row[1:], strict=True):
            state = plain_silu(
                weights["rnn_w.weight"] @ embedding[fed]
                + weights["rnn_u.weight"] @ state
                + weights["rnn_u.bias"]
            )
            x = np.concatenate([h, state])
            x = weights["input_proj.weight"] @ x + weights["input_proj.bias"]
            for i in range(2):
                a, b = weights[f"lm_head.{i}.linear.weight"], weights[f"lm_head.{i}.linear.bias"]
                x = x + plain_silu(a @ x + b)
            p = np.exp(weights["lm_head.2.weight"] @ x)
            total -= np.log(p[right] / p.sum())
    return total / len(hidden)


def test_the_loss_is_the_plain_formula():
    weights, embedding, hidden, tokens = small_case()
    loss = draft_loss(SMALL, weights, lambda ids: embedding[ids], hidden, tokens)
    assert float(loss) == pytest.approx(plain_loss(weights, embedding, hidden, tokens), rel=1e-12)


@pytest.mark.parametrize(
    "config", [SMALL, DrafterConfig(vocab_size=11, width=4, exit_width=8, layers=0)]
)
def test_gradients_are_those_of_finite_differences(config):
    weights, embedding, hidden, tokens = small_case(config=config)

    def loss(weights):
        return draft_loss(config, weights, lambda ids: embedding[ids], hidden, tokens)

    _, gradients = value_and_grad(loss, weights)
    rng, step = np.random.default_rng(0), 1e-6
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        ahead, behind = (
            loss(weights | {name: weights[name] + sign * step * direction}) for sign in (1, -1)
        )
        slope = float(ahead - behind) / (2 * step)
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-6, abs=1e-8), name
        assert np.any(gradient != 0), name


# The examples.


def model_and_windows(family, tmp_path, count=3, T=9):
    model = tinyflash.load(write_model(tmp_path / family, CONFIGS[family], seed=2))
    windows = np.random.default_rng(5).integers(4, model.config.vocab_size, (count, T + N + 1))
    return model, windows


@pytest.mark.parametrize(
    "family", ["opt", "opt-350m", "gpt2", "llama", "mistral", "qwen2", "falcon-rw"]
)
def test_distilled_tokens_are_the_models_own_continuation(family, tmp_path):
    model, windows = model_and_windows(family, tmp_path)
    examples = examples_of(model.weights, model.config, windows, N, distill=True)
    continued = [greedy(model, row[: t + 1].tolist(), N + 1) for row in windows for t in range(9)]
    assert examples.tokens.tolist() == continued
    assert examples.tokens.dtype == np.int32
    from_text = examples_of(model.weights, model.config, windows, N, distill=False).tokens
    assert from_text.tolist() != continued


def test_true_tokens_are_those_of_the_text(tmp_path):
    model, windows = model_and_windows("llama", tmp_path)
    examples = examples_of(model.weights, model.config, windows, N, distill=False)
    expected = [row[t + 1 : t + N + 2].tolist() for row in windows for t in range(9)]
    assert examples.tokens.tolist() == expected


@pytest.mark.parametrize(
    "family, name", [("llama", "final_norm"), ("opt-350m", "layers.1.resid_post")]
)
def test_hidden_states_are_what_the_head_is_given(family, name, tmp_path):
    model, windows = model_and_windows(family, tmp_path)
    for distill in (False, True):
        examples = examples_of(model.weights, model.config, windows, N, distill)
        assert examples.hidden.dtype == np.float16
        for n, row in enumerate(windows):
            taps = {}
            model.logits(row[:9], tap=taps.__setitem__)
            np.testing.assert_allclose(
                examples.hidden[9 * n : 9 * n + 9], taps[name], rtol=2e-3, atol=2e-3
            )


def test_windows_lie_evenly_and_begin_as_texts_do():
    config = read_config(OPT_CONFIG)  # its context: 96
    ids = np.arange(1000, dtype=np.uint16)
    windows = cut_windows(ids, [7], config, N, 300, "--text")
    assert windows.shape == (4, 93 + N + 1)  # 372 positions, the first number of windows over 300
    assert np.all(windows[:, 0] == 7)
    assert np.all(np.diff(windows[:, 1:], axis=1) == 1)
    assert windows[0, 1] == 0 and windows[-1, -1] == 999
    assert len(cut_windows(ids, [7], config, N, 10**9, "--text")) == 1000 // 96
    everything = cut_windows(ids, [7], config, N, 10**9, "--text")[:, 1:]
    assert len(np.unique(everything)) == everything.size  # none over another


def test_a_killed_recording_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(drafter_examples, "MOST_WINDOWS", 2)
    model, windows = model_and_windows("opt", tmp_path, count=9, T=4)
    told = []
    settings = (model.weights, model.config, windows, N, True)
    for name in "abc":
        (tmp_path / name).mkdir()
    record_examples(tmp_path / "a", *settings, lambda done, total: told.append((done, total)))
    assert told == [(16, 36), (32, 36), (36, 36)]
    whole = [(tmp_path / "a" / name).read_bytes() for name in (HIDDEN, TOKENS)]

    def die(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_examples(tmp_path / "b", *settings, die)
    assert (tmp_path / "b" / TOKENS).read_bytes() == whole[1][: 16 * 4 * (N + 1)]
    # Killed while it wrote the second piece: a window and a half of it are there.
    (tmp_path / "b" / HIDDEN).write_bytes(whole[0][: 20 * 2 * model.config.width] + b"torn")
    (tmp_path / "b" / TOKENS).write_bytes(whole[1][: 22 * 4 * (N + 1)])
    monkeypatch.setattr(drafter_examples, "WORKERS", 1)
    batches = []

    def watched(weights, config, batch, *others):
        batches.append(batch)
        return examples_of(weights, config, batch, *others)

    monkeypatch.setattr(drafter_examples, "examples_of", watched)
    resumed = record_examples(tmp_path / "b", *settings)
    assert list(map(len, batches)) == [2, 2, 1]  # as they were, so that BLAS rounds as it did
    assert [(tmp_path / "b" / name).read_bytes() for name in (HIDDEN, TOKENS)] == whole

    def never(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(drafter_examples, "examples_of", never)
    again = record_examples(tmp_path / "b", *settings)
    assert np.array_equal(again.tokens, resumed.tokens)
    assert again.hidden.shape == (36, model.config.width)


def test_examples_in_memory_are_those_of_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(drafter_examples, "MOST_WINDOWS", 2)
    model, windows = model_and_windows("llama", tmp_path)
    recorded = record_examples(tmp_path, model.weights, model.config, windows, N, True)
    held = all_examples(model.weights, model.config, windows, N, True)
    assert np.array_equal(held.tokens, recorded.tokens)
    assert np.array_equal(held.hidden, recorded.hidden)


def test_hidden_states_beyond_float16_are_refused():
    config = read_config(OPT_CONFIG)
    weights = random_weights(config)
    weights["final_norm.bias"] = np.full(config.width, 1e5, dtype=np.float32)
    with pytest.raises(ValueError, match="beyond what float16 holds"):
        examples_of(weights, config, np.full((1, 9), 5, dtype=np.int64), N, False)


# Training.


class Killed(Exception):
    pass


def planted(text, tmp_path, model=None, steps=120, clip=5.0, **settings):
    """Ranks on examples of a text, by a drafter before and after it is trained on others of it."""
    config, weights = model or (read_config(OPT_CONFIG), random_weights(read_config(OPT_CONFIG)))
    windows = cut_windows(text, [2], config, N, 700, "text")
    examples = all_examples(weights, config, windows, N, False)
    drafter = DrafterConfig(config.vocab_size, config.width, 2 * config.width, 1)
    embed = embedder(config, weights, DrafterNetwork(drafter, {}))
    learned, heldout = (Examples(examples.hidden[a], examples.tokens[a]) for a in
                        (slice(0, 500), slice(500, None)))  # fmt: skip
    recipe = Recipe(steps, batch=32, peak=1e-2, offsets=N, clip=clip)
    fresh = lambda: drafter_training.random_weights(drafter, 0, 0.7)  # noqa: E731
    trained, curve = train(drafter, learned, embed, recipe, tmp_path, initial=fresh(), **settings)
    return ranks(drafter, fresh(), embed, heldout), ranks(drafter, trained, embed, heldout), curve


def test_a_repetitive_text_is_learned_and_noise_is_not(tmp_path):
    rng = np.random.default_rng(4)
    period = rng.permutation(np.arange(10, 300, dtype=np.uint16))[:23]
    before, after, curve = planted(np.tile(period, 50), tmp_path / "repetitive")
    assert accuracy(before)[:, 0].max() < 0.2
    assert accuracy(after)[:, 0].min() > 0.9
    assert tokens_per_step(after) > 3.5 and tokens_per_step(before) < 1.3
    assert curve[0]["loss"] > N * 5 and curve[-1]["loss"] < N * 0.5  # log 307 = 5.7
    # Negative control: what follows is a matter of chance, and nothing can be learned of it.
    noise = rng.choice(period, 23 * 50)
    _, after, _ = planted(noise, tmp_path / "noise")
    assert accuracy(after)[:, 0].max() < 0.2


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(drafter_training, "SAVE_EVERY", 4)
    text = np.tile(np.arange(10, 33, dtype=np.uint16), 50)
    _, expected, curve = planted(text, tmp_path / "a", steps=9, clip=0.5)

    def die_at_step_6(row):
        if row["step"] == 6:
            raise Killed

    settings = {"steps": 9, "clip": 0.5}
    with pytest.raises(Killed):
        planted(text, tmp_path / "b", report=die_at_step_6, **settings)
    rows = []
    _, resumed, again = planted(text, tmp_path / "b", report=rows.append, **settings)
    assert [row["step"] for row in rows] == [5, 6, 7, 8, 9]
    states = [load_state(tmp_path / name)[:2] for name in "ab"]
    for name, weight in states[0][0].items():
        assert np.array_equal(weight, states[1][0][name]), name
        assert np.array_equal(states[0][1]["second"][name], states[1][1]["second"][name]), name
    assert np.array_equal(expected, resumed)
    for row in (*curve, *again):
        row.pop("seconds")
    assert curve == again
    config = DrafterConfig(307, 24, 48, 1)
    recipe = Recipe(9, batch=32, peak=1e-2, offsets=N, clip=0.5)
    description = {"drafter": asdict(config), "recipe": asdict(recipe)}
    initial = drafter_training.random_weights(config, 0, 1.0)
    run = begin_or_resume(tmp_path / "b", description, lambda: initial)
    assert list(run.weights) == list(weight_shapes(config))  # norms are summed in this order
    with pytest.raises(ValueError, match="recipe differs in steps"):
        planted(text, tmp_path / "b", steps=10, clip=0.5)


# What is measured.


def test_accuracy_and_tokens_per_step_by_hand():
    of = np.array([[0, 0, 0], [0, 3, 0], [1, 0, 0], [9, 9, 4]], dtype=np.int64)
    expected = [[0.5, 0.75, 0.75, 0.75, 0.75], [0.5, 0.5, 0.5, 0.75, 0.75], [0.75] * 4 + [1.0]]
    assert accuracy(of).tolist() == expected
    assert tokens_per_step(of) == 1 + (3 + 1 + 0 + 0) / 4


def test_ranks_are_places_among_the_logits():
    weights, embedding, hidden, tokens = small_case(np.float32)
    n = 300  # more than are computed at once
    examples = Examples(np.tile(hidden, (n, 1)).astype(np.float16), np.tile(tokens, (n, 1)))
    found = ranks(SMALL, weights, lambda ids: embedding[ids], examples)
    assert found.shape == (5 * n, N)
    hidden = hidden.astype(np.float16).astype(np.float32)
    steps = drafter_training.drafted_logits(
        SMALL, weights, lambda ids: embedding[ids], hidden, tokens
    )
    for k, logits in enumerate(steps):
        places = np.argsort(-logits, axis=-1)
        expected = [
            np.flatnonzero(p == t)[0] for p, t in zip(places, tokens[:, k + 1], strict=True)
        ]
        np.testing.assert_array_equal(found[:, k].reshape(n, 5), np.tile(expected, (n, 1)))


# The command.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and texts, in a directory."""
    directory = tmp_path_factory.mktemp("drafter")
    write_model(directory / "opt", OPT_CONFIG, seed=4)
    write_model(directory / "wordless", OPT_CONFIG, seed=4, tokenizer=False)
    write_model(directory / "encoder", DISTILBERT_CONFIG)
    (directory / "text.txt").write_text(TOKENIZER_TEXT * 25)
    (directory / "heldout.txt").write_text(TOKENIZER_TEXT[60:] * 3)
    (directory / "short.txt").write_text("a")
    (directory / "latin.txt").write_bytes("é".encode("latin-1"))
    return directory


@pytest.fixture
def arguments(place, tmp_path, monkeypatch):
    """What `tinyflash train drafter` needs; the drafter is to be in tmp_path/out."""
    monkeypatch.setattr(train_drafter, "HELDOUT", 100)
    monkeypatch.setattr(drafter_examples, "LENGTH", 20)
    monkeypatch.setattr(drafter_examples, "MOST_WINDOWS", 4)
    return {
        "model": place / "opt",
        "--text": place / "text.txt",
        "--heldout": place / "heldout.txt",
        "--out": tmp_path / "out",
        "--tokens": 400,
        "--steps": 30,
        "--batch": 16,
        "--layers": 1,
    }


def words(arguments):
    flat = ["train", "drafter", arguments["model"]]
    for name, value in arguments.items():
        if name != "model" and value is not False:
            flat += [name] if value is True else [name, value]
    return [str(word) for word in flat]


def trained(capsys, arguments):
    assert main([*words(arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("distill", [False, True])
def test_the_drafter_that_is_written_works_for_its_model(capsys, place, arguments, distill):
    result = trained(capsys, arguments | {"--distill": distill})
    assert result["loss_on"] == ("model" if distill else "text")
    assert result["steps"] == 30 and result["examples"] == 400
    assert result["loss"] < result["first_loss"]
    model, drafter = tinyflash.load(place / "opt"), load_drafter(result["out"])
    assert drafter.config == DrafterConfig(307, 24, 48, 1)
    embed = embedder(model.config, model.weights, drafter)

    # What was measured is what drafting by it gives, on the same text.
    ids = np.array(model.encode(TOKENIZER_TEXT[60:] * 3), dtype=np.int64)
    heldout = cut_windows(ids, [2], model.config, 5, 100, "heldout")
    examples = all_examples(model.weights, model.config, heldout, 5, True)
    yields = []
    for hidden, tokens in zip(examples.hidden, examples.tokens, strict=True):
        beams, _ = beam_search(drafter, embed, hidden.astype(np.float32), int(tokens[0]), 1, 6)
        right = np.append(beams[0] == tokens, False)
        yields.append(int(np.argmin(right)))
    assert result["heldout_examples"] == len(yields)
    assert result["tokens_per_step"] == pytest.approx(np.mean(yields))
    assert result["accuracy"]["model"][0][0] == pytest.approx(np.mean(np.array(yields) > 1))

    about = json.loads((arguments["--out"] / train_drafter.REPORT).read_text())
    assert about["result"] == result and about["distill"] is distill
    assert [row["step"] for row in about["curve"]] == list(range(1, 31))
    assert not (arguments["--out"].parent / "out.training").exists()


def test_a_killed_command_goes_on_bit_for_bit(capsys, place, arguments, monkeypatch):
    arguments["--distill"] = True
    trained(capsys, arguments)
    expected = (arguments["--out"] / "model.safetensors").read_bytes()
    state = arguments["--out"].parent / "again.training"
    arguments["--out"] = arguments["--out"].parent / "again"

    real = drafter_examples.append
    monkeypatch.setattr(drafter_examples, "append", interrupting(real, after=2))
    assert main(words(arguments)) == 130
    assert not arguments["--out"].exists() and (state / HIDDEN).stat().st_size > 0
    model = tinyflash.load(place / "opt")
    ids = np.array(model.encode(TOKENIZER_TEXT * 25), dtype=np.int64)
    windows = cut_windows(ids, [2], model.config, 5, 400, "text")[:8]
    expected_tokens = all_examples(model.weights, model.config, windows, 5, True).tokens
    assert (state / TOKENS).read_bytes()[: expected_tokens.nbytes] == expected_tokens.tobytes()
    monkeypatch.setattr(drafter_examples, "append", real)
    real = loop.save_state
    monkeypatch.setattr(drafter_training, "SAVE_EVERY", 7)
    monkeypatch.setattr(loop, "save_state", interrupting(real, after=2))
    assert main(words(arguments)) == 130
    assert not arguments["--out"].exists()
    capsys.readouterr()
    # Another training is not taken for this one, nor the other way about.
    for name, value, differs in [
        ("--distill", False, "distill"),
        ("--steps", 31, "recipe"),
        ("--tokens", 100, "text"),
        ("--exit-width", 40, "drafter"),
    ]:
        assert main(words(arguments | {name: value})) == 2
        assert f"an unfinished training whose {differs} differ" in capsys.readouterr().err
    monkeypatch.setattr(loop, "save_state", real)
    trained(capsys, arguments)
    assert (arguments["--out"] / "model.safetensors").read_bytes() == expected
    assert not state.exists()


def interrupting(function, after):
    """The function, interrupted as by Ctrl-C when it is called once more than `after` times."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


def test_the_state_of_another_model_is_not_taken(capsys, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(drafter_examples, "append", interrupting(None, after=0))
    assert main(words(arguments)) == 130
    arguments["model"] = write_model(tmp_path / "other", OPT_CONFIG, seed=5)
    assert main(words(arguments)) == 2
    assert "an unfinished training whose model differ" in capsys.readouterr().err


def test_a_digest_tells_models_apart_by_every_tensor():
    weights = random_weights(read_config(OPT_CONFIG))
    digest = train_drafter.digest_of(weights)
    assert train_drafter.digest_of(dict(reversed(weights.items()))) == digest
    for name in ("embed.weight", "layers.1.ffn.down.weight", "final_norm.bias"):
        changed = weights[name].copy()
        changed.flat[3] += 1
        assert train_drafter.digest_of(weights | {name: changed}) != digest


def test_people_see_a_table(capsys, arguments):
    del arguments["--heldout"]
    arguments["--text"].with_name("long.txt").write_text(TOKENIZER_TEXT * 90)
    arguments["--text"] = arguments["--text"].with_name("long.txt")
    assert main(words(arguments)) == 0
    out = capsys.readouterr().out
    assert "as the model goes on" in out and "as the text goes on" in out
    assert "top-5 %" in out and "tokens_per_step" in out


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"--steps": 0}, "--steps must be at least 1, not 0"),
        ({"--batch": 0}, "--batch must be at least 1"),
        ({"--tokens": -1}, "--tokens must be at least 1"),
        ({"--exit-width": 0}, "--exit-width must be at least 1"),
        ({"--layers": -1}, "--layers must be at least 0"),
        ({"--seed": -1}, "--seed must be at least 0"),
        ({"--learning-rate": 0}, "--learning-rate must be above 0"),
        ({"--learning-rate": "nan"}, "--learning-rate must be above 0"),
        ({"--text": "short.txt"}, "--text has 2 tokens and takes at least"),
        ({"--heldout": "short.txt"}, "--heldout has 2 tokens and takes at least"),
        ({"--text": "missing.txt"}, "No such file"),
        ({"--text": "latin.txt"}, "not in UTF-8"),
        ({"model": "wordless"}, "has no tokenizer, so it cannot read --text"),
        ({"model": "encoder"}, "is an encoder"),
        ({"model": "nowhere"}, "There is no"),
    ],
)
def test_bad_input_is_one_sentence(capsys, place, arguments, change, sentence):
    for name, value in change.items():
        path = name in ("--text", "--heldout", "model")
        arguments[name] = place / value if path else value
    assert main(words(arguments)) == 2
    refused(capsys, sentence)
    assert not arguments["--out"].exists()
    assert not arguments["--out"].with_name("out.training").exists()


def refused(capsys, sentence):
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("tinyflash: ") and sentence in err


def test_a_flash_directory_and_a_finished_drafter_are_refused(capsys, arguments, tmp_path):
    original, arguments["model"] = arguments["model"], tmp_path / "opt.flash"
    convert(original, arguments["model"])
    assert main(words(arguments)) == 2
    refused(capsys, "is a flash directory; train a drafter from the model that it was made of")
    arguments["model"] = original
    trained(capsys, arguments)
    before = (arguments["--out"] / "model.safetensors").stat().st_mtime_ns
    assert main(words(arguments)) == 2
    refused(capsys, "exists already")
    assert (arguments["--out"] / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", [train_drafter.RUN, train_drafter.STATE])
def test_a_damaged_state_is_said(capsys, arguments, monkeypatch, name):
    real = loop.save_state
    monkeypatch.setattr(drafter_training, "SAVE_EVERY", 7)
    monkeypatch.setattr(loop, "save_state", interrupting(real, after=1))
    assert main(words(arguments)) == 130
    path = arguments["--out"].parent / "out.training" / name
    path.write_bytes(path.read_bytes()[:-9])
    capsys.readouterr()
    assert main(words(arguments)) == 2
    refused(capsys, "delete")
