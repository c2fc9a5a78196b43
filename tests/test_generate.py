"""Generation and chat: what is streamed, when it stops, and what the cache saves."""

import json
import math
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_models import CHAT_TEMPLATE, CONFIGS, TOKENIZER_TEXT, small_tokenizer, write_model

import tinyflash
from tinyflash import generate
from tinyflash.chat import Chat
from tinyflash.generate import Generation, greedy, prefill
from tinyflash.settings import Sampling
from tinyflash.tokenizer import Tokenizer

END = 2
TOKENIZER = Tokenizer(small_tokenizer(), END, (END,), CHAT_TEMPLATE)
PAD = 1
PROMPT = [END, 50, 60, 70]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every family's random model, in float64: cached and uncached then pick the same token."""
    directory = tmp_path_factory.mktemp("models")
    return {
        name: tinyflash.load(
            write_model(directory / name, hf_config, seed=4, chat=True), dtype="float64"
        )
        for name, hf_config in CONFIGS.items()
    }


class Scripted:
    """A model that knows one row of tokens by heart, whatever it reads, and then ends."""

    flash = None

    def __init__(self, script, context=96, tokenizer=TOKENIZER):
        self.script = list(script)
        self.config = SimpleNamespace(
            context=context, final_norm=True, causal=True, vocab_size=TOKENIZER.vocab_size
        )
        self.eos_ids = frozenset([END])
        self.tokenizer = tokenizer

    def new_cache(self, tokens=64):
        cache = SimpleNamespace(length=0, reserve=lambda tokens: None)
        cache.truncate = lambda length: setattr(cache, "length", length)
        return cache

    def reserve(self, tokens):
        pass

    def settled(self, settings):
        return settings

    def keep(self, cache, start, path):
        cache.length = start + len(path)

    def logits(self, ids, cache, tap, tree=None):
        start = cache.length
        cache.length += len(ids)
        assert cache.length <= self.config.context
        logits = np.zeros((len(ids), TOKENIZER.vocab_size), dtype=np.float32)
        for t in range(len(ids)):
            following = start + t + 1
            logits[t, self.script[following] if following < len(self.script) else END] = 9
        tap("final_norm", logits)
        return logits


class Counting:
    """A model that notes how many tokens it computes in each call."""

    def __init__(self, model):
        self.model = model
        self.computed = []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def logits(self, ids, *arguments, **settings):
        self.computed.append(len(ids))
        return self.model.logits(ids, *arguments, **settings)


