"""What a config.json leaves out or says twice, as transformers has it: `pytest -m live`.

Our table of defaults is held to the fields of transformers' classes, and both programs compute
checkpoints whose config.json was edited: tinyflash refuses the file, or the logits agree.
"""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_live import FAMILIES as MODEL_TYPES
from test_live import LARGEST, SEED, transformers_side  # noqa: F401 (a fixture)

import tinyflash
from tinyflash.families import FAMILIES, read_config, rope
from tinyflash.families.ignored import IGNORED

pytestmark = pytest.mark.live

THEIRS = [model_type for model_type in MODEL_TYPES if model_type != "mobilellm"]
# Keys that our table has for a type because Llama has them, and transformers' class has not.
OURS = {
    "mistral": {"attention_bias", "mlp_bias"},
    "qwen2": {"attention_bias", "mlp_bias", "head_dim"},
    "gemma": {"mlp_bias"},
}
# Fields of transformers' classes that change no logits, or that we have for one value only.
UNREAD = {
    "gpt2": {
        "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout",
        "summary_proj_to_labels", "summary_type", "summary_use_proj",
    },
    "gemma": {"use_bidirectional_attention"},
    "distilbert": {
        "bos_token_id", "eos_token_id", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds",
    },
}  # fmt: skip


def fields_of(model_type):
    """The keys of transformers' class and their defaults."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return {field.name: field.default for field in dataclasses.fields(CONFIG_MAPPING[model_type])}


@pytest.mark.parametrize("model_type", THEIRS)
def test_our_table_is_transformers(model_type, transformers_side):  # noqa: F811
    ours, theirs = FAMILIES[model_type], fields_of(model_type)
    extra = ours.DEFAULTS.keys() - theirs.keys()
    assert extra == OURS.get(model_type, set())
    assert all(ours.DEFAULTS[key] in (None, False) for key in extra)
    same = {key: theirs[key] for key in ours.DEFAULTS.keys() & theirs.keys()}
    assert {key: ours.DEFAULTS[key] for key in same} == same
    unread = UNREAD.get(model_type, set())
    assert theirs.keys() - ours.DEFAULTS.keys() - IGNORED - unread <= rope.KEYS
    assert unread <= ours.KEYS
    assert rope.THETA == 10000.0 == getattr(config_class(model_type), "default_theta", 10000.0)


def config_class(model_type):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def ours_of(hf_config):
    """Our reading, or None where tinyflash refuses the file."""
    try:
        return read_config(hf_config)
    except ValueError:
        return None


@pytest.mark.parametrize("model_type", THEIRS)
def test_each_key_that_is_dropped_has_transformers_value(model_type, transformers_side):  # noqa: F811
    random_configs, _, _ = transformers_side
    compared = 0
    for k in range(20):
        rng = np.random.default_rng([SEED, k, *model_type.encode()])
        whole = random_configs.random_config(model_type, rng).to_dict()
        for key in [*FAMILIES[model_type].DEFAULTS, *rope.KEYS, None]:
            dropped = {name: value for name, value in whole.items() if name != key}
            try:
                theirs = config_class(model_type).from_dict(dropped).to_dict()
            except Exception:  # the default of a size does not fit the others
                continue
            which = f"TINYFLASH_SEED={SEED}, {model_type} {k} without {key}"
            assert ours_of(dropped) == ours_of(theirs), which
            compared += ours_of(dropped) is not None
    assert compared > 100


# Logits.


def written(family, rng, directory, side, **changes):
    """A random checkpoint; its config.json as a dictionary."""
    random_configs, random_models, _ = side
    config = random_configs.random_config(family, rng)
    for key, value in changes.items():
        setattr(config, key, value)
    random_models.write_checkpoint(config, rng, directory)
    return json.loads((directory / "config.json").read_text())


def both(directory, ids, side):
    """Our logits and theirs; None where a program refuses the checkpoint or misses a weight."""
    import torch

    _, _, reference = side
    try:
        ours = tinyflash.load(directory).logits(ids)
    except ValueError:
        ours = None
    try:
        config = reference.AutoConfig.from_pretrained(directory)
        model, report = reference.model_class(config).from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
        if any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            return ours, None
        with torch.no_grad():
            return ours, reference.logits_of(model.eval(), ids)[0].numpy()
    except Exception:  # whatever it raises for what it does not open, or cannot compute
        return ours, None


def agree(ours, theirs):
    return np.abs(ours - theirs).max() <= LARGEST * theirs.std()


@pytest.mark.parametrize("family", THEIRS)
def test_logits_without_a_key(family, transformers_side, tmp_path):  # noqa: F811
    rng = np.random.default_rng([SEED, 7, *family.encode()])
    compared = set()
    for k in range(3):
        directory = tmp_path / str(k)
        whole = written(family, rng, directory, transformers_side)
        ids = rng.integers(0, whole["vocab_size"], 20).tolist()
        for key in whole:
            dropped = {name: value for name, value in whole.items() if name != key}
            (directory / "config.json").write_text(json.dumps(dropped))
            ours, theirs = both(directory, ids, transformers_side)
            which = f"TINYFLASH_SEED={SEED}, {family} {k} without {key}"
            if ours is not None and key != "model_type":
                assert theirs is not None and agree(ours, theirs), which
                compared.add(key)
    assert len(compared) >= 8, f"too few keys were compared: {compared}"


LINEAR, PLAIN = {"type": "linear", "factor": 4.0}, {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
PLACES = [
    {"rope_parameters": parameters, "rope_scaling": scaling, "rope_theta": theta} | share
    for parameters in (None, {}, PLAIN, PLAIN | {"rope_theta": 500.0}, LINEAR, LLAMA3, YARN)
    for scaling in (
        None, {}, PLAIN, LINEAR, LINEAR | {"rope_type": "default"}, LLAMA3, YARN,
        LINEAR | {"rope_theta": 500.0}, LINEAR | {"original_max_position_embeddings": 32},
        {"factor": 4.0}, {"full_attention": PLAIN, "sliding_attention": LINEAR},
    )
    for theta in (None, 10000.0, 500.0)
    for share in ({}, {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0})
]  # fmt: skip
TWICE = {
    "llama": [
        {"head_dim": 8}, {"head_dim": None}, {"num_key_value_heads": None}, {"layer_types": None},
        {"share_embedding": True}, {"layer_sharing": True}, {"sliding_window": 4},
        {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"text_config": {}},
        {"architectures": ["MistralForCausalLM"]}, {"torch_dtype": "float16"},
        {"attention_bias": True}, {"layer_types": ["full_attention"] * 2}, {"num_kv_heads": 1},
        {"n_embd": 64}, {"do_sample": True, "temperature": 0.2, "num_beams": 4, "top_p": 0.5},
        {"pretraining_tp": 2}, {"is_decoder": True}, {"chunk_size_feed_forward": 3},
        {"pruned_heads": {"0": [1]}}, {"tie_last_hidden_states": False}, {"num_labels": 9},
    ],
    "mistral": [
        {"sliding_window": None}, {"sliding_window": 3}, {"attention_bias": True},
        {"layer_types": ["full_attention"] * 2}, {"share_embedding": True},
        {"layer_sharing": True}, {"architectures": ["LlamaForCausalLM"]}, {"head_dim": None},
    ],
    "qwen2": [
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": -1},
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
         "layer_types": ["sliding_attention", "full_attention"]},
        {"use_sliding_window": False, "sliding_window": 3, "layer_types": ["full_attention"] * 2},
        {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
        {"use_sliding_window": True, "sliding_window": None}, {"attention_bias": False},
        {"mlp_bias": True}, {"head_dim": 4}, {"use_sliding_window": True, "layer_types": None},
    ],
    "gemma": [
        {"hidden_act": "gelu"}, {"hidden_act": "relu"}, {"hidden_activation": "relu"},
        {"hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "silu", "hidden_activation": None}, {"attention_bias": False},
        {"head_dim": 4}, {"num_key_value_heads": None},
    ],
    "falcon": [
        {"num_kv_heads": 1}, {"num_kv_heads": None}, {"multi_query": None}, {"multi_query": True},
        {"multi_query": False}, {"new_decoder_architecture": None}, {"parallel_attn": None},
        {"parallel_attn": False}, {"alibi": None}, {"bias": None}, {"ff_factor": 3},
        {"ffn_hidden_size": None}, {"n_embed": 4}, {"head_dim": 4}, {"n_layer": 1},
        {"num_ln_in_parallel_attn": 1}, {"num_ln_in_parallel_attn": 2},
        {"num_ln_in_parallel_attn": None}, {"num_ln_in_parallel_attn": 3},
    ],
    "phi": [{"head_dim": 4}, {"num_key_value_heads": None}, {"partial_rotary_factor": 0.25}],
    "persimmon": [{"num_key_value_heads": 1}, {"head_dim": 4}, {"partial_rotary_factor": 0.25}],
    "gpt2": [
        {"hidden_size": 3}, {"n_ctx": 3}, {"n_inner": None}, {"num_hidden_layers": 1},
        {"num_attention_heads": 1}, {"max_position_embeddings": 9}, {"intermediate_size": 9},
        {"scale_attn_weights": False}, {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True}, {"tie_word_embeddings": True},
    ],
    "opt": [
        {"word_embed_proj_dim": None}, {"do_layer_norm_before": False}, {"ffn_dim": 3},
        {"_remove_final_layer_norm": True}, {"intermediate_size": 3}, {"head_dim": 3},
    ],
    "distilbert": [
        {"hidden_size": 3}, {"tie_weights_": False}, {"tie_word_embeddings": True},
        {"sinusoidal_pos_embds": True}, {"num_hidden_layers": 1}, {"is_decoder": True},
    ],
}  # fmt: skip
ROTARY = ("llama", "qwen2", "falcon", "phi", "persimmon", "gemma")


@pytest.mark.parametrize("family", THEIRS)
def test_what_is_said_twice(family, transformers_side, tmp_path, capsys):  # noqa: F811
    rng = np.random.default_rng([SEED, 8, *family.encode()])
    refused = equal = 0
    places = rng.permutation(PLACES)[:120].tolist() if family in ROTARY else []
    for k in range(2):
        directory = tmp_path / str(k)
        whole = written(family, rng, directory, transformers_side)
        ids = rng.integers(0, whole["vocab_size"], 20).tolist()
        unchanged, _ = both(directory, ids, transformers_side)
        for change in TWICE[family] + places:
            edited = whole | change
            for key in ("rope_theta", "rope_parameters", "rope_scaling"):
                if edited.get(key, 0) is None:
                    del edited[key]
            (directory / "config.json").write_text(json.dumps(edited))
            ours, theirs = both(directory, ids, transformers_side)
            refused += ours is None
            if ours is not None:
                which = f"TINYFLASH_SEED={SEED}, {family} {k} with {change}"
                # a Falcon whose head_dim is right, say, crashes there and says nothing new
                assert agree(ours, unchanged if theirs is None else theirs), which
                equal += 1
    with capsys.disabled():
        print(f"\nTINYFLASH_SEED={SEED} {family}: {refused} refused, {equal} equal, 0 wrong")
    assert equal > 0


@pytest.mark.parametrize("family", THEIRS)
def test_heads_beside_tied_embeddings(family, transformers_side, tmp_path):  # noqa: F811
    rng = np.random.default_rng([SEED, 9, *family.encode()])
    whole = written(family, rng, tmp_path, transformers_side, tie_word_embeddings=False)
    ids = rng.integers(0, whole["vocab_size"], 20).tolist()
    places = tinyflash.families.tensor_names(read_config(whole))
    head, embed = places["unembed.weight"].name, places["embed.weight"].name
    tensors = load_file(tmp_path / "model.safetensors")
    outcomes = []
    for tied in (True, False):
        (tmp_path / "config.json").write_text(json.dumps(whole | {"tie_word_embeddings": tied}))
        for change in (
            {}, {head: tensors[embed]}, {head: None}, {embed: None}, {head: None, embed: None}
        ):  # fmt: skip
            changed = {n: a for n, a in (tensors | change).items() if a is not None}
            save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
            ours, theirs = both(tmp_path, ids, transformers_side)
            if ours is not None:
                assert theirs is not None and agree(ours, theirs), (tied, list(change))
            outcomes.append(ours is not None)
    #                   other  equal  none  head only  neither
    assert outcomes == [False, True, True, True, False] + [True, True, False, False, False]


def test_mistral_without_its_window_has_one_of_4096(transformers_side, tmp_path):  # noqa: F811
    rng = np.random.default_rng([SEED, 10])
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 8192, "sliding_window": 4096}
    whole = written("mistral", rng, tmp_path, transformers_side, **sizes)
    del whole["sliding_window"]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    ids = rng.integers(0, whole["vocab_size"], 4300).tolist()
    ours, theirs = both(tmp_path, ids, transformers_side)
    assert agree(ours, theirs)
    (tmp_path / "config.json").write_text(json.dumps(whole | {"sliding_window": None}))
    ours, theirs_without = both(tmp_path, ids, transformers_side)
    assert agree(ours, theirs_without) and not agree(theirs, theirs_without)
