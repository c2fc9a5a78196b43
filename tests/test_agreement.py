"""What a config.json says twice, or leaves out: one rule for all of it (families/agreement.py)."""

import json

import pytest
from helpers_models import CONFIGS, write_model
from test_families import (
    DISTILBERT,
    FALCON_7B,
    FALCON_40B,
    GEMMA_2B,
    GPT2,
    LLAMA_2_7B,
    LLAMA_3_1_8B,
    MISTRAL_7B,
    MOBILELLM_125M,
    MOBILELLM_LS_125M,
    OPT_6_7B,
    PARAMETERS,
    PERSIMMON_8B,
    PHI_2,
    QWEN2_05B,
    refused,
)

import tinyflash
from tinyflash.config import Rope
from tinyflash.families import FAMILIES, read_config
from tinyflash.families.agreement import ALIASES, NULLABLE
from tinyflash.families.ignored import GENERATION, IGNORED

LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = LLAMA_3_1_8B["rope_scaling"]
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


# Rotary positions, which have three places.


@pytest.mark.parametrize(
    "keys, rope",
    [
        # what an edited file of transformers 5 has: the plain one that it wrote, and the new one
        ({"rope_parameters": PLAIN, "rope_scaling": LINEAR}, Rope(10000.0, "linear", 4.0)),
        (
            {"rope_parameters": PLAIN | {"rope_theta": 5.0}, "rope_scaling": LINEAR}
            | {"rope_theta": 5.0},
            Rope(5.0, "linear", 4.0),
        ),
        ({"rope_parameters": PLAIN, "rope_theta": 10000}, Rope(10000.0)),
        ({"rope_parameters": PLAIN, "rope_scaling": None, "rope_theta": None}, Rope(10000.0)),
        ({"rope_parameters": PLAIN, "rope_scaling": {}}, Rope(10000.0)),
        ({"rope_parameters": {}, "rope_scaling": {}}, Rope(10000.0)),
        ({"rope_scaling": LINEAR | {"rope_type": "linear"}}, Rope(10000.0, "linear", 4.0)),
        ({"rope_scaling": LINEAR | {"rope_theta": 7.0}}, Rope(7.0, "linear", 4.0)),
        ({"rope_parameters": LINEAR, "rope_scaling": LINEAR}, Rope(10000.0, "linear", 4.0)),
        # notes and factors of one
        ({"rope_scaling": {"type": "default", "factor": 1.0}}, Rope(10000.0)),
        ({"rope_scaling": LINEAR | {"finetuned": True}}, Rope(10000.0, "linear", 4.0)),
        (
            {"rope_scaling": LINEAR | {"original_max_position_embeddings": 9}},
            Rope(10000.0, "linear", 4.0),
        ),
        ({"partial_rotary_factor": 1.0}, Rope(10000.0)),
        # transformers fills it in from max_position_embeddings
        (
            {"rope_scaling": without(LLAMA3, "original_max_position_embeddings")},
            Rope(10000.0, "llama3", 8.0, 1.0, 4.0, 4096),
        ),
    ],
)
def test_rope_settings_in_several_places(keys, rope):
    assert read_config(LLAMA_2_7B | keys).rope == rope


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "hf_config, keys, words",
    [
        (LLAMA_2_7B, {"rope_parameters": PLAIN, "rope_scaling": YARN}, "'yarn'"),
        (LLAMA_2_7B, {"rope_parameters": YARN, "rope_scaling": LINEAR}, "contradicts"),
        (LLAMA_2_7B, {"rope_parameters": YARN}, "'yarn'"),
        (LLAMA_2_7B, {"rope_parameters": LINEAR | {"factor": 2.0}, "rope_scaling": LINEAR}, "2.0"),
        (LLAMA_2_7B, {"rope_parameters": LLAMA3, "rope_scaling": LINEAR}, "contradicts"),
        (LLAMA_2_7B, {"rope_parameters": LLAMA3, "rope_scaling": PLAIN}, "contradicts"),
        # transformers would drop the 500000 without a word
        (
            LLAMA_2_7B,
            {"rope_parameters": PLAIN | {"rope_theta": 5e5}, "rope_scaling": LINEAR},
            "rope_theta in rope_parameters is 500000.0",
        ),
        (LLAMA_2_7B, {"rope_parameters": PLAIN, "rope_theta": 5e5}, "rope_theta is 500000.0"),
        (LLAMA_2_7B, {"rope_scaling": PLAIN, "rope_theta": 5e5}, "rope_theta is 500000.0"),
        (LLAMA_2_7B, {"rope_scaling": LINEAR | {"rope_type": "default"}}, "type in rope_scaling"),
        (LLAMA_2_7B, {"rope_scaling": LINEAR | {"rope_type": "llama3"}}, "contradicts"),
        (LLAMA_2_7B, {"rope_scaling": {"factor": 4.0}}, "'factor' to 4.0"),
        (LLAMA_2_7B, {"rope_scaling": without(LLAMA3, "rope_type")}, "'factor' to 8.0"),
        (LLAMA_2_7B, {"rope_scaling": LINEAR | {"low_freq_factor": 1.0}}, "'low_freq_factor'"),
        (LLAMA_2_7B, {"rope_scaling": LINEAR | {"beta_fast": 32}}, "'beta_fast'"),
        (LLAMA_2_7B, {"rope_scaling": LINEAR | {"surprise": 32}}, "'surprise'"),
        (LLAMA_2_7B, {"rope_scaling": 4}, "rope_scaling to 4"),
        (LLAMA_2_7B, {"rope_parameters": [PLAIN]}, "no dictionary"),
        (LLAMA_2_7B, {"partial_rotary_factor": 0.5}, "turns whole heads"),
        (LLAMA_2_7B, {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}, "whole heads"),
        (FALCON_7B, {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}, "whole heads"),
        (
            PHI_2,
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.4",
        ),
        (QWEN2_05B, {"rope_parameters": {"full_attention": PLAIN}}, "of their own"),
        (QWEN2_05B, {"rope_scaling": {"full_attention": PLAIN}}, "of their own"),
    ],
)
def test_rope_settings_that_contradict_themselves(hf_config, keys, words):
    assert words in refused(hf_config | keys)


