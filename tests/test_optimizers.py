"""AdamW against a recursion on plain numbers and against PyTorch; the schedule; clipping."""

import copy
import math

import numpy as np
import pytest

from tinyflash.training.optimizers import (
    adamw_init,
    adamw_step,
    clip_by_global_norm,
    cosine_schedule,
)

RATES = [0.01, 0.02, 0.005, 0.03, 0.01, 0.002]


def random_dict(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = {"matrix": (3, 4), "bias": (4,), "cube": (2, 2, 3)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def adamw_on_numbers(w, gradients, decay, beta1=0.9, beta2=0.95, eps=1e-8):
    """Loshchilov & Hutter's algorithm 2 for one weight, written down as it stands there."""
    m = v = 0.0
    for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        w = w - rate * m_hat / (math.sqrt(v_hat) + eps) - rate * decay * w
    return w


def run(parameters, dtype=np.float64, **options):
    state = adamw_init(parameters)
    for step, rate in enumerate(RATES):
        adamw_step(parameters, random_dict(step + 1, dtype), state, rate, **options)
    return state


def test_adamw_is_the_papers_recursion():
    parameters, before = random_dict(0), random_dict(0)
    run(parameters, weight_decay=0.1)
    for name, array in parameters.items():
        decay = 0.0 if name == "bias" else 0.1
        for index in np.ndindex(array.shape):
            gradients = [random_dict(step + 1)[name][index] for step in range(len(RATES))]
            expected = adamw_on_numbers(before[name][index], gradients, decay)
            assert math.isclose(array[index], expected, rel_tol=1e-12)


@pytest.mark.live
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_adamw_is_pytorchs(dtype, tolerance):
    import torch

    parameters = random_dict(0, dtype)
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in parameters.items()}
    optimizer = torch.optim.AdamW(theirs.values(), betas=(0.9, 0.95), weight_decay=0.1)
    run(parameters, dtype, weight_decay=0.1, decays=lambda name: True)
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        for name, gradient in random_dict(step + 1, dtype).items():
            theirs[name].grad = torch.tensor(gradient)
        optimizer.step()
    for name, array in parameters.items():
        np.testing.assert_allclose(array, theirs[name].detach().numpy(), rtol=tolerance, atol=1e-7)


def test_a_resumed_run_is_the_same_bit_for_bit():
    straight, resumed = random_dict(0, np.float32), random_dict(0, np.float32)
    first, second = adamw_init(straight), adamw_init(resumed)
    for step in range(6):
        gradients = random_dict(step + 1, np.float32)
        adamw_step(straight, gradients, first, 0.01)
        adamw_step(resumed, gradients, second, 0.01)
        resumed, second = copy.deepcopy((resumed, second))
    assert first["step"] == second["step"] == 6
    for name in straight:
        assert straight[name].tobytes() == resumed[name].tobytes()
        assert first["first"][name].tobytes() == second["first"][name].tobytes()
        assert first["second"][name].tobytes() == second["second"][name].tobytes()


def test_everything_the_step_depends_on_is_in_the_state():
    """Leaving out any one entry changes the next step."""
    for lost in ("step", "first", "second"):
        weights = random_dict(0, np.float32)
        state = run(weights, np.float32)
        damaged, damaged_weights = copy.deepcopy((state, weights))
        damaged[lost] = adamw_init(weights)[lost]
        adamw_step(weights, random_dict(9, np.float32), state, 0.01)
        adamw_step(damaged_weights, random_dict(9, np.float32), damaged, 0.01)
        assert not np.array_equal(weights["matrix"], damaged_weights["matrix"])


def test_float32_stays_float32_and_arrays_stay_in_place():
    parameters = random_dict(0, np.float32)
    before = dict(parameters)
    state = run(parameters, np.float32)
    for name in parameters:
        assert parameters[name] is before[name]
        arrays = parameters[name], state["first"][name], state["second"][name]
        assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_decay_acts_on_matrices_or_on_the_names_it_is_given():
    for decays, expected in ((None, {"matrix", "cube"}), (lambda name: name == "bias", {"bias"})):
        parameters, before = random_dict(0), random_dict(0)
        zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
        adamw_step(parameters, zeros, adamw_init(parameters), 0.5, weight_decay=0.2, decays=decays)
        for name in parameters:
            factor = 0.9 if name in expected else 1.0
            np.testing.assert_allclose(parameters[name], factor * before[name], rtol=1e-15)


def test_parameters_without_a_gradient_stay():
    parameters, before = random_dict(0), random_dict(0)
    gradients = {"bias": random_dict(1)["bias"]}
    adamw_step(parameters, gradients, adamw_init(parameters), 0.1)
    assert not np.array_equal(parameters["bias"], before["bias"])
    np.testing.assert_array_equal(parameters["matrix"], before["matrix"])


def test_a_gradient_of_another_shape_is_refused_before_anything_is_written():
    parameters, before = random_dict(0), random_dict(0)
    gradients = random_dict(1)
    gradients["cube"] = gradients["cube"][:1]
    state = adamw_init(parameters)
    with pytest.raises(ValueError, match="gradient of cube has shape"):
        adamw_step(parameters, gradients, state, 0.1)
    assert state["step"] == 0
    np.testing.assert_array_equal(parameters["matrix"], before["matrix"])


def test_adamw_finds_a_minimum():
    parameters = {"x": np.array([5.0, -3.0], dtype=np.float64)}
    goal = np.array([1.0, 2.0], dtype=np.float64)
    state = adamw_init(parameters)
    for step in range(400):
        rate = cosine_schedule(step, total_steps=400, warmup_steps=10, peak=0.2)
        adamw_step(parameters, {"x": 2 * (parameters["x"] - goal)}, state, rate)
    np.testing.assert_allclose(parameters["x"], goal, atol=1e-3)


def test_clipping_keeps_the_direction_and_limits_the_norm():
    gradients = {"a": np.array([3.0, 0.0], dtype=np.float32), "b": np.full((1, 1), 4.0, np.float32)}
    a = gradients["a"]
    assert clip_by_global_norm(gradients, 1.0) == 5.0
    assert gradients["a"] is a and a.dtype == np.float32
    np.testing.assert_allclose(a, [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(gradients["b"], [[0.8]], rtol=1e-6)


def test_a_small_gradient_is_not_clipped():
    gradients, before = random_dict(1), random_dict(1)
    norm = clip_by_global_norm(gradients, 1e6)
    flat = np.concatenate([array.ravel() for array in before.values()])
    assert math.isclose(norm, np.linalg.norm(flat), rel_tol=1e-12)
    for name in before:
        np.testing.assert_array_equal(gradients[name], before[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused(bad):
    gradients = random_dict(1)
    gradients["cube"][0, 1, 2] = bad
    with pytest.raises(ValueError, match="lower the learning rate"):
        clip_by_global_norm(gradients, 1.0)


def test_schedule_rises_to_the_peak_and_falls_to_the_floor():
    shape = dict(total_steps=110, warmup_steps=10, peak=2.0, floor=0.5)
    rates = [cosine_schedule(step, **shape) for step in range(111)]
    assert rates[0] == 0.2
    assert rates[9] == rates[10] == 2.0
    np.testing.assert_allclose(np.diff(rates[:10]), 0.2)
    assert math.isclose(rates[60], (2.0 + 0.5) / 2)  # half-way down
    assert math.isclose(rates[35], 0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)  # cos 45°
    assert rates[110] == 0.5 and cosine_schedule(1000, **shape) == 0.5
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_schedule_without_warmup_begins_at_the_peak():
    assert cosine_schedule(0, total_steps=5, warmup_steps=0, peak=1.0) == 1.0


@pytest.mark.parametrize("warmup", [-1, 5, 6])
def test_a_warmup_that_does_not_fit_is_refused(warmup):
    with pytest.raises(ValueError, match="does not fit"):
        cosine_schedule(0, total_steps=5, warmup_steps=warmup, peak=1.0)
