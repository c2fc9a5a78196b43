"""config.json files as they are published: what becomes of them, and what is refused."""

import math

import numpy as np
import pytest
from helpers_models import CONFIGS, DISTILBERT_CONFIG

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
FALCON_7B = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["FalconForCausalLM"],
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "hidden_size": 4544,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "falcon",
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "parallel_attn": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.27.4",
    "use_cache": True,
    "vocab_size": 65024,
}
FALCON_40B = FALCON_7B | {
    "hidden_size": 8192,
    "new_decoder_architecture": True,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_kv_heads": 8,
}
FALCON_11B = FALCON_40B | {
    "ff_factor": 4,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_ln_in_parallel_attn": 1,
    "tie_word_embeddings": False,
}
FALCON_RW_1B = FALCON_7B | {
    "alibi": True,
    "bias": True,
    "hidden_size": 2048,
    "multi_query": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 24,
    "parallel_attn": False,
    "vocab_size": 50304,
}
PHI_2 = {
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "phi",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 51200,
}
GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256000,
}
QWEN2_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 131072,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PERSIMMON_8B = {
    "architectures": ["PersimmonForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 71013,
    "eos_token_id": 71013,
    "hidden_act": "relu2",
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 16384,
    "model_type": "persimmon",
    "num_attention_heads": 64,
    "num_hidden_layers": 36,
    "num_key_value_heads": 64,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": True,
    "rope_scaling": None,
    "rope_theta": 25000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262144,
}
MOBILELLM_125M = LLAMA_2_7B | {
    "attention_bias": False,
    "head_dim": 64,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "layer_sharing": False,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "mobilellm",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rope_theta": 10000.0,
    "share_embedding": True,
}
MOBILELLM_LS_125M = MOBILELLM_125M | {"layer_sharing": True}
DISTILBERT = {
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "transformers_version": "4.10.0.dev0",
    "vocab_size": 30522,
}
# Counted by transformers on models of these configs; MobileLLM's stand in its paper's code.
PARAMETERS = {
    "opt-6.7b": (OPT_6_7B, 6_658_473_984),
    "opt-350m": (OPT_350M, 331_196_416),
    "gpt2": (GPT2, 124_439_808),
    "llama-2-7b": (LLAMA_2_7B, 6_738_415_616),
    "llama-3.1-8b": (LLAMA_3_1_8B, 8_030_261_248),
    "mistral-7b": (MISTRAL_7B, 7_241_732_096),
    "smollm2-135m": (SMOLLM2_135M, 134_515_008),
    "falcon-7b": (FALCON_7B, 6_921_720_704),
    "falcon-40b": (FALCON_40B, 41_303_293_952),
    "falcon-11b": (FALCON_11B, 11_102_822_400),
    "falcon-rw-1b": (FALCON_RW_1B, 1_311_625_216),
    "phi-2": (PHI_2, 2_779_683_840),
    "gemma-2b": (GEMMA_2B, 2_506_172_416),
    "qwen2-0.5b": (QWEN2_05B, 494_032_768),
    "persimmon-8b": (PERSIMMON_8B, 9_397_175_296),
    "mobilellm-125m": (MOBILELLM_125M, 124_635_456),
    "mobilellm-ls-125m": (MOBILELLM_LS_125M, 124_635_456),
    "distilbert": (DISTILBERT, 66_985_530),
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
        (
            FALCON_7B,
            {"heads": 71, "kv_heads": 1, "head_width": 64, "ffn_width": 18176, "tied": True}
            | {"parallel": True, "shared_norm": True, "norm": "layer", "activation": "gelu"}
            | {"positions": "rotary", "qkv_bias": False, "out_bias": False, "ffn_bias": False}
            | {"gated": False, "context": 2048, "eos_ids": (11,)},
        ),
        (FALCON_40B, {"kv_heads": 8, "parallel": True, "shared_norm": False, "head_width": 64}),
        (FALCON_11B, {"kv_heads": 8, "shared_norm": True, "tied": False, "ffn_width": 16384}),
        (
            FALCON_RW_1B,
            {"kv_heads": 32, "positions": "alibi", "parallel": False, "shared_norm": False}
            | {"qkv_bias": True, "out_bias": True, "ffn_bias": True},
        ),
        (
            PHI_2,
            {"head_width": 80, "rotary_width": 32, "turned": 32, "parallel": True}
            | {"shared_norm": True, "unembed_bias": True, "qk_norm": False, "norm": "layer"}
            | {"activation": "gelu_new", "tied": False, "qkv_bias": True, "gated": False},
        ),
        (
            GEMMA_2B,
            {"heads": 8, "kv_heads": 1, "head_width": 256, "norm_plus_one": True, "tied": True}
            | {"activation": "gelu_pytorch_tanh", "gated": True, "norm": "rms"}
            | {"embed_scale": float(np.float32(math.sqrt(2048))), "qkv_bias": False},
        ),
        (
            QWEN2_05B,
            {"qkv_bias": True, "out_bias": False, "ffn_bias": False, "window": None}
            | {"head_width": 64, "rope": Rope(1000000.0), "tied": True},
        ),
        (
            PERSIMMON_8B,
            {"activation": "relu2", "qk_norm": True, "rotary_width": 32, "norm": "layer"}
            | {"rope": Rope(25000.0), "parallel": False, "qkv_bias": True, "ffn_bias": True}
            | {"unembed_bias": False, "kv_heads": 64},
        ),
        (MOBILELLM_125M, {"layers": 30, "weight_layers": 30, "tied": True, "kv_heads": 3}),
        (MOBILELLM_LS_125M, {"layers": 60, "weight_layers": 30, "layer_repeats": 2}),
        (
            DISTILBERT,
            {"causal": False, "norm_after": True, "embed_norm": True, "norm_eps": 1e-12}
            | {"unembed_transform": True, "unembed_bias": True, "activation": "gelu"}
            | {"positions": "learned", "position_offset": 0, "tied": True, "context": 512},
        ),
    ],
    ids=PARAMETERS,
)
def test_what_published_configs_say(hf_config, switches):
    config = read_config(hf_config)
    assert {name: getattr(config, name) for name in switches} == switches
    layers = next(
        hf_config[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if key in hf_config
    )
    assert config.weight_layers == layers
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

    sizes = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    for whole in (FALCON_7B, PERSIMMON_8B, PHI_2):
        bare = {k: v for k, v in whole.items() if k in (*sizes, "intermediate_size", "rope_theta")}
        bare |= {"partial_rotary_factor": 0.4} if whole is PHI_2 else {}
        bare |= {k: whole[k] for k in ("bos_token_id", "eos_token_id")}
        assert read_config(bare) == read_config(whole)
    bare = {k: GEMMA_2B[k] for k in (*sizes, "intermediate_size", "num_key_value_heads")}
    assert read_config(bare) == read_config(GEMMA_2B)
    assert (
        read_config(bare | {"num_attention_heads": 16, "num_key_value_heads": None}).kv_heads == 16
    )
    bare = {k: QWEN2_05B[k] for k in (*sizes, "intermediate_size")} | {"num_attention_heads": 32}
    config = read_config(bare)
    assert (config.kv_heads, config.context, config.bos_id, config.eos_ids) == (32, 32768, None, ())
    bare = {k: DISTILBERT[k] for k in ("model_type", "vocab_size", "dim", "hidden_dim")}
    assert read_config(bare | {"n_heads": 12, "n_layers": 6}) == read_config(DISTILBERT)


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
    # relufied models
    assert read_config(LLAMA_2_7B | {"hidden_act": "relu"}).activation == "relu"
    assert read_config(FALCON_7B | {"activation": "relu"}).activation == "relu"
    assert read_config(GEMMA_2B | {"hidden_act": "relu"}).activation == "relu"
    assert read_config(PHI_2 | {"qk_layernorm": True}).qk_norm is True
    assert read_config(PERSIMMON_8B | {"qk_layernorm": False}).qk_norm is False
    # Falcon 7B's key counts in the new architecture alone, as in transformers
    assert read_config(FALCON_7B | {"num_kv_heads": 71}).kv_heads == 1
    # some MobileLLM configs call themselves llama
    assert read_config(MOBILELLM_125M | {"model_type": "llama"}).tied
    assert not read_config(MOBILELLM_125M | {"share_embedding": False}).tied


def test_qwen2_windows_lie_where_transformers_has_them():
    windowed = QWEN2_05B | {"use_sliding_window": True, "sliding_window": 9}
    last = read_config(windowed | {"max_window_layers": 21})
    assert [last.window_of(i) for i in (0, 20, 21, 23)] == [None, None, 9, 9]
    assert read_config(windowed | {"max_window_layers": 0}).window_layers == tuple(range(24))
    assert read_config(windowed).window is None  # from layer 24 on: nowhere
    kinds = ["full_attention", "sliding_attention"] * 12
    mixed = read_config(windowed | {"layer_types": kinds, "max_window_layers": 0})
    assert [mixed.window_of(i) for i in range(4)] == [None, 9, None, 9]
    assert read_config(QWEN2_05B | {"layer_types": ["full_attention"] * 24}).window is None
    mistral = read_config(MISTRAL_7B)
    assert mistral.window_of(0) == mistral.window_of(31) == 4096


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling", None])
def test_a_partial_rotary_factor_is_found_where_files_have_it(key):
    without = {k: v for k, v in PERSIMMON_8B.items() if k != "partial_rotary_factor"}
    share = {"partial_rotary_factor": 0.25}
    nested = {key: {"rope_type": "default", "rope_theta": 25000.0} | share} if key else share
    assert read_config(without | nested).rotary_width == 16
    assert read_config(without).rotary_width == 32


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

OURS = "distilbert, falcon, gemma, gpt2, llama, mistral, mobilellm, opt, persimmon, phi, qwen2"


def refused(hf_config):
    with pytest.raises(ValueError) as error:
        read_config(hf_config)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 400
    return sentence


@pytest.mark.parametrize("hf_config", [config for config, _ in PARAMETERS.values()])
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
    assert OURS in sentence


def test_a_config_without_model_type_is_refused():
    assert OURS in refused({})


@pytest.mark.parametrize("model_type", sorted(ENCODERS))
def test_encoders_have_a_sentence_of_their_own(model_type):
    sentence = refused({"model_type": model_type, "vocab_size": 30522})
    assert sentence.startswith(f"A {model_type} model is an encoder")
    assert "masked words and cannot continue a text" in sentence


def test_no_family_is_an_encoder():
    assert {"bert", "roberta"} <= ENCODERS
    assert not ENCODERS & set(FAMILIES)
    assert family_of({"model_type": "mistral"}).NAME == "llama"


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
        (OPT_6_7B, {"activation_function": "gelu_fast"}, "'gelu_fast'"),
        (GPT2, {"activation_function": "quick_gelu"}, "'quick_gelu'"),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention"),
        (LLAMA_2_7B, {"hidden_act": "mish"}, "'mish'"),
        (LLAMA_2_7B, {"layer_sharing": "yes"}, "layer_sharing"),
        (MOBILELLM_125M, {"share_embedding": "true"}, "share_embedding"),
        (FALCON_7B, {"num_attention_heads": 70}, "4544 does not divide into 70 heads"),
        (FALCON_7B, {"num_ln_in_parallel_attn": 2}, "without new_decoder_architecture"),
        (FALCON_40B, {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn"),
        (FALCON_40B, {"parallel_attn": False}, "parallel_attn"),
        (FALCON_40B, {"num_kv_heads": 7}, "cannot share 7 key/value heads"),
        (FALCON_RW_1B, {"num_kv_heads": 4}, "num_kv_heads"),
        (FALCON_7B, {"apply_residual_connection_post_layernorm": True}, "residual"),
        (FALCON_11B, {"ff_factor": 5}, "ff_factor"),
        (FALCON_7B, {"alibi": "no"}, "alibi"),
        (FALCON_7B, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        (PHI_2, {"partial_rotary_factor": 0.42}, "33 of a head width of 80"),
        (PHI_2, {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        (PHI_2, {"partial_rotary_factor": 0.001}, "0 of a head width of 80"),
        (PERSIMMON_8B, {"num_key_value_heads": 8}, "num_key_value_heads"),
        (GEMMA_2B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA_2B, {"hidden_activation": "gelu"}, "hidden_activation"),
        (QWEN2_05B, {"use_mrope": True}, "use_mrope"),
        (QWEN2_05B, {"layer_types": ["sliding_attention"] * 24}, "no sliding_window in use"),
        (QWEN2_05B, {"layer_types": ["full_attention"] * 23}, "layer_types"),
        (QWEN2_05B, {"layer_types": ["linear_attention"] * 24}, "layer_types"),
        (DISTILBERT, {"n_heads": 11}, "768 does not divide into 11 heads"),
        (DISTILBERT, {"activation": "gelu_fast"}, "'gelu_fast'"),
        (LLAMA_2_7B, {"rope_interleaved": True}, "rope_interleaved"),
        (LLAMA_2_7B, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        (LLAMA_2_7B, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        (MISTRAL_7B, {"sliding_window": 0}, "window"),
        (MISTRAL_7B, {"sliding_window": "4096"}, "window"),
        (MISTRAL_7B, {"sliding_window": 2**63}, "window"),
        (LLAMA_2_7B, {"rms_norm_eps": "1e-5"}, "norm_eps"),
        (LLAMA_2_7B, {"rope_theta": 0}, "theta"),
        (LLAMA_2_7B, {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        (LLAMA_2_7B, {"tie_word_embeddings": "false"}, "tied"),
    ],
)
def test_what_makes_no_model_is_refused(hf_config, changes, words):
    assert words in refused(hf_config | changes)


@pytest.mark.parametrize("odd", [None, "x", "", -1, 0, 1.5, math.nan, True, [], {}, [1], {"a": 1}])
@pytest.mark.parametrize("hf_config", [config for config, _ in PARAMETERS.values()])
def test_whatever_a_key_holds_there_is_a_config_or_one_sentence(hf_config, odd):
    for key in set(hf_config) | FAMILIES[hf_config["model_type"]].KEYS | {"architectures"}:
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


@pytest.mark.parametrize("name", [*CONFIGS, "distilbert"])
def test_every_weight_has_a_place_and_no_two_share_one(name):
    config = read_config((CONFIGS | {"distilbert": DISTILBERT_CONFIG})[name])
    places = tensor_names(config)
    shapes = weight_shapes(config)
    assert set(shapes) <= set(places)
    rows = {}
    for ours, shape in shapes.items():
        rows.setdefault(places[ours].name, []).append((places[ours], shape[0]))
    assert not any("{" in stored for stored in rows)
    for stored, pieces in rows.items():
        total = sum(size for _, size in pieces)
        taken = [np.arange(total)[place.rows(total)] for place, _ in pieces]
        assert [len(numbers) for numbers in taken] == [size for _, size in pieces], stored
        assert sorted(np.concatenate(taken).tolist()) == list(range(total)), stored


@pytest.mark.parametrize(
    "hf_config, stored, q, k, v",
    [
        # H + 2 heads: all queries, the key head, the value head
        (FALCON_7B | {"num_attention_heads": 4, "hidden_size": 8}, 12, range(8), (8, 9), (10, 11)),
        # for each of two key heads: two query heads, it, its values
        (
            FALCON_40B | {"num_attention_heads": 4, "hidden_size": 8, "num_kv_heads": 2},
            16, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 12, 13), (6, 7, 14, 15),
        ),
        # for each head: query, key, value
        (
            PERSIMMON_8B | {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 8},
            24, (0, 1, 2, 3, 12, 13, 14, 15), (4, 5, 6, 7, 16, 17, 18, 19),
            (8, 9, 10, 11, 20, 21, 22, 23),
        ),
        (
            FALCON_RW_1B | {"num_attention_heads": 2, "hidden_size": 4},
            12, (0, 1, 6, 7), (2, 3, 8, 9), (4, 5, 10, 11),
        ),
    ],
)  # fmt: skip
def test_the_orders_of_fused_queries_keys_and_values(hf_config, stored, q, k, v):
    places = tensor_names(read_config(hf_config))
    for name, rows in (("q", q), ("k", k), ("v", v)):
        for kind in ("weight", "bias"):
            place = places[f"layers.0.attn.{name}.{kind}"]
            assert np.arange(stored)[place.rows(stored)].tolist() == list(rows), name


def test_only_rows_that_do_not_lie_together_are_gathered():
    assert isinstance(
        tensor_names(read_config(FALCON_7B))["layers.0.attn.q.weight"].rows(4672), slice
    )
    assert isinstance(tensor_names(read_config(GPT2))["layers.0.attn.k.weight"].rows(2304), slice)
    gathered = tensor_names(read_config(FALCON_40B))["layers.0.attn.q.weight"].rows(9216)
    assert isinstance(gathered, np.ndarray) and len(gathered) == 8192


def test_layers_that_share_weights_have_them_once():
    config = read_config(MOBILELLM_LS_125M)
    assert {name.split(".")[1] for name in weight_shapes(config) if name.startswith("layers.")} == {
        str(i) for i in range(30)
    }
    assert set(weight_shapes(config)) == set(weight_shapes(read_config(MOBILELLM_125M)))
    assert [config.weight_layer(i) for i in (0, 1, 2, 58, 59)] == [0, 0, 1, 29, 29]


def test_layers_are_all_alike():
    config = read_config(LLAMA_3_1_8B)
    one_layer, shapes = layer_shapes(config), weight_shapes(config)
    assert {
        f"layers.31.{name}": shape for name, shape in one_layer.items()
    }.items() <= shapes.items()
    assert len(shapes) == 32 * len(one_layer) + 3
    assert one_layer["attn.k.weight"] == (1024, 4096)
    assert one_layer["ffn.down.weight"] == (4096, 14336)