def words(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def letters(text):
    """One token a byte."""
    return [id for letter in text for id in words(letter)]


def answer(text, cut=words, **settings):
    """A Generation whose model answers with `text`."""
    model = Scripted([*PROMPT, *cut(text)], context=settings.pop("context", 1000))
    return Generation(model, PROMPT, **{"max_new_tokens": 500} | settings)


# What is streamed.


@pytest.mark.parametrize("name", CONFIGS)
def test_the_streamed_text_is_the_decoded_ids(models, name):
    for seed in range(4):
        model = models[name]
        made = model.generate("The river", temperature=1.3, seed=seed, max_new_tokens=30)
        pieces = list(made)
        assert len(pieces) > 1 or made.stop_reason == "end"
        assert all(pieces)  # never an empty one
        assert "".join(pieces) == made.text == model.tokenizer.decode(made.ids)
        assert len(made.ids) == 30 if made.stop_reason == "length" else made.stop_reason == "end"


def test_text_comes_as_soon_as_it_is_known():
    made = answer("every stone knew")
    for expected in ("every", " stone", " knew"):
        piece = next(made)
        while len(piece) < len(expected):
            piece += next(made)
        assert piece == expected
    assert next(made, None) is None
    assert made.stop_reason == "end" and END not in made.ids


@pytest.mark.parametrize("text", ["😀", "a😀b", "né à Łódź 水 é", "👩‍🚀!", "x" + "😀" * 5])
def test_a_utf_8_character_is_never_split(text):
    made = answer(text, cut=letters)
    assert len(made.model.script) - len(PROMPT) == len(text.encode()) > len(text)
    pieces = list(made)
    assert "".join(pieces) == made.text == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(text)  # each character as soon as it is whole


def test_a_character_that_is_never_finished_becomes_one_replacement():
    for length in (1, 2, 3):
        made = answer("a😀b", cut=letters, max_new_tokens=1 + length)
        assert "".join(made) == "a\ufffd"
        assert made.stop_reason == "length"
        assert made.text == TOKENIZER.decode(made.ids)


def test_the_parts_are_there_at_any_moment():
    made = answer("every stone knew", cut=letters)
    assert (made.text, made.ids, made.stop_reason) == ("", [], None)
    assert next(made) == "e"
    assert made.text == "e" and made.ids == letters("e") and made.stop_reason is None
    assert "".join(made) == "very stone knew"
    assert made.prompt_seconds > 0 and made.seconds > 0


def test_without_a_tokenizer_there_are_only_ids():
    model = Scripted([*PROMPT, 7, 8, 9], tokenizer=None)
    made = Generation(model, PROMPT)
    assert list(made) == [] and made.ids == [7, 8, 9] and made.text == ""


# Stop strings.


@pytest.mark.parametrize("cut", [words, letters])
@pytest.mark.parametrize(
    "stop, expected",
    [
        (["stone"], "every "),
        ([" stone knew"], "every"),  # over several tokens
        (["knew", "stone"], "every "),
        (["stone", "y s"], "ever"),
        (["every"], ""),  # at the very beginning
        (["e"], ""),
        (["end"], "every stone knew the "),  # the last word
        (["stonecutter", "stones", "Every"], "every stone knew the end"),  # nearly
        (["the end.", "end?"], "every stone knew the end"),  # begun when the text ends
        ("stone", "every "),  # one string, not five letters
        ([], "every stone knew the end"),
    ],
)
def test_stop_strings(cut, stop, expected):
    made = answer("every stone knew the end", cut=cut, stop=stop)
    emitted = ""
    for piece in made:
        emitted += piece
        assert expected.startswith(emitted)  # at no moment a part of the stop string
    assert emitted == made.text == expected
    assert made.stop_reason == ("end" if expected.endswith("the end") else "stop")


def test_stop_strings_on_random_texts():
    """Letter by letter, the text ends where the first stop string that is complete begins."""
    rng = random.Random(0)
    for _ in range(150):
        text = "".join(rng.choices("ab c", k=12))
        stop = ["".join(rng.choices("ab c", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        expected = text
        for seen in range(len(text) + 1):
            places = [text[:seen].find(s) for s in stop if s in text[:seen]]
            if places:
                expected = text[: min(places)]
                break
        emitted = ""
        for piece in answer(text, cut=letters, stop=stop):
            emitted += piece
            assert expected.startswith(emitted)
        assert emitted == expected, (text, stop)


def test_generation_ends_with_the_stop_string():
    made = answer("every stone knew the end", cut=letters, stop=["stone"])
    list(made)
    assert TOKENIZER.decode(made.ids) == "every stone"


def test_a_stop_string_of_an_unfinished_character_is_a_stop():
    made = answer("a😀", cut=letters, max_new_tokens=3, stop=["\ufffd"])
    assert "".join(made) == "a" and made.stop_reason == "stop"


def test_a_stop_string_that_is_a_special_token():
    """No text holds such a token, so that it is looked for among the ids."""
    script = [*letters("every "), PAD, *letters("stone")]
    for stop in ("<pad>", ["x", "<pad>"], ["<pad>", "<pad>"], ["<s>", "<pad>"]):
        made = Generation(Scripted([*PROMPT, *script]), PROMPT, stop=stop)
        assert "".join(made) == "every " and made.ids == script[:7]
        assert made.stop_reason == "stop"
    made = Generation(Scripted([*PROMPT, *script]), PROMPT, stop=["y ", "<pad>"])
    assert "".join(made) == "ever"  # the first that appears
    made = Generation(Scripted([*PROMPT, *script]), PROMPT, stop="<s>")
    assert "".join(made) == "every stone" and made.stop_reason == "end"
    for stop in ("<pad>\n", "a<pad>", "<pad><pad>"):
        with pytest.raises(ValueError, match="special token in it, '<pad>'.*give the token alone"):
            Generation(Scripted(PROMPT), PROMPT, stop=["x", stop])
    wordless = Scripted([*PROMPT, *script], tokenizer=None)
    assert list(Generation(wordless, PROMPT, stop="<pad>")) == []


# Other ends.


@pytest.mark.parametrize(
    "max_new_tokens, reason", [(0, "length"), (3, "length"), (4, "length"), (5, "end")]
)
def test_length_and_end(max_new_tokens, reason):
    ids = letters("abcd")
    made = Generation(Scripted([*PROMPT, *ids]), PROMPT, max_new_tokens=max_new_tokens)
    assert "".join(made) == "abcd"[:max_new_tokens]
    assert made.ids == ids[:max_new_tokens] and made.stop_reason == reason


@pytest.mark.parametrize("room", [0, 1, 5])
def test_the_context_is_filled_exactly(models, room):
    model = models["llama"]
    prompt = ([END, *words(TOKENIZER_TEXT)] * 3)[: model.config.context - room]
    made = model.generate(prompt, max_new_tokens=500, temperature=3.0, seed=1)
    list(made)
    # The last token needs no place of its own: nothing is computed after it.
    assert made.stop_reason == "context" and len(made.ids) == room + 1
    assert made.cache.length == model.config.context


def test_a_prompt_longer_than_the_context_is_refused(models):
    model = models["opt"]
    with pytest.raises(ValueError, match="97 tokens and the model's context is 96; shorten"):
        model.generate([5] * 97)


def test_an_empty_prompt_is_refused_where_nothing_begins_a_text(models):
    with pytest.raises(ValueError, match="prompt is empty"):
        models["gpt2"].generate("")
    made = models["opt"].generate("", max_new_tokens=2)  # </s> begins it
    assert made.prompt_ids == [END]
    assert "".join(made) == made.text and len(made.ids) <= 2


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"max_new_tokens": -1}, "number of new tokens"),
        ({"stop": ["a", ""]}, "empty stop string"),
        ({"stop": ""}, "empty stop string"),
        ({"stop": 5}, "Stop strings are a list of texts, not 5"),
        ({"stop": ["a", 5]}, "Stop strings are a list of texts"),
        ({"max_new_tokens": "5"}, "max_new_tokens must be a number, not '5'"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens must be a number"),
        ({"max_new_tokens": None}, "number of new tokens"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_computed(settings, word):
    model = Counting(Scripted(PROMPT))
    with pytest.raises(ValueError, match=word):
        Generation(model, PROMPT, **settings)
    assert model.computed == []


ODD_IDS = [
    ([5, -1], "Token id -1 is outside the vocabulary of 300 words"),
    ([5, 300], "Token id 300 is outside the vocabulary"),
    ([5, 2**31], "is outside the vocabulary"),
    ([5, 2**63], "is outside the vocabulary"),
    ([5, 10**5000], "Token id of more than 30 digits is outside the vocabulary"),
    ([5, 1.0], "Token ids are whole numbers, and 1.0 is none"),
    ([5, 1.5], "1.5 is none"),
    ([5, math.nan], "nan is none"),
    ([5, True], "True is none"),
    ([5, None], "None is none"),
    ([5, "6"], "'6' is none"),
    ([5, [6]], "[6] is none"),
    ([[5, 6]], "[5, 6] is none"),
    (5, "Token ids are a list of whole numbers, such as [1, 5, 7], not 5"),
    (None, "not None"),
    ({5: 6}, "Token ids are a list"),
    (b"ab", "Token ids are a list"),
    (np.array([5.0, 6.0]), "5.0 is none"),
    (np.array([[5, 6]]), "[5, 6] is none"),
    (np.array(5), "Token ids are a list"),
    (np.array([True]), "True is none"),
    (np.array([2**64 - 1], dtype=np.uint64), "is outside the vocabulary"),
    (np.array(["5"]), "'5' is none"),
]


@pytest.mark.parametrize("ids, words", ODD_IDS, ids=range(len(ODD_IDS)))
def test_odd_ids_are_one_sentence(models, ids, words):
    model = replace(models["opt"], config=replace(models["opt"].config, vocab_size=300))
    for use in (model.logits, model.generate, lambda ids: Generation(model, ids)):
        with pytest.raises(ValueError) as refused:
            use(ids)
        assert words in str(refused.value) and len(str(refused.value)) < 200
        assert "\n" not in str(refused.value)


def test_ids_in_every_good_form_are_the_same(models):
    model = models["opt"]
    expected = model.logits([5, 6, 7])
    for ids in ((5, 6, 7), range(5, 8), np.array([5, 6, 7]), np.array([5, 6, 7], dtype=np.uint8)):
        assert np.array_equal(model.logits(ids), expected)
        assert model.generate(ids).prompt_ids == [5, 6, 7]
    assert model.generate([np.int32(5), np.int64(6), 7]).prompt_ids == [5, 6, 7]


# Which tokens.


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_at_temperature_0_is_greedy(models, name):
    model = models[name]
    prompt = model.encode("The river rose, and when the sun came")
    expected = greedy(model, prompt, 24)
    made = model.generate(prompt, max_new_tokens=24, seed=1)
    list(made)
    ended = next((i for i, token in enumerate(expected) if token in model.eos_ids), 24)
    assert ended >= 5 and made.ids == expected[:ended]
    assert greedy(model, prompt, 0) == []


def test_a_wrong_cache_would_be_seen(models, monkeypatch):
    """The negative control: a cache without the new tokens changes what is written."""
    model = models["llama"]
    prompt = model.encode("The river rose, and when the sun came")
    expected = greedy(model, prompt, 12)
    monkeypatch.setattr(tinyflash.model.KVCache, "keep", lambda c, start, path: c.truncate(start))
    made = model.generate(prompt, max_new_tokens=12)
    list(made)
    assert made.ids != expected


def test_seeds_reproduce_and_differ(models):
    def ids(seed):
        made = models["gpt2"].generate("The", temperature=1, seed=seed, max_new_tokens=30)
        list(made)
        return made.ids

    assert ids(3) == ids(3) != ids(4)
    assert ids(None) != ids(None)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("name", ["opt", "mistral"])
def test_a_prompt_in_chunks_is_the_prompt(models, name, chunk, monkeypatch):
    model = Counting(models[name])
    ids = model.encode("The river knew every stone, and every stone knew the river.")
    whole = model.logits(ids)[-1]
    model.computed.clear()
    monkeypatch.setattr(generate, "PREFILL", chunk)
    cache = model.new_cache()
    np.testing.assert_allclose(prefill(model, ids, cache)[0], whole, rtol=1e-12, atol=1e-12)
    full, rest = divmod(len(ids), chunk)
    assert model.computed == [chunk] * full + [rest] * (rest > 0)
    assert cache.length == len(ids)


def test_a_cache_of_the_beginning_is_not_computed_again(models):
    model = Counting(models["opt"])
    ids = model.encode("The river knew every stone, and every stone knew the river.")
    cache = model.new_cache()
    prefill(model, ids[:9], cache)
    model.computed.clear()
    made = Generation(model, ids, max_new_tokens=5, cache=cache)
    list(made)
    assert model.computed[0] == len(ids) - 9
    assert made.ids == greedy(model, ids, 5)


# The way of sampling that a model's makers recommend.


@pytest.fixture
def recommending(tmp_path):
    """Opens a model that came with this generation_config.json."""

    def opened(**recommended):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))  # Windows replaces nothing mapped
        write_model(directory, CONFIGS["opt"], seed=4, chat=True)
        (directory / "generation_config.json").write_text(json.dumps(recommended))
        return tinyflash.load(directory)

    return opened


def continued(model, **settings):
    made = model.generate("The river", seed=1, max_new_tokens=12, **settings)
    list(made)
    return made.ids


RECOMMENDED = {"do_sample": True, "temperature": 1.4, "top_k": 30, "repetition_penalty": 1.3}


@pytest.mark.parametrize(
    "given, meant",
    [
        ({}, {}),
        ({"temperature": None}, {}),
        ({"temperature": 0}, {"temperature": 0, "top_k": None}),  # the penalty stays
        ({"temperature": 2.0}, {"temperature": 2.0}),  # and so does top_k, as in transformers
        ({"top_p": 0.99}, {"top_p": 0.99}),
        ({"top_k": 0}, {"top_k": None}),
        ({"repetition_penalty": 1}, {"repetition_penalty": 1.0}),
    ],
)
def test_a_model_samples_as_recommended_unless_told_otherwise(recommending, given, meant):
    model = recommending(**RECOMMENDED, eos_token_id=2)
    silent = recommending()
    meant = {"temperature": 1.4, "top_k": 30, "repetition_penalty": 1.3} | meant
    assert continued(model, **given) == continued(silent, **meant)
    chats = [
        "".join(m.chat().say("Why?", seed=1, max_new_tokens=5, **settings))
        for m, settings in ((model, given), (silent, meant))
    ]
    assert chats[0] == chats[1]
    assert continued(silent, **meant) != continued(silent)


def test_without_a_recommendation_it_is_greedy(recommending):
    for recommended in ({}, {"temperature": 1.4}, {"do_sample": False, "top_k": 30}):
        model = recommending(**recommended)
        assert model.recommended.in_force({}) == {}
        assert continued(model) == continued(model, temperature=0)
    assert continued(model) != continued(model, temperature=1.4)
    # asking for the likeliest few is asking for sampling
    assert continued(model, top_k=30) == continued(model, temperature=1.0, top_k=30)


def test_penalties_hold_where_the_likeliest_is_taken(recommending):
    """Qwen2.5-Instruct recommends one; transformers applies it with and without do_sample."""
    penalized, silent = recommending(repetition_penalty=1.3), recommending()
    assert continued(penalized) == continued(silent, repetition_penalty=1.3) != continued(silent)


@pytest.mark.parametrize(
    "name, value, meant",
    [
        ("top_k", 20.0, 20),
        ("top_k", 0, 0),
        ("top_k", None, None),
        ("temperature", 2, 2.0),
        ("temperature", 0, 0.0),
        ("temperature", None, 1.0),
        ("top_p", 1.0, 1.0),
        ("no_repeat_ngram_size", 3.0, 3),
        ("no_repeat_ngram_size", 0, 0),
        ("suppress_tokens", [5, 6], (5, 6)),
        ("suppress_tokens", None, ()),
        ("min_p", 0.1, 0.1),
        ("presence_penalty", 1, 1.0),
    ],
)
def test_numbers_of_the_file_are_taken_as_numbers(recommending, name, value, meant):
    model = recommending(do_sample=True, **{name: value})
    sampling = model.generate("The river").sampling
    ours = {"no_repeat_ngram_size": "no_repeat_ngram"}.get(name, name)
    assert getattr(sampling, ours) == meant and len(continued(model)) > 0


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("temperature", math.nan),
        ("top_k", "50"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("repetition_penalty", 0),
        ("no_repeat_ngram_size", -1),
        ("suppress_tokens", [-1]),
        ("suppress_tokens", 5),
        ("suppress_tokens", [10**6]),
        ("do_sample", "yes"),
    ],
)
def test_a_recommendation_that_makes_no_sense_is_refused(recommending, name, value):
    model = recommending(**{"do_sample": True, name: value})
    assert np.isfinite(model.logits([2, 5])).all()  # what measures a model never looks at it
    with pytest.raises(ValueError) as refused:
        model.generate("The river")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    if name not in ("suppress_tokens", "do_sample"):
        assert "generation_config.json recommends what means nothing" in str(refused.value)
        good = {"temperature": 1.0, "top_k": 5, "top_p": 0.9}.get(name, 1)
        ours = {"no_repeat_ngram_size": "no_repeat_ngram"}.get(name, name)
        assert len(continued(model, **{ours: good})) > 0  # what is said goes first


def test_what_is_recommended_and_not_done_is_said_once(recommending):
    model = recommending(num_beams=4, typical_p=0.9, bad_words_ids=[[5]], max_length=20, top_p=None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            continued(model)
            model.logits([2, 5])
    (sentence,) = [str(warning.message) for warning in said]
    assert "num_beams = 4, typical_p = 0.9, bad_words_ids = [[5]], max_length = 20" in sentence
    assert "ignored" in sentence and "\n" not in sentence


def test_settings_in_config_json_are_said_to_be_ignored(tmp_path):
    """Old checkpoints have them there; transformers 5 looks in generation_config.json alone."""
    config = CONFIGS["opt"] | {"do_sample": True, "temperature": 0.9, "top_k": 50, "num_beams": 1}
    write_model(tmp_path, config, seed=4)
    model = tinyflash.load(tmp_path)
    with pytest.warns(
        UserWarning, match=r"config\.json sets do_sample = True, temperature = 0\.9:"
    ):
        continued(model)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.9}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the two places say the same
        assert tinyflash.load(tmp_path).generate("The").sampling == Sampling(temperature=0.9)


def test_neutral_values_are_not_said_to_be_ignored(recommending):
    neutral = {"num_beams": 1, "typical_p": 1.0, "min_length": 0, "bad_words_ids": None}
    neutral |= {"max_length": 4096, "length_penalty": 1.0, "num_return_sequences": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        continued(recommending(**neutral))


# Chat.

QUESTIONS = ("Why?", "And who?", "Where?")


def uncached(model, messages, **settings):
    """What the model answers to a conversation that it has never seen."""
    ids = model.tokenizer.encode(model.tokenizer.render_chat(messages), add_special_tokens=False)
    made = model.generate(ids, **settings)
    list(made)
    return made.text


@pytest.mark.parametrize("name", CONFIGS)
def test_a_chat_answers_as_if_it_had_no_cache(models, name):
    """The random answers are no words, so their text is tokenized otherwise than they were."""
    chat, messages = models[name].chat(), []
    for turn, question in enumerate(QUESTIONS):
        settings = {"max_new_tokens": 5, "temperature": 1.0, "seed": turn}
        messages.append({"role": "user", "content": question})
        expected = uncached(models[name], messages, **settings)
        assert "".join(chat.say(question, **settings)) == expected
        messages.append({"role": "assistant", "content": expected})
        assert chat.messages == messages
    assert len(expected) > 0


@pytest.mark.parametrize("new_tokens, reason", [(50, "end"), (4, "length")])
def test_a_chat_computes_only_what_is_new(new_tokens, reason):
    first, reply = "user: Why?\nassistant: ", "the river came in the end"
    scripted = Scripted(words(first + reply))
    model = Counting(scripted)
    chat = Chat(model)
    made = chat.say("Why?", max_new_tokens=new_tokens)
    reply = "".join(made)
    assert made.stop_reason == reason and len(made.ids) >= 4
    assert model.computed[0] == len(words(first))

    cached = len(words(first)) + len(made.ids) - (reason == "length")  # the last had no use yet
    second = words(f"{first}{reply}\nuser: Who?\nassistant: ")
    scripted.script = [*second, *words("one")]
    model.computed.clear()
    made = chat.say("Who?", max_new_tokens=1)
    assert "".join(made) == "one" and made.prompt_ids == second
    assert model.computed == [len(second) - cached]


def test_the_last_token_of_a_prompt_is_computed_though_the_cache_holds_it():
    """The model went on with a question of its own, which was cut, and then the user asks it."""
    own = "user: Why?\nassistant:  the river\nuser: Who?\nassistant: "
    scripted = Scripted([*words(own), *letters("one")])
    chat = Chat(Counting(scripted))
    made = chat.say("Why?", stop=["\nuser: Who?\nassistant: o"])
    assert "".join(made) == " the river" and made.cache.length == len(words(own))
    chat.model.computed.clear()
    assert "".join(chat.say("Who?", max_new_tokens=3)) == "one"
    assert chat.model.computed == [1, 1, 1]


def test_an_interrupted_answer_stays_as_far_as_it_was_read(models):
    for name in ("opt", "llama"):
        chat = models[name].chat()
        settings = {"max_new_tokens": 30, "temperature": 1.0, "seed": 5}
        made = chat.say(QUESTIONS[0], **settings)
        heard = next(made) + next(made)
        assert made.stop_reason is None and len(made.ids) < 30
        messages = [
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": heard},
        ]
        assert chat.messages == messages
        messages.append({"role": "user", "content": QUESTIONS[1]})
        expected = uncached(models[name], messages, **settings)
        assert "".join(chat.say(QUESTIONS[1], **settings)) == expected


def test_an_answer_nobody_listened_to_is_empty(models):
    chat = models["opt"].chat()
    chat.say(QUESTIONS[0])
    expected = uncached(
        models["opt"],
        [
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": QUESTIONS[1]},
        ],
        max_new_tokens=8,
    )
    assert "".join(chat.say(QUESTIONS[1], max_new_tokens=8)) == expected


def test_a_message_that_does_not_fit_leaves_the_chat_as_it_was(models):
    chat = models["opt"].chat()
    settings = {"max_new_tokens": 5, "temperature": 1.0, "seed": 1}
    reply = "".join(chat.say(QUESTIONS[0], **settings))
    before = chat.messages
    with pytest.raises(ValueError, match="shorten the prompt"):
        chat.say(TOKENIZER_TEXT * 3, **settings)
    with pytest.raises(ValueError, match="temperature"):
        chat.say(QUESTIONS[1], temperature=-1)
    assert chat.messages == before and before[-1]["content"] == reply
    messages = [*before, {"role": "user", "content": QUESTIONS[1]}]
    expected = uncached(models["opt"], messages, **settings)
    assert "".join(chat.say(QUESTIONS[1], **settings)) == expected


def test_a_model_without_a_chat_template_does_not_converse(tmp_path):
    model = tinyflash.load(write_model(tmp_path / "mute", CONFIGS["opt"]))
    with pytest.raises(ValueError, match="has no chat template.*smollm2"):
        model.chat()
    model = tinyflash.load(write_model(tmp_path / "wordless", CONFIGS["opt"], tokenizer=False))
    with pytest.raises(ValueError, match="has no chat template"):
        model.chat()
