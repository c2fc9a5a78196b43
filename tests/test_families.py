"""config.json files as they are published: what becomes of them, and what is refused."""

import math

import pytest
from helpers_models import CONFIGS

from tinyflash.config import ModelConfig, Rope, layer_shapes, weight_shapes
from tinyflash.families import ENCODERS, FAMILIES, family_of, read_config, tensor_names

OPT_6_7B = {
    "_name_or_path": "opt-6.7b",
    "_remove_final_layer_norm": False,
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "eos_token_id": 2,
    "ffn_dim": 16384,
    "hidden_size": 4096,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "transformers_version": "4.21.0.dev0",
    "use_cache": True,
    "vocab_size": 50272,
    "word_embed_proj_dim": 4096,
}
OPT_350M = OPT_6_7B | {
    "_name_or_path": "opt-350m",
    "do_layer_norm_before": False,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "word_embed_proj_dim": 512,
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "vocab_size": 49152,
}
# Counted by transformers on the published models.
PARAMETERS = {
    "opt-6.7b": (OPT_6_7B, 6_658_473_984),
    "opt-350m": (OPT_350M, 331_196_416),
    "gpt2": (GPT2, 124_439_808),
    "llama-2-7b": (LLAMA_2_7B, 6_738_415_616),
    "llama-3.1-8b": (LLAMA_3_1_8B, 8_030_261_248),
    "mistral-7b": (MISTRAL_7B, 7_241_732_096),
    "smollm2-135m": (SMOLLM2_135M, 134_515_008),
}


@pytest.mark.parametrize("hf_config, parameters", PARAMETERS.values(), ids=PARAMETERS)
def test_published_models_have_their_published_number_of_parameters(hf_config, parameters):
    config = read_config(hf_config)
    assert sum(math.prod(shape) for shape in weight_shapes(config).values()) == parameters


@pytest.mark.parametrize(
    "hf_config, switches",
    [
        (
            OPT_6_7B,
            {"family": "opt", "width": 4096, "embed_width": 4096, "heads": 32, "kv_heads": 32}
            | {"head_width": 128, "ffn_width": 16384, "context": 2048, "activation": "relu"}
            | {"gated": False, "norm": "layer", "norm_eps": 1e-5, "norm_after": False}
            | {"final_norm": True, "positions": "learned", "position_offset": 2, "window": None}
            | {"qkv_bias": True, "out_bias": True, "ffn_bias": True, "tied": True}
            | {"norm_affine": True, "bos_id": 2, "eos_ids": (2,)},
        ),
        (OPT_350M, {"norm_after": True, "final_norm": False, "embed_width": 512, "width": 1024}),
        (
            GPT2,
            {"family": "gpt2", "width": 768, "heads": 12, "kv_heads": 12, "head_width": 64}
            | {"ffn_width": 3072, "context": 1024, "activation": "gelu_new", "gated": False}
            | {"norm": "layer", "norm_after": False, "final_norm": True, "positions": "learned"}
            | {"position_offset": 0, "qkv_bias": True, "ffn_bias": True, "tied": True}
            | {"bos_id": 50256, "eos_ids": (50256,)},
        ),
        (
            LLAMA_2_7B,
            {"family": "llama", "kv_heads": 32, "head_width": 128, "ffn_width": 11008}
            | {"activation": "silu", "gated": True, "norm": "rms", "positions": "rotary"}
            | {"rope": Rope(10000.0), "window": None, "qkv_bias": False, "out_bias": False}
            | {"ffn_bias": False, "tied": False, "context": 4096, "final_norm": True},
        ),
        (
            LLAMA_3_1_8B,
            {"kv_heads": 8, "eos_ids": (128001, 128008, 128009), "context": 131072}
            | {"rope": Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)},
        ),
        (MISTRAL_7B, {"family": "llama", "window": 4096, "kv_heads": 8}),
        (SMOLLM2_135M, {"tied": True, "kv_heads": 3, "rope": Rope(100000), "eos_ids": (0,)}),
    ],
    ids=PARAMETERS,
)
def test_what_published_configs_say(hf_config, switches):
    config = read_config(hf_config)
    assert {name: getattr(config, name) for name in switches} == switches
    assert config.layers == hf_config.get("num_hidden_layers", hf_config.get("n_layer"))
    assert config.vocab_size == hf_config["vocab_size"]