@pytest.mark.parametrize("hf_config", [LLAMA_2_7B, PHI_2, PERSIMMON_8B, FALCON_7B, QWEN2_05B])
def test_linearly_scaled_positions_reach_as_many_times_further(hf_config):
    once = read_config(hf_config).context
    assert read_config(hf_config | {"rope_scaling": LINEAR}).context == 4 * once
    assert read_config(hf_config | {"rope_scaling": LINEAR | {"factor": 1.5}}).context == 1.5 * once
    assert read_config(hf_config | {"rope_scaling": LINEAR | {"factor": 0.5}}).context == once
    # Llama 3's key says the context after the scaling
    assert read_config(LLAMA_3_1_8B).context == 131072


# Keys that say the same.


@pytest.mark.parametrize(
    "hf_config, alias, key",
    [
        (config, alias, key)
        for config in (GPT2, DISTILBERT, FALCON_7B)
        for alias, key in ALIASES[config["model_type"]].items()
    ],
)
def test_a_key_may_stand_under_its_alias(hf_config, alias, key):
    right = read_config(hf_config)
    renamed = without(hf_config, key) | {alias: hf_config[key]}
    assert read_config(renamed) == right
    assert read_config(hf_config | {alias: hf_config[key]}) == right
    assert read_config(hf_config | {alias: None}) == right
    sentence = refused(hf_config | {alias: hf_config[key] + 1})
    assert f"{alias} is {hf_config[key] + 1} and {key} is {hf_config[key]}" in sentence


