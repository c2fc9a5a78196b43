"""The tape: every derivative rule against finite differences, and what must be refused."""

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tinyflash.config import ModelConfig, Rope, weight_shapes
from tinyflash.ops import layer_norm, log_softmax, softmax
from tinyflash.training import derivatives
from tinyflash.training.derivatives import RULES, Piece
from tinyflash.training.tape import Traced, mean_value_and_grad, value_and_grad
from tinyflash.transformer import forward

IDS = np.array([[2, 0, 2], [1, 1, 2]], dtype=np.int64)
MASK = np.array([[True, False, True, False]])


def shifted(x):
    """Away from zero, where abs, maximum and sqrt have a kink or end."""
    return np.sign(x) * (np.abs(x) + 0.3)


def positive(x):
    return np.abs(x) + 0.3


def as_is(x):
    return x


# rule, function of the arrays, their shapes, and what their values must avoid
CASES = [
    (np.add, lambda a, b: a + b, [(3, 4), (4,)], as_is),
    (np.add, lambda a, b: a + b, [(2, 1, 4), (3, 1)], as_is),
    (np.add, lambda a: 1.5 + a, [(3, 4)], as_is),
    (np.subtract, lambda a, b: a - b, [(2, 3, 4), (2, 3, 1)], as_is),
    (np.subtract, lambda a: 1 - a, [(3, 4)], as_is),
    (np.multiply, lambda a, b: a * b, [(2, 3, 4), (4,)], as_is),
    (np.multiply, lambda a: a * a, [(3, 4)], as_is),
    (np.multiply, lambda a: a * 0.25, [(3, 4)], as_is),
    (np.divide, lambda a, b: a / b, [(2, 3, 4), (2, 3, 1)], shifted),
    (np.divide, lambda a, b: a / b, [(2, 3, 1), (3, 4)], shifted),
    (np.divide, lambda a, b: a / b, [(4,), (2, 3, 4)], shifted),
    (np.divide, lambda a: 2 / a, [(3, 4)], shifted),
    (np.power, lambda a: a**2, [(3, 4)], as_is),
    (np.power, lambda a: a**3, [(3, 4)], as_is),
    (np.power, lambda a: a**-0.5, [(3, 4)], positive),
    (np.negative, lambda a: -a, [(3, 4)], as_is),
    (np.absolute, np.abs, [(3, 4)], shifted),
    (np.square, np.square, [(3, 4)], as_is),
    (np.sqrt, np.sqrt, [(3, 4)], positive),
    (np.exp, np.exp, [(3, 4)], as_is),
    (np.log, np.log, [(3, 4)], positive),
    (np.tanh, np.tanh, [(3, 4)], as_is),
    (np.maximum, lambda a: np.maximum(a, 0), [(3, 4)], shifted),
    (np.maximum, lambda a, b: np.maximum(a, b), [(3, 4), (3, 1)], as_is),
    (np.minimum, lambda a: np.minimum(-a, 0.1), [(3, 4)], shifted),
    (np.minimum, lambda a, b: np.minimum(a, b), [(4,), (3, 4)], as_is),
    (np.where, lambda a: np.where(MASK, a, -math.inf).max(axis=-1), [(3, 4)], as_is),
    (np.where, lambda a, b: np.where(MASK, a, b), [(3, 4), (3, 1)], as_is),
    (np.where, lambda a, b: np.where([0, 2, 1, 0], a, b), [(3, 4), (3, 4)], as_is),
    (np.matmul, lambda a, b: a @ b, [(3, 4), (4, 5)], as_is),
    (np.matmul, lambda a, b: a @ b.T, [(2, 3, 4), (5, 4)], as_is),
    (np.matmul, lambda a, b: a @ b.T, [(2, 2, 3, 4), (5, 4)], as_is),
    (np.matmul, lambda a, b: a @ b.swapaxes(-1, -2), [(2, 2, 3, 4), (2, 2, 5, 4)], as_is),
    (np.matmul, lambda a, b: a @ b, [(2, 2, 3, 4), (1, 4, 5)], as_is),
    (np.matmul, lambda a, b: a @ b, [(3, 4), (2, 4, 5)], as_is),
    (np.matmul, lambda a, b: a.swapaxes(0, 1) @ b, [(3, 2, 4), (4, 5)], as_is),
    (np.sum, lambda a: np.sum(a), [(3, 4)], as_is),
    (np.sum, lambda a: a.sum(axis=0), [(3, 4)], as_is),
    (np.sum, lambda a: np.sum(a, axis=(0, -1), keepdims=True), [(2, 3, 4)], as_is),
    (np.mean, lambda a: np.mean(a), [(3, 4)], as_is),
    (np.mean, lambda a: a.mean(axis=-1, keepdims=True), [(3, 4)], as_is),
    (np.mean, lambda a: np.mean(a, axis=(0, 2)), [(2, 3, 4)], as_is),
    (np.max, lambda a: np.max(a), [(3, 4)], as_is),
    (np.max, lambda a: np.max(a, keepdims=True), [(3, 4)], as_is),
    (np.max, lambda a: a.max(axis=1), [(2, 3, 4)], as_is),
    (np.max, lambda a: np.max(a, axis=-1, keepdims=True), [(2, 3, 4)], as_is),
    (np.reshape, lambda a: a.reshape(2, 6), [(3, 4)], as_is),
    (np.reshape, lambda a: np.reshape(a.T, (-1,)), [(3, 4)], as_is),
    (np.reshape, lambda a: np.expand_dims(a, 1), [(3, 4)], as_is),
    (np.transpose, lambda a: a.T, [(2, 3, 4)], as_is),
    (np.transpose, lambda a: a.transpose(1, 2, 0), [(2, 3, 4)], as_is),
    (np.transpose, lambda a: np.transpose(a, (-1, 0, 1)), [(2, 3, 4)], as_is),
    (np.swapaxes, lambda a: a.swapaxes(-3, -1), [(2, 3, 4)], as_is),
    (np.broadcast_to, lambda a: np.broadcast_to(a, (2, 3, 4)), [(3, 1)], as_is),
    (np.concatenate, lambda a, b: np.concatenate((a, b), axis=-1), [(3, 2), (3, 4)], as_is),
    (np.concatenate, lambda a: np.concatenate([a, np.ones((1, 4), a.dtype), a]), [(3, 4)], as_is),
    (np.concatenate, lambda a, b: np.stack((a, b), axis=1), [(3, 4), (3, 4)], as_is),
    (np.take_along_axis, lambda a: np.take_along_axis(a, IDS, axis=-1), [(2, 3)], as_is),
    (np.take_along_axis, lambda a: np.take_along_axis(a, IDS, 0), [(3, 3)], as_is),
    (derivatives.getitem, lambda a: a[IDS], [(3, 4)], as_is),
    (derivatives.getitem, lambda a: a[1], [(3, 4)], as_is),
    (derivatives.getitem, lambda a: a[..., :2] * a[..., 2:], [(3, 4)], as_is),
    (derivatives.getitem, lambda a: a[:, None, ::-1], [(3, 4)], as_is),
    (derivatives.getitem, lambda a: a[IDS, 1:], [(3, 4)], as_is),
    (derivatives.getitem, lambda a: a[a.value > 0], [(3, 4)], as_is),
    (derivatives.getitem, lambda a: np.split(a, 2, axis=-1)[1], [(3, 4)], as_is),
    (derivatives.astype, lambda a: a.astype(a.dtype), [(3, 4)], as_is),
]


