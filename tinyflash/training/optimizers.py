"""What turns gradients into better weights: AdamW, its learning rate over time, and clipping.

Parameters, gradients and state are dicts of arrays, written in place. The state holds everything
that the next step depends on, so a run saved with it and resumed repeats itself bit for bit.
"""

import math

import numpy as np


def adamw_init(parameters):
    """The state before the first step: no steps, moments of zero.

    returns: {"step": 0, "first": {name: m}, "second": {name: v}}, each moment an array of its
             parameter's shape and dtype
    """
    return {"step": 0, "first": zeros_like_each(parameters), "second": zeros_like_each(parameters)}


def zeros_like_each(arrays):
    """Zeros of the same shapes and dtypes, under the same names."""
    return {name: np.zeros(array.shape, dtype=array.dtype) for name, array in arrays.items()}


def adamw_step(
    parameters,
    gradients,
    state,
    learning_rate,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    decays=None,
):
    """One step of Adam with decoupled weight decay, in place.

        m ← β₁ m + (1 - β₁) g                  v ← β₂ v + (1 - β₂) g²
        w ← w - η (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε) - η λ w

    (Adam, arXiv 1412.6980, algorithm 1; decoupled weight decay, arXiv 1711.05101, algorithm 2,
    with the learning rate η also in front of the decay λ, as in PyTorch.)

    gradients     : dict name -> array; parameters that it does not name stay as they are
    state         : what adamw_init returned; it is advanced by one step
    learning_rate : η of this step
    decays        : function from a name to whether that parameter decays, or None for matrices
                    only: there is nothing to gain from pulling biases and norms to zero
    raises        : ValueError if a gradient has another shape than its parameter
    """
    for name, g in gradients.items():
        if g.shape != parameters[name].shape:
            raise ValueError(
                f"The gradient of {name} has shape {g.shape}, its parameter "
                f"{parameters[name].shape}; take both from the same model."
            )
    state["step"] += 1
    beta1, beta2 = betas
    step_size = learning_rate / (1 - beta1 ** state["step"])
    scale = 1 / math.sqrt(1 - beta2 ** state["step"])
    for name, g in gradients.items():
        w, m, v = parameters[name], state["first"][name], state["second"][name]
        decaying = g.ndim >= 2 if decays is None else decays(name)
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        if decaying:
            w *= 1 - learning_rate * weight_decay
        w -= step_size * m / (scale * np.sqrt(v) + eps)


def clip_by_global_norm(gradients, limit):
    """Scale all gradients down together, in place, so that their common norm is at most `limit`.

    g ← g · min(1, limit / ‖g‖),  ‖g‖² = Σ over all elements of all gradients
    (On the difficulty of training recurrent neural networks, arXiv 1211.5063, algorithm 1)

    returns: float, the norm before clipping
    raises : ValueError if the norm is not finite
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if not math.isfinite(norm):
        raise ValueError(f"The gradient's norm is {norm}; lower the learning rate.")
    if norm > limit:
        for gradient in gradients.values():
            gradient *= limit / norm
    return norm


def cosine_schedule(step, *, total_steps, warmup_steps, peak, floor=0.0):
    """The learning rate of one step: up in a straight line, then down along half a cosine.

        peak · (step + 1) / warmup_steps                              for step < warmup_steps
        floor + (peak - floor) · ½ (1 + cos(π · progress))            afterwards

    (SGDR, arXiv 1608.03983, eq. 5, one period.) `progress` runs from 0 at the end of the warm-up,
    where the rate is `peak`, to 1 at `total_steps`; the rate stays at `floor` from there on.

    step  : counted from 0
    raises: ValueError unless 0 ≤ warmup_steps < total_steps
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"A warm-up of {warmup_steps} steps does not fit into {total_steps} steps; shorten it."
        )
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