@pytest.mark.parametrize(
    "hf_config, keys, words",
    [
        (OPT_6_7B, {"head_dim": 64}, "head_dim"),
        (GPT2, {"head_dim": 65}, "head_dim"),
        (PHI_2, {"head_dim": 64}, "head_dim"),
        (PERSIMMON_8B, {"head_dim": 32}, "head_dim"),
        (FALCON_7B, {"head_dim": 32}, "head_dim"),
        (DISTILBERT, {"head_dim": 32}, "head_dim"),
        (GPT2, {"architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM'"),
        (LLAMA_2_7B, {"architectures": ["MistralForCausalLM"]}, "'MistralForCausalLM'"),
        (MISTRAL_7B, {"architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM'"),
        (QWEN2_05B, {"architectures": ["LlamaModel"]}, "'LlamaModel'"),
        (MISTRAL_7B, {"attention_bias": True}, "attention_bias"),
        (MISTRAL_7B, {"mlp_bias": True}, "mlp_bias"),
        (GEMMA_2B, {"mlp_bias": True}, "mlp_bias"),
        (GEMMA_2B, {"hidden_act": "relu", "hidden_activation": "gelu_pytorch_tanh"}, "hidden_act"),
        # transformers ignores it for llama, where MobileLLM's own code computes each layer twice
        (MOBILELLM_LS_125M, {"model_type": "llama"}, "model_type mobilellm"),
        (MISTRAL_7B, {"layer_sharing": True}, "layer_sharing"),
        (FALCON_40B, {"parallel_attn": None}, "parallel_attn"),
    ],
)
def test_two_keys_that_contradict_each_other(hf_config, keys, words):
    assert words in refused(hf_config | keys)


def test_two_keys_that_agree_pass():
    for hf_config, K in ((OPT_6_7B, 128), (GPT2, 64), (PHI_2, 80), (FALCON_7B, 64)):
        assert read_config(hf_config | {"head_dim": K}) == read_config(hf_config)
    assert read_config(LLAMA_2_7B | {"head_dim": 64}).head_width == 64  # as transformers has it
    tanh = {"hidden_activation": "gelu_pytorch_tanh"}
    assert read_config(GEMMA_2B | tanh) == read_config(GEMMA_2B)
    for names in (["LlamaForSequenceClassification"], ["RWForCausalLM"], [3], "LlamaModel", None):
        assert read_config(LLAMA_2_7B | {"architectures": names}) == read_config(LLAMA_2_7B)
    assert read_config(MOBILELLM_125M | {"model_type": "llama"}).tied
    both = {"torch_dtype": "float16", "dtype": "bfloat16"}
    assert read_config(LLAMA_2_7B | both) == read_config(LLAMA_2_7B)


# Keys that are missing, null, or say nothing of the forward pass.


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_type_alone_is_a_model_of_its_defaults(model_type):
    """tests/test_live_defaults.py holds them against transformers."""
    family = FAMILIES[model_type]
    bare = read_config({"model_type": model_type})
    assert bare == read_config({"model_type": model_type, **family.DEFAULTS})
    assert family.DEFAULTS.keys() <= family.KEYS
    assert not family.KEYS & IGNORED


def test_what_mistral_leaves_out():
    bare = read_config(without(MISTRAL_7B, "sliding_window"))
    assert bare.window == 4096
    assert read_config(MISTRAL_7B | {"sliding_window": None}).window is None
    assert read_config(without(MISTRAL_7B, "num_key_value_heads")).kv_heads == 8
    assert read_config(MISTRAL_7B | {"num_key_value_heads": None}).kv_heads == 32


@pytest.mark.parametrize("hf_config", [config for config, _ in PARAMETERS.values()])
def test_null_is_no_number(hf_config):
    defaults = FAMILIES[hf_config["model_type"]].DEFAULTS
    for key, default in defaults.items():
        if default is not None and key not in NULLABLE:
            assert f"sets {key} to null" in refused(hf_config | {key: None})


def test_zero_is_not_nothing():
    assert "kv_heads" in refused(LLAMA_2_7B | {"num_key_value_heads": 0})
    assert "kv_heads" in refused(FALCON_40B | {"num_kv_heads": 0})
    assert "ffn_width" in refused(GPT2 | {"n_inner": 0})
    assert "ffn_width" in refused(FALCON_7B | {"ffn_hidden_size": 0})
    assert "embed_width" in refused(OPT_6_7B | {"word_embed_proj_dim": 0})


@pytest.mark.parametrize("name", CONFIGS)
def test_how_to_write_texts_does_not_keep_a_model_shut(name):
    written = dict.fromkeys(GENERATION, 0.5) | {"num_labels": 2, "id2label": {"0": "x"}}
    assert read_config(CONFIGS[name] | written) == read_config(CONFIGS[name])


# Numbers that no model has.


@pytest.mark.parametrize("huge", [10**8, 10**18, 10**400, 1e300, -(10**400)], ids=range(5))
def test_sizes_that_no_model_has_are_refused_before_anything_is_made(huge):
    for hf_config, _ in PARAMETERS.values():
        for key in ("num_hidden_layers", "n_layer", "n_layers", "rope_theta"):
            if key in hf_config and (key != "rope_theta" or huge > 1e20 or huge < 0):
                refused(hf_config | {key: huge})
        for key in ("hidden_size", "n_embd", "dim", "vocab_size", "max_position_embeddings"):
            if key in hf_config and abs(huge) > 10**12:
                refused(hf_config | {key: huge})
    for key in ("bos_token_id", "eos_token_id", "rms_norm_eps"):
        if abs(huge) > 10**20:
            refused(LLAMA_2_7B | {key: huge})


def test_an_end_token_without_an_id_ends_nothing(tmp_path):
    write_model(tmp_path, CONFIGS["llama"])
    nothing = {"eos_token": {"content": "", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(nothing))
    assert all(isinstance(token, int) for token in tinyflash.load(tmp_path).eos_ids)