def test_what_a_config_leaves_out_has_transformers_meaning():
    bare = {k: OPT_6_7B[k] for k in ("model_type", "vocab_size", "hidden_size", "ffn_dim")}
    bare |= {k: OPT_6_7B[k] for k in ("num_hidden_layers", "num_attention_heads")}
    bare["max_position_embeddings"] = 2048
    assert read_config(bare) == read_config(OPT_6_7B)

    bare = {k: GPT2[k] for k in ("model_type", "vocab_size", "n_embd", "n_layer", "n_head")}
    bare |= {"bos_token_id": 50256, "eos_token_id": 50256}
    assert read_config(bare) == read_config(GPT2)

    sizes = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    bare = {k: LLAMA_2_7B[k] for k in (*sizes, "num_attention_heads")}
    config = read_config(bare)
    assert (config.kv_heads, config.context, config.norm_eps) == (32, 2048, 1e-6)
    assert (config.tied, config.bos_id, config.eos_ids) == (False, 1, (2,))


def test_a_switch_turns_what_it_says():
    assert read_config(OPT_6_7B | {"_remove_final_layer_norm": True}).final_norm is False
    assert read_config(OPT_6_7B | {"tie_word_embeddings": False}).tied is False
    without = weight_shapes(read_config(OPT_6_7B | {"enable_bias": False}))
    assert {n for n in without if n.endswith("bias") and ".norm" not in n} == {"final_norm.bias"}
    without = read_config(OPT_6_7B | {"layer_norm_elementwise_affine": False})
    assert not any("norm" in name for name in weight_shapes(without))
    config = read_config(LLAMA_2_7B | {"attention_bias": True, "mlp_bias": False})
    assert (config.qkv_bias, config.out_bias, config.ffn_bias) == (True, True, False)
    assert read_config(LLAMA_2_7B | {"mlp_bias": True}).ffn_bias is True
    assert read_config(GPT2 | {"n_inner": 1000}).ffn_width == 1000
    assert read_config(LLAMA_2_7B | {"head_dim": 64}).head_width == 64
    # transformers' Llama ignores the key, and Mistral v0.2 sets it to null
    assert read_config(LLAMA_2_7B | {"sliding_window": 4096}).window is None
    assert read_config(MISTRAL_7B | {"sliding_window": None}).window is None


@pytest.mark.parametrize(
    "keys, rope",
    [
        ({"rope_theta": 5000.0}, Rope(5000.0)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, Rope(10000.0, "linear", 4.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7000.0}}, Rope(7000.0)),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7000.0}},
            Rope(7000.0, "linear", 2.0),
        ),
    ],
)
def test_rope_settings_old_and_new(keys, rope):
    assert read_config(LLAMA_2_7B | keys).rope == rope


# Refusals.


def refused(hf_config):
    with pytest.raises(ValueError) as error:
        read_config(hf_config)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 400
    return sentence


@pytest.mark.parametrize("hf_config", [OPT_6_7B, GPT2, LLAMA_2_7B, MISTRAL_7B])
def test_unknown_keys_are_refused_by_name(hf_config):
    sentence = refused(hf_config | {"use_parallel_residual": False, "norm_first": 1})
    assert "'use_parallel_residual'" in sentence and "'norm_first'" in sentence
    assert hf_config["model_type"] in sentence
    # null says nothing, and neither does a private note
    read_config(hf_config | {"use_parallel_residual": None, "_note": 3})


@pytest.mark.parametrize("model_type", ["mixtral", "mamba", None, 3, ["opt"], {}])
def test_an_unknown_model_type_lists_ours(model_type):
    sentence = refused({"model_type": model_type})
    assert repr(model_type) in sentence
    assert "gpt2, llama, mistral, opt" in sentence


def test_a_config_without_model_type_is_refused():
    assert "gpt2, llama, mistral, opt" in refused({})


@pytest.mark.parametrize("model_type", sorted(ENCODERS))
def test_encoders_have_a_sentence_of_their_own(model_type):
    sentence = refused({"model_type": model_type, "vocab_size": 30522})
    assert sentence.startswith(f"A {model_type} model is an encoder")
    assert "masked words and cannot continue a text" in sentence


def test_no_family_is_an_encoder():
    assert {"bert", "distilbert", "roberta"} <= ENCODERS
    assert not ENCODERS & set(FAMILIES)
    assert family_of({"model_type": "mistral"}).NAME == "llama"


