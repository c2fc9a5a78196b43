"""The gradient of every family's whole loss: against finite differences, and against torch."""

import numpy as np
import pytest

from tinyflash.config import weight_shapes
from tinyflash.families import read_config, tensor_names
from tinyflash.training import derivatives
from tinyflash.training.language_model import loss_and_activity, next_token_loss
from tinyflash.training.tape import value_and_grad

LLAMA = {
    "model_type": "llama",
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 59,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 36,
    "max_position_embeddings": 32,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 20,
    "n_layer": 2,
    "n_head": 5,
    "n_inner": 44,
    "n_positions": 32,
}
FALCON = {
    "model_type": "falcon",
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "ffn_hidden_size": 40,
    "max_position_embeddings": 32,
}
PHI = {
    "model_type": "phi",
    "vocab_size": 53,
    "hidden_size": 30,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": True,
    "max_position_embeddings": 32,
}
CONFIGS = {
    "opt": OPT,
    "opt-350m": OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 14},
    "opt-untied": OPT | {"tie_word_embeddings": False, "enable_bias": False},
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama-tied": LLAMA | {"tie_word_embeddings": True, "attention_bias": False},
    "mistral": {key: value for key, value in LLAMA.items() if not key.endswith("_bias")}
    | {"model_type": "mistral", "sliding_window": 4},
    "mobilellm": LLAMA
    | {"model_type": "mobilellm", "share_embedding": True, "layer_sharing": True}
    | {"num_hidden_layers": 1, "hidden_act": "relu"},
    "qwen2": {key: value for key, value in LLAMA.items() if not key.endswith("_bias")}
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}
    | {"max_window_layers": 1},
    "gemma": {key: value for key, value in LLAMA.items() if key != "mlp_bias"}
    | {"model_type": "gemma", "hidden_act": "gelu", "tie_word_embeddings": True},
    "phi": PHI,
    "persimmon": {key: value for key, value in PHI.items() if key != "qk_layernorm"}
    | {"model_type": "persimmon", "num_attention_heads": 5, "partial_rotary_factor": 0.67},
    "falcon": FALCON,
    "falcon-40b": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon-rw": FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 61,
        "dim": 20,
        "hidden_dim": 44,
        "n_layers": 2,
        "n_heads": 5,
        "max_position_embeddings": 32,
    },
}
NOT_IN_TRANSFORMERS = ("mobilellm",)


def random_problem(name, seed=7):
    """A model of the family with every parameter random in float64, and token ids (2, 10)."""
    hf = CONFIGS[name]
    config = read_config(hf)
    rng = np.random.default_rng(seed)
    weights = {}
    gain = 0.0 if config.norm_plus_one else 1.0
    for key, shape in weight_shapes(config).items():
        center = gain if len(shape) == 1 and key.endswith("weight") else 0.0
        weights[key] = center + 0.3 * rng.standard_normal(shape)
    # torch's embedding of OPT's padding token (1) has no gradient, so it stays out of the text
    return hf, config, weights, rng.integers(3, config.vocab_size, (2, 10))


def largest_error(loss, weights, gradients, seed=3, step=3e-6):
    """Largest relative error, over parameters, of the slope along a random direction."""
    rng = np.random.default_rng(seed)
    errors = {}
    for name, weight in weights.items():
        direction = rng.standard_normal(weight.shape)
        above = loss(weights | {name: weight + step * direction})
        below = loss(weights | {name: weight - step * direction})
        slope = (above - below) / (2 * step)
        claimed = float(np.sum(gradients[name] * direction))
        errors[name] = abs(slope - claimed) / (abs(slope) + 1e-3)
    return max(errors.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_gradient_equals_finite_differences(name):
    _, config, weights, ids = random_problem(name)

    def loss(parameters):
        return next_token_loss(parameters, config, ids)

    value, gradients = value_and_grad(loss, weights)
    assert value == pytest.approx(float(loss(weights)), rel=1e-12)
    assert all(np.any(gradient) for gradient in gradients.values())
    assert largest_error(loss, weights, gradients) < 1e-5


def test_sparse_loss_gradient_equals_finite_differences():
    _, config, weights, ids = random_problem("opt")

    def loss(parameters):
        return loss_and_activity(parameters, config, ids, 0.4)[0]

    _, gradients = value_and_grad(loss, weights)
    assert largest_error(loss, weights, gradients) < 1e-5


def test_a_wrong_derivative_rule_is_caught(monkeypatch):
    _, config, weights, ids = random_problem("opt")

    def loss(parameters):
        return next_token_loss(parameters, config, ids)

    def wrong_sqrt(x):
        y = np.sqrt(x)
        return y, lambda g: g / y  # without the ½

    monkeypatch.setitem(derivatives.RULES, np.sqrt, wrong_sqrt)
    _, gradients = value_and_grad(loss, weights)
    assert largest_error(loss, weights, gradients) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_gradients_stay_float32(name):
    _, config, weights, ids = random_problem(name)
    weights = {key: weight.astype(np.float32) for key, weight in weights.items()}
    _, gradients = value_and_grad(lambda w: next_token_loss(w, config, ids), weights)
    assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(np.float32)}


@pytest.mark.live
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in NOT_IN_TRANSFORMERS])
def test_loss_gradient_equals_torch(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    hf, config, weights, ids = random_problem(name)
    settings = {key: value for key, value in hf.items() if key != "model_type"}
    dropped = {"dropout": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    theirs = AutoConfig.for_model(hf["model_type"], **settings, **dropped)
    auto = AutoModelForCausalLM if config.causal else AutoModelForMaskedLM
    # its eager attention adds Falcon's ALiBi twice
    attention = "sdpa" if config.positions == "alibi" else "eager"
    model = auto.from_config(theirs, attn_implementation=attention).double().eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for ours, place in ((key, tensor_names(config)[key]) for key in weights):
            whole = parameters[place.name]
            rows = whole.T if place.transposed else whole
            rows[place.rows(len(rows))] = torch.from_numpy(weights[ours])
    logits = model(torch.from_numpy(ids[:, :-1])).logits
    targets = torch.from_numpy(ids[:, 1:])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()

    value, gradients = value_and_grad(lambda w: next_token_loss(w, config, ids), weights)
    assert value == pytest.approx(loss.item(), rel=1e-6)  # their softmax is float32
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for ours, gradient in gradients.items():
        place = tensor_names(config)[ours]
        whole = parameters[place.name].grad
        whole = whole.T if place.transposed else whole
        expected = whole[place.rows(len(whole))].numpy()
        # relative to the gradient's own size; one that is zero but for rounding (a key's bias
        # shifts all scores alike) is held to the size of the others
        error = np.abs(gradient - expected).max() / (np.abs(expected).max() + 0.01 * largest)
        assert error < 1e-5, ours