def two_that_share_a_gradient(a, b, earlier, shared):
    """u + v hands one and the same array to u and v; what else reaches u must not reach v."""
    u, v = 2 * a, 3 * b
    other = earlier(u)
    return (shared(u) + v) * b + other


# The same array used more than once, so that contributions of every kind meet.
REUSES = [
    lambda a, b: (a + b) * a + b,
    lambda a, b: a + a,
    lambda a, b: (a + b) + (a + b)[0],
    lambda a, b: a - np.mean(a, axis=-1, keepdims=True) + np.max(a, axis=-1, keepdims=True) * b,
    lambda a, b: a.reshape(4, 3).T + a.T.reshape(3, 4) + a[:, :1],
    lambda a, b: np.exp(a + b)[1:] * (a + b)[:-1] + a[IDS, 1:3].sum(axis=(0, 1))[0],
    lambda a, b: np.concatenate((a, b)) @ a.T + np.broadcast_to(b[0, 0], (6, 3)),
    lambda a, b: a.sum() * b.mean() + a[0, 0],
    lambda a, b: two_that_share_a_gradient(a, b, np.square, lambda u: u),
    lambda a, b: two_that_share_a_gradient(a, b, np.square, lambda u: u.T.T),
    lambda a, b: two_that_share_a_gradient(a, b, lambda u: u[1], lambda u: u),
]