@pytest.mark.parametrize(
    "hf_config, key",
    [(OPT_6_7B, key) for key in ("vocab_size", "hidden_size", "ffn_dim", "num_hidden_layers")]
    + [(GPT2, key) for key in ("vocab_size", "n_embd", "n_layer", "n_head")]
    + [(LLAMA_2_7B, key) for key in ("vocab_size", "hidden_size", "intermediate_size")],
)
def test_a_missing_key_is_named(hf_config, key):
    sentence = refused({k: v for k, v in hf_config.items() if k != key})
    assert f"lacks '{key}'" in sentence and hf_config["model_type"] in sentence


def test_a_rope_scaling_without_its_factor_is_refused():
    assert "'factor'" in refused(LLAMA_2_7B | {"rope_scaling": {"rope_type": "linear"}})


@pytest.mark.parametrize(
    "hf_config, changes, words",
    [
        (OPT_6_7B, {"num_attention_heads": 33}, "4096 does not divide into 33 heads"),
        (OPT_6_7B, {"num_attention_heads": 0}, "0 heads"),
        (GPT2, {"n_head": 13}, "768 does not divide into 13 heads"),
        (LLAMA_2_7B, {"num_attention_heads": 24}, "give a head_dim"),
        (LLAMA_2_7B, {"num_key_value_heads": 5}, "cannot share 5 key/value heads"),
        (LLAMA_2_7B, {"head_dim": 127}, "head width of 127"),
        (OPT_6_7B, {"num_hidden_layers": 0}, "layers must be"),
        (OPT_6_7B, {"vocab_size": -5}, "vocab_size must be"),
        (OPT_6_7B, {"ffn_dim": 2.5}, "ffn_width must be"),
        (OPT_6_7B, {"activation_function": "gelu"}, "'gelu'"),
        (GPT2, {"activation_function": "gelu"}, "'gelu'"),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention"),
        (LLAMA_2_7B, {"hidden_act": "gelu"}, "'gelu'"),
        (LLAMA_2_7B, {"rope_interleaved": True}, "rope_interleaved"),
        (LLAMA_2_7B, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        (LLAMA_2_7B, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        (MISTRAL_7B, {"sliding_window": 0}, "window"),
        (MISTRAL_7B, {"sliding_window": "4096"}, "window"),
        (LLAMA_2_7B, {"rms_norm_eps": "1e-5"}, "norm_eps"),
        (LLAMA_2_7B, {"rope_theta": 0}, "theta"),
        (LLAMA_2_7B, {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        (LLAMA_2_7B, {"tie_word_embeddings": "false"}, "tied"),
    ],
)
def test_what_makes_no_model_is_refused(hf_config, changes, words):
    assert words in refused(hf_config | changes)


@pytest.mark.parametrize("odd", [None, "x", "", -1, 0, 1.5, math.nan, True, [], {}, [1], {"a": 1}])
@pytest.mark.parametrize("hf_config", [OPT_6_7B, GPT2, LLAMA_3_1_8B, MISTRAL_7B])
def test_whatever_a_key_holds_there_is_a_config_or_one_sentence(hf_config, odd):
    for key in set(hf_config) | FAMILIES[hf_config["model_type"]].KEYS:
        try:
            assert isinstance(read_config(hf_config | {key: odd}), ModelConfig)
        except ValueError as error:
            assert "\n" not in str(error)


def test_whatever_rope_scaling_holds_there_is_a_config_or_one_sentence():
    for key in LLAMA_3_1_8B["rope_scaling"]:
        for odd in (None, "x", -1, 0, math.nan, [], {}):
            scaling = LLAMA_3_1_8B["rope_scaling"] | {key: odd}
            assert "\n" not in refused(LLAMA_3_1_8B | {"rope_scaling": scaling})


# Names.


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_has_a_place_and_no_two_share_one(name):
    config = read_config(CONFIGS[name])
    places = tensor_names(config)
    shapes = weight_shapes(config)
    assert set(shapes) <= set(places)
    taken = [(places[ours].name, places[ours].first) for ours in shapes]
    assert len(set(taken)) == len(taken)
    assert not any("{" in stored for stored, _ in taken)


def test_layers_are_all_alike():
    config = read_config(LLAMA_3_1_8B)
    one_layer, shapes = layer_shapes(config), weight_shapes(config)
    assert {
        f"layers.31.{name}": shape for name, shape in one_layer.items()
    }.items() <= shapes.items()
    assert len(shapes) == 32 * len(one_layer) + 3
    assert one_layer["attn.k.weight"] == (1024, 4096)
    assert one_layer["ffn.down.weight"] == (4096, 14336)