def random_arrays(shapes, dtype=np.float64, prepare=as_is):
    rng = np.random.default_rng(7)
    arrays = [prepare(rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    return {f"array {i}": array for i, array in enumerate(arrays)}


def weighted_sum(function):
    """One number from an array of any shape, with a different weight for each element."""

    def loss(parameters):
        y = function(*parameters.values())
        weights = np.cos(np.arange(1, y.size + 1, dtype=y.dtype)).reshape(y.shape)
        return np.sum(y * weights)

    return loss


def finite_difference_error(loss_function, parameters, step=1e-5):
    """Largest difference between gradient and central differences, relative to the gradient.

    ∂loss/∂p ≈ (loss(p + h) - loss(p - h)) / 2h
    """
    _, gradients = value_and_grad(loss_function, parameters)
    error = 0.0
    for name, array in parameters.items():
        differences = np.empty(array.shape, dtype=np.float64)
        for index in np.ndindex(array.shape):
            losses = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * step
                losses.append(value_and_grad(loss_function, {**parameters, name: moved})[0])
            differences[index] = (losses[0] - losses[1]) / (2 * step)
        worst = np.max(np.abs(gradients[name] - differences))
        error = max(error, worst / (np.max(np.abs(differences)) + 1e-300))
    return error


def changed(rule, change):
    """The rule with `change` applied to all of its pulls."""

    def changed_rule(*args, **kwargs):
        value, *pulls = rule(*args, **kwargs)
        return value, *(pull and change(pull) for pull in pulls)

    return changed_rule


@pytest.mark.parametrize("case", range(len(CASES)))
def test_rule_agrees_with_finite_differences(case):
    _, function, shapes, prepare = CASES[case]
    parameters = random_arrays(shapes, prepare=prepare)
    assert finite_difference_error(weighted_sum(function), parameters) < 1e-8


@pytest.mark.parametrize("function", REUSES)
def test_contributions_of_several_uses_add_up(function):
    parameters = random_arrays([(3, 4), (3, 4)])
    assert finite_difference_error(weighted_sum(function), parameters) < 1e-8


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == set(RULES)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_rule_that_is_one_percent_wrong_is_caught(case, monkeypatch):
    rule, function, shapes, prepare = CASES[case]
    fault = changed(RULES[rule], lambda pull: lambda g: pull(g * 1.01))
    monkeypatch.setitem(RULES, rule, fault)
    parameters = random_arrays(shapes, prepare=prepare)
    assert finite_difference_error(weighted_sum(function), parameters) > 1e-3


@pytest.mark.parametrize(
    "rule, wrong",
    [
        (np.tanh, lambda x: (np.tanh(x), lambda g: g * (1 - np.tanh(x)))),
        (np.sqrt, lambda x: (np.sqrt(x), lambda g: g / np.sqrt(x))),
        (np.subtract, lambda a, b: (a - b, lambda g: g, lambda g: g)),
        (np.divide, lambda a, b: (a / b, lambda g: g / b, lambda g: -g * a / b)),
        (np.where, lambda m, a, b: (np.where(m, a, b), None, lambda g: g, lambda g: g)),
    ],
)
def test_a_mistaken_formula_is_caught(rule, wrong, monkeypatch):
    monkeypatch.setitem(RULES, rule, wrong)
    errors = [
        finite_difference_error(weighted_sum(function), random_arrays(shapes, prepare=prepare))
        for key, function, shapes, prepare in CASES
        if key is rule
    ]
    assert max(errors) > 1e-2


def watch_for_other_dtypes(monkeypatch):
    """A list that fills with every rule whose value or pulled gradient is not float32."""
    found = []

    def watched(key, rule):
        def checked(result):
            array = result.gradient if isinstance(result, Piece) else result
            if array.dtype != np.float32:
                found.append((key, array.dtype))
            return result

        def watched_rule(*args, **kwargs):
            value, *pulls = rule(*args, **kwargs)
            checked(value)
            return value, *(pull and (lambda g, pull=pull: checked(pull(g))) for pull in pulls)

        return watched_rule

    for key, rule in list(RULES.items()):
        monkeypatch.setitem(RULES, key, watched(key, rule))
    return found


@pytest.mark.parametrize("case", range(len(CASES)))
def test_float32_stays_float32(case, monkeypatch):
    _, function, shapes, prepare = CASES[case]
    found = watch_for_other_dtypes(monkeypatch)
    parameters = random_arrays(shapes, np.float32, prepare)
    _, gradients = value_and_grad(weighted_sum(function), parameters)
    assert found == []
    for name, parameter in parameters.items():
        assert gradients[name].dtype == np.float32
        assert gradients[name].shape == parameter.shape


def test_a_rule_that_promotes_is_caught(monkeypatch):
    two = np.float64(2)  # an array scalar promotes, a Python number does not
    monkeypatch.setitem(RULES, np.square, lambda x: (x * x, lambda g: g * (two * x)))
    found = watch_for_other_dtypes(monkeypatch)
    parameters = random_arrays([(3, 4)], np.float32)
    _, gradients = value_and_grad(weighted_sum(lambda x: np.square(np.exp(x))), parameters)
    assert found == [(np.square, np.float64)]  # and the tape casts it back before exp
    assert gradients["array 0"].dtype == np.float32


def test_at_a_tie_one_element_takes_the_whole_gradient():
    x = {"x": np.array([0.0, 2.0, 2.0, -1.0], dtype=np.float64)}
    _, of_relu = value_and_grad(lambda p: np.sum(np.maximum(p["x"], 0)), x)
    _, of_twice = value_and_grad(lambda p: np.sum(np.maximum(p["x"], p["x"])), x)
    _, of_max = value_and_grad(lambda p: np.max(p["x"]), x)
    assert of_relu["x"].tolist() == [0, 1, 1, 0]
    assert of_twice["x"].tolist() == [1, 1, 1, 1]
    assert of_max["x"].tolist() == [0, 1, 0, 0]


def attention_loss(p):
    """Causal attention with one layer norm, and the cross-entropy of four tokens."""
    x = layer_norm(p["embed"][IDS], p["gain"], p["bias"], 1e-5)  # (2, 3, 4)
    scores = x @ p["q"] @ x.swapaxes(-1, -2) * 0.5
    causal = np.tri(3, dtype=bool)
    z = softmax(np.where(causal, scores, -math.inf)) @ x
    logits = (x + z) @ p["embed"].T
    return -np.mean(np.take_along_axis(log_softmax(logits), IDS[..., None], axis=-1))


def attention_parameters(dtype):
    rng = np.random.default_rng(3)
    shapes = {"embed": (3, 4), "gain": (4,), "bias": (4,), "q": (4, 4)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def test_a_whole_loss_agrees_with_finite_differences():
    assert finite_difference_error(attention_loss, attention_parameters(np.float64)) < 1e-8


def model_config(**switches):
    sizes = dict(vocab_size=11, width=12, layers=2, heads=3, kv_heads=3, head_width=4)
    sizes |= dict(ffn_width=10, context=8, embed_width=12)
    return ModelConfig(family="test", **(sizes | switches))


MODELS = {
    "opt": model_config(position_offset=2),
    "opt, norm after, narrow embedding": model_config(
        norm_after=True, final_norm=False, embed_width=6
    ),
    "gpt2": model_config(activation="gelu_new"),
    "llama": model_config(
        kv_heads=1, activation="silu", gated=True, norm="rms", positions="rotary", rope=Rope(),
        window=3, qkv_bias=False, out_bias=False, ffn_bias=False, tied=False
    ),
}  # fmt: skip


def model_loss(config):
    ids = np.random.default_rng(5).integers(0, config.vocab_size, (2, 6))

    def loss(weights):
        log_probs = log_softmax(forward(weights, config, ids[:, :-1]))
        return -np.mean(np.take_along_axis(log_probs, ids[:, 1:, None], axis=-1))

    return loss


def model_weights(config, dtype):
    rng = np.random.default_rng(1)
    shapes = weight_shapes(config).items()
    return {name: (0.3 + 0.4 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes}


@pytest.mark.parametrize("name", MODELS)
def test_a_models_loss_agrees_with_finite_differences(name):
    """Along one random direction for each weight tensor."""
    loss, weights = model_loss(MODELS[name]), model_weights(MODELS[name], np.float64)
    _, gradients = value_and_grad(loss, weights)
    rng = np.random.default_rng(2)
    slopes, differences = [], []
    for key, weight in weights.items():
        direction = rng.standard_normal(weight.shape)
        slopes.append(np.sum(gradients[key] * direction))
        ends = [loss({**weights, key: weight + h * direction}) for h in (1e-5, -1e-5)]
        differences.append((ends[0] - ends[1]) / 2e-5)
    np.testing.assert_allclose(slopes, differences, rtol=1e-6, atol=1e-9)
    assert np.count_nonzero(np.abs(slopes) > 1e-6) > 0.8 * len(slopes)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_float32_has_float32_gradients(name, monkeypatch):
    found = watch_for_other_dtypes(monkeypatch)
    weights = model_weights(MODELS[name], np.float32)
    _, gradients = value_and_grad(model_loss(MODELS[name]), weights)
    assert found == []
    assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(np.float32)}
    assert list(gradients) == list(weights)


def test_the_value_is_that_of_the_untraced_code():
    parameters = attention_parameters(np.float64)
    value, _ = value_and_grad(attention_loss, parameters)
    assert math.isclose(value, attention_loss(parameters), rel_tol=1e-14)


def test_an_array_under_two_names_is_one_parameter():
    W = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float64)

    def loss(p):
        return np.sum(p["first"] * 2 + p["second"] * p["second"])

    _, gradients = value_and_grad(loss, {"first": W, "second": W})
    assert list(gradients) == ["first"]
    np.testing.assert_array_equal(gradients["first"], 2 + 2 * W)


def test_gradients_belong_to_the_caller():
    parameters = random_arrays([(3, 4), (3, 4), (5,)], np.float32)
    _, gradients = value_and_grad(weighted_sum(lambda a, b, c: a + b), parameters)
    first, second, unused = gradients.values()
    assert np.array_equal(first, second) and not np.shares_memory(first, second)
    assert unused.tolist() == [0] * 5
    for gradient in gradients.values():
        assert gradient.flags.writeable and gradient.flags.c_contiguous


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    config = MODELS["opt"]
    weights = model_weights(config, np.float64)
    ids = np.random.default_rng(4).integers(0, config.vocab_size, (6, 5))

    def loss(weights, ids):
        log_probs = log_softmax(forward(weights, config, ids))
        return -np.mean(np.take_along_axis(log_probs, ids[..., None], axis=-1))

    whole_loss, whole = value_and_grad(lambda weights: loss(weights, ids), weights)
    with ThreadPoolExecutor(2) as executor:
        parts = np.split(ids, 3)
        part_loss, gradients = mean_value_and_grad(loss, weights, parts, executor)
        again = mean_value_and_grad(loss, weights, parts, executor)
    assert math.isclose(part_loss, whole_loss, rel_tol=1e-12)
    assert again[0] == part_loss
    for name in whole:
        np.testing.assert_allclose(gradients[name], whole[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(gradients[name], again[1][name])


def peak_of(loss_function, parameters):
    """Most memory held at once while the gradient is taken, in arrays of the parameter's size."""
    tracemalloc.start()
    value_and_grad(loss_function, parameters)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / parameters["x"].nbytes


def repeated(function):
    def loss(p):
        x = p["x"]
        for _ in range(40):
            x = function(x)
        return np.sum(x)

    return loss


def test_memory_holds_only_what_the_backward_pass_needs():
    x = {"x": np.full((256, 256), 0.5, dtype=np.float32)}
    assert 40 < peak_of(repeated(np.tanh), x) < 46  # each output, and a few for the gradients
    assert peak_of(repeated(lambda x: x + 1), x) < 6  # nothing to keep


def test_comparing_gives_plain_arrays():
    def loss(p):
        mask = p["x"] > 0
        assert type(mask) is np.ndarray and mask.dtype == bool
        assert type(np.argmax(p["x"], axis=-1)) is np.ndarray
        assert len(p["x"]) == 3 and p["x"].ndim == 2 and p["x"].size == 12
        return np.sum(np.where(mask, p["x"], 0))

    x = random_arrays([(3, 4)])["array 0"]
    _, gradients = value_and_grad(loss, {"x": x})
    np.testing.assert_array_equal(gradients["x"], x > 0)


def in_place(x):
    x += 1


def into_a_plain_array(x):
    total = np.zeros((3, 4), dtype=np.float64)
    total += x


def assign(x):
    x[0] = 1


def assign_to_a_plain_array(x):
    np.zeros((3, 4), dtype=np.float64)[:] = x


def nested(x):
    value_and_grad(lambda p: np.sum(p["y"] * x), {"y": np.ones((3, 4), dtype=np.float64)})


@pytest.mark.parametrize(
    "forbidden, sentence",
    [
        (np.cumsum, "no derivative rule for numpy.cumsum; add one to RULES"),
        (np.arctan, "no derivative rule for numpy.arctan; add one to RULES"),
        (lambda x: 2**x, "no derivative rule for this argument of numpy.power"),
        (lambda x: np.where(x, 1.0, 0.0), "no derivative rule for this argument of numpy.where"),
        (lambda x: np.add.reduce(x), "no derivative rule for numpy.add with options or methods"),
        (lambda x: np.exp(x, dtype=np.float64), "no derivative rule for numpy.exp with options"),
        (lambda x: np.exp(x, out=np.empty((3, 4))), "numpy.exp would write in place"),
        (in_place, "numpy.add would write in place"),
        (into_a_plain_array, "numpy.add would write in place"),
        (assign, "cannot be written into"),
        (assign_to_a_plain_array, "cannot become a plain one"),
        (np.asarray, "cannot become a plain one"),
        (float, "cannot become a plain one"),
        (math.sqrt, "cannot become a plain one"),
        (bool, "cannot become a plain one"),
        (lambda x: np.sum(a=x), "numpy.sum takes traced arrays by position"),
        (lambda x: x[0] @ x.T, "numpy.matmul takes matrices"),
        (lambda x: x.astype(np.int64), "As int64 a traced array has no gradient"),
        (nested, "all of them from one tape"),
        (lambda x: 1.0, "must return one number"),
        (lambda x: x, "must return one number"),
    ],
)
def test_what_a_tape_cannot_follow_is_refused(forbidden, sentence):
    with pytest.raises(TypeError, match=sentence):
        value_and_grad(lambda p: forbidden(p["x"]), {"x": np.ones((3, 4), dtype=np.float64)})


def test_constants_need_no_tape():
    """A loss may mix traced and plain arrays on either side of an operator."""
    constant = np.arange(12, dtype=np.float64).reshape(3, 4)

    def loss(p):
        assert isinstance(constant * p["x"], Traced)
        return np.sum(constant * p["x"] - p["x"] / (1 + constant))

    _, gradients = value_and_grad(loss, {"x": np.ones((3, 4), dtype=np.float64)})
    np.testing.assert_allclose(gradients["x"], constant - 1 / (1 + constant))
