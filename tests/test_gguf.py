"""GGUF files: every type bit for bit, llama.cpp's row order undone, metadata, bad files."""

import sys

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from tinyflash.checkpoint.gguf_file import open_gguf
from tinyflash.checkpoint.mapped import file_behind
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import find_model
from tinyflash.families import read_config
from tinyflash.weights import load_weights

# Awkward on purpose: G divides H, K is not D / H, V is odd; rows divide into blocks of 32.
D, L, H, G, K, F, V = 64, 2, 6, 2, 16, 96, 101

SHAPES = {  # Hugging Face name -> shape, in the order of the file
    "model.embed_tokens.weight": (V, D),
    "model.norm.weight": (D,),
    "lm_head.weight": (V, D),
}
for layer in range(L):
    SHAPES |= {
        f"model.layers.{layer}.{part}.weight": shape
        for part, shape in {
            "input_layernorm": (D,),
            "self_attn.q_proj": (H * K, D),
            "self_attn.k_proj": (G * K, D),
            "self_attn.v_proj": (G * K, D),
            "self_attn.o_proj": (D, H * K),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }.items()
    }
GGUF_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BLOCK_BYTES = {Type.Q8_0: 34, Type.Q4_0: 18, Type.Q4_1: 20}
HEADS = {"self_attn.q_proj": H, "self_attn.k_proj": G}


def gguf_name(name):
    part, kind = name.rsplit(".", 1)
    if part.startswith("model.layers."):
        layer, part = part.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{GGUF_PARTS[part]}.{kind}"
    return f"{GGUF_PARTS[part]}.{kind}"


def as_llama_cpp_orders(rows, heads):
    """The converter's permutation, row by row: HF rows j and j + K/2 become 2j and 2j + 1."""
    stored = np.empty_like(rows)
    width = len(rows) // heads
    for head in range(heads):
        for j in range(width // 2):
            stored[head * width + 2 * j] = rows[head * width + j]
            stored[head * width + 2 * j + 1] = rows[head * width + width // 2 + j]
    return stored


def stored_tensors(kind, seed=0, names=SHAPES):
    """Random stored numbers of one type, in Hugging Face's row order; norms are F32."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in names:
        shape = SHAPES.get(name) or (SHAPES[name.replace("bias", "weight")][0],)
        numbers = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1 or kind == Type.F32:
            tensors[name] = numbers
        elif kind == Type.F16:
            tensors[name] = numbers.astype(np.float16)
        elif kind == Type.BF16:
            tensors[name] = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        else:
            blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, BLOCK_BYTES[kind]))
            blocks = blocks.astype(np.uint8)
            scales = rng.standard_normal((*blocks.shape[:-1], 2), dtype=np.float32)
            count = 2 if kind == Type.Q4_1 else 1
            blocks[..., : 2 * count] = scales[..., :count].astype(np.float16).view(np.uint8)
            tensors[name] = blocks.reshape(*shape[:-1], -1)
    return tensors


def write_gguf(
    path, tensors, kind=Type.F32, architecture="llama", drop=(), others=None, **metadata
):
    """A llama GGUF file; `drop` and `metadata` change what it says, `others` types of tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    settings = {
        "block_count": L,
        "context_length": 512,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention.head_count": H,
        "attention.head_count_kv": G,
        "attention.key_length": K,
        "attention.value_length": K,
        "rope.dimension_count": K,
        "rope.freq_base": 5e5,
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | metadata
    for key, value in settings.items():
        if key in drop:
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(f"llama.{key}", value)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 3)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 4)
    for name, numbers in tensors.items():
        part = name.rsplit(".", 1)[0].split(".", 3)[-1]
        if part in HEADS:
            numbers = as_llama_cpp_orders(numbers, HEADS[part])
        raw = (others or {}).get(name, kind) if numbers.dtype in (np.uint8, np.uint16) else None
        numbers = numbers.view(np.uint8) if numbers.dtype == np.uint16 else numbers
        known = part in GGUF_PARTS or name in SHAPES
        writer.add_tensor(gguf_name(name) if known else name, numbers, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantized(stored, kind):
    """By the block layouts, one block after the other: float32 (out, in)."""
    rows = []
    for row in stored:
        numbers = []
        for block in row.reshape(-1, BLOCK_BYTES[kind]):
            d, m = block[:4].view(np.float16).astype(np.float32)
            if kind == Type.Q8_0:
                numbers.append(block[2:].view(np.int8).astype(np.float32) * d)
                continue
            packed = block[2:] if kind == Type.Q4_0 else block[4:]
            nibbles = np.concatenate([packed & 15, packed >> 4]).astype(np.float32)
            numbers.append((nibbles - np.float32(8)) * d if kind == Type.Q4_0 else nibbles * d + m)
        rows.append(np.concatenate(numbers))
    return np.stack(rows)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1])
def test_every_type_is_read_bit_for_bit_in_hugging_faces_row_order(tmp_path, kind):
    tensors = stored_tensors(kind)
    checkpoint = open_gguf(write_gguf(tmp_path / "model.gguf", tensors, kind))
    assert checkpoint.names() == list(SHAPES)
    for name, stored in tensors.items():
        expected = dequantized(stored, kind) if stored.dtype == np.uint8 else stored
        tensor = checkpoint[name]
        assert tensor.array.shape == SHAPES[name] == checkpoint.shape(name), name
        assert tensor.array.dtype == expected.dtype, name
        assert tensor.array.tobytes() == expected.tobytes(), name
        assert tensor.dtype == {np.uint16: "bfloat16"}.get(expected.dtype.type, expected.dtype.name)
    matrices = sum(len(shape) == 2 for shape in SHAPES.values())
    assert checkpoint.tensor_types[kind.name] == matrices + (5 if kind == Type.F32 else 0)
    assert checkpoint.tensor_types.total() == len(SHAPES)
    assert checkpoint.nbytes == sum(stored.nbytes for stored in tensors.values())


def test_our_dequantizer_is_that_of_the_gguf_package_on_quantized_numbers():
    # The random blocks above hold any codes; these hold what a quantizer writes.
    numbers = np.random.default_rng(1).standard_normal((5, 64), dtype=np.float32)
    for kind in BLOCK_BYTES:
        stored = gguf.quantize(numbers, kind)
        assert np.array_equal(dequantized(stored, kind), gguf.dequantize(stored, kind))
        assert np.abs(dequantized(stored, kind) - numbers).max() < 0.5


def test_biases_of_q_and_k_are_reordered_too(tmp_path):
    names = [*SHAPES]
    for name in SHAPES:
        if name.endswith("_proj.weight"):
            names.append(name.replace("weight", "bias"))
    tensors = stored_tensors(Type.F32, names=names)
    checkpoint = open_gguf(write_gguf(tmp_path / "model.gguf", tensors))
    assert checkpoint.config["attention_bias"] and checkpoint.config["mlp_bias"]
    for name, stored in tensors.items():
        assert np.array_equal(checkpoint[name].array, stored), name


def test_plain_tensors_are_mapped_and_read_only(tmp_path):
    checkpoint = open_gguf(write_gguf(tmp_path / "model.gguf", stored_tensors(Type.F16), Type.F16))
    array = checkpoint["lm_head.weight"].array
    assert not array.flags.owndata and not array.flags.writeable
    assert type(array) is np.ndarray
    assert file_behind(array) is not None  # it was not copied


def test_config_is_the_one_that_hugging_face_would_have(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", stored_tensors(Type.F32)))
    assert checkpoint.config == {
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "head_dim": K,
        "intermediate_size": F,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 3,
        "eos_token_id": 4,
    }
    assert checkpoint.metadata["general.architecture"] == "llama"
    weights = load_weights(checkpoint, read_config(checkpoint.config))
    assert weights["layers.1.attn.q.weight"].shape == (H * K, D)


def test_what_the_metadata_leave_out_has_llama_cpps_meaning(tmp_path):
    tensors = stored_tensors(Type.F32)
    del tensors["lm_head.weight"]
    drop = ["attention.head_count_kv", "rope.freq_base", "attention.key_length"]
    drop += ["attention.value_length"]
    settings = {"attention.head_count": 4}  # 64 / 4 = 16 = K
    config = open_gguf(write_gguf(tmp_path / "a.gguf", tensors, drop=drop, **settings)).config
    assert config["num_key_value_heads"] == 4
    assert config["rope_theta"] == 10000.0
    assert config["tie_word_embeddings"] is True
    assert "head_dim" not in config and "rope_scaling" not in config


def llama3_divisors(factor):
    """Llama 3's rule one frequency at a time, from wavelengths."""
    divisors = []
    for j in range(K // 2):
        wavelength = 2 * np.pi * 5e5 ** (2 * j / K)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / 1:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def test_rope_scaling(tmp_path):
    def config(tensors, **settings):
        return open_gguf(write_gguf(tmp_path / "model.gguf", tensors, **settings)).config

    tensors = stored_tensors(Type.F32)
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert config(tensors, **linear)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert config(tensors, **{"rope.scale_linear": 2.0})["rope_scaling"]["factor"] == 2.0
    assert "rope_scaling" not in config(tensors, **{"rope.scaling.type": "none"})
    with pytest.raises(ValueError, match=r"'yarn'.*'linear' and as Llama 3"):
        config(tensors, **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})

    divisors = llama3_divisors(8.0)
    assert 1 < np.unique(divisors).size and (divisors[1:] >= divisors[:-1]).all()
    found = config(tensors | {"rope_freqs.weight": divisors})
    assert found["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert read_config(found).rope.scaling == "llama3"
    ones = np.ones(K // 2, dtype=np.float32)
    assert "rope_scaling" not in config(tensors | {"rope_freqs.weight": ones})
    divisors[2] *= np.float32(1.01)
    with pytest.raises(ValueError, match="'by a tensor of its own'"):
        config(tensors | {"rope_freqs.weight": divisors})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"drop": ["block_count"]}, "lack llama.block_count"),
        ({"attention.head_count": 0}, "lack llama.attention.head_count"),
        ({"attention.head_count_kv": [2, 1]}, "head_count_kv differs from layer to layer"),
        ({"rope.dimension_count": 8}, "rope.dimension_count is 8 where heads are 16 wide"),
        ({"attention.head_count": 7}, "96 rows of tensor .*0.self_attn.q_proj.weight .* 7 heads"),
    ],
)
def test_metadata_that_make_no_model_are_refused(tmp_path, settings, sentence):
    path = write_gguf(tmp_path / "model.gguf", stored_tensors(Type.F32), **settings)
    with pytest.raises(ValueError, match=sentence):
        open_gguf(path)


def test_other_architectures_types_and_tensors_are_refused_by_name(tmp_path):
    path = tmp_path / "model.gguf"
    tensors = stored_tensors(Type.F32)
    write_gguf(path, tensors, architecture="bert")
    with pytest.raises(ValueError, match=r"'bert'.*reads llama"):
        open_gguf(path)
    write_gguf(path, tensors | {"blk.0.ffn_gate_inp.weight": tensors["model.norm.weight"]})
    with pytest.raises(ValueError, match=r"blk.0.ffn_gate_inp.weight belongs to no llama"):
        open_gguf(path)
    write_gguf(path, tensors | {"lm_head.weight": np.zeros((V, D), dtype=np.float64)})
    with pytest.raises(ValueError, match=r"lm_head.weight is stored as F64.*F32, F16, BF16, Q8_0"):
        open_gguf(path)
    del tensors["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match="no tensor token_embd"):
        open_gguf(write_gguf(path, tensors))


def test_a_file_that_mixes_formats_names_one_that_does_not(tmp_path):
    """llama.cpp's Q4_0 stores the head as Q6_K where its rows are multiples of 256."""
    tensors = stored_tensors(Type.Q4_0) | {"lm_head.weight": np.zeros((V, 210), dtype=np.uint8)}
    write_gguf(tmp_path / "mix.gguf", tensors, Type.Q4_0, others={"lm_head.weight": Type.Q6_K})
    with pytest.raises(ValueError, match=r"lm_head.weight is stored as Q6_K.*the Q8_0 or F16 file"):
        open_gguf(tmp_path / "mix.gguf")


@pytest.mark.parametrize("name", ["model", "sha256-1a2b3c", "model.bin", "MODEL.GGUF"])
def test_a_file_needs_no_suffix(tmp_path, name):
    file = write_gguf(tmp_path / "model.gguf", stored_tensors(Type.F16), Type.F16)
    expected = open_checkpoint(file)
    renamed = open_checkpoint(file.rename(tmp_path / name))
    assert renamed.names() == expected.names() and renamed.config == expected.config
    assert find_model(tmp_path / name) == tmp_path / name
    (tmp_path / name).write_bytes(b"GGML and so on")
    with pytest.raises(ValueError, match="is not a GGUF file|only a .gguf file is a model"):
        open_checkpoint(tmp_path / name)


def test_a_part_of_a_split_model_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"one of 3 parts.*--merge"):
        open_gguf(tmp_path / "part.gguf")


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = write_gguf(tmp_path / "model.gguf", stored_tensors(Type.Q8_0), Type.Q8_0).read_bytes()
    path = tmp_path / "short.gguf"
    lengths = [*range(4, 1600, 37), len(whole) // 2, len(whole) - 1000]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"short.gguf is truncated or damaged.*fetch it again"):
            open_gguf(path)
    for other in (b"", b"PK\x03\x04 something else"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="is not a GGUF file"):
            open_gguf(path)
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "absent.gguf")


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("kind", "place"), [(Type.Q8_0, 0), (Type.Q4_0, 0), (Type.Q4_1, 2)])
def test_infinite_scales_are_an_error_that_names_the_tensor(tmp_path, kind, place, bad):
    tensors = stored_tensors(kind)
    name = "model.layers.1.self_attn.k_proj.weight"
    place += BLOCK_BYTES[kind]  # in the second block of a row
    tensors[name][5, place : place + 2] = np.array([bad], dtype=np.float16).view(np.uint8)
    checkpoint = open_gguf(write_gguf(tmp_path / "model.gguf", tensors, kind))
    with pytest.raises(ValueError, match=f"{name} has Inf or NaN among the scales"):
        checkpoint[name]
    checkpoint[name.replace("k_proj", "q_proj")]  # the others can be read


def test_without_the_gguf_package_the_extra_is_named(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "model.gguf", stored_tensors(Type.F32))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r'pip install "gguf>=.*pip install -e "\.\[gguf\]"'):
        open_gguf(path)


@pytest.mark.slow
def test_smollm2_is_the_model_we_think_it_is():
    from tinyflash.checkpoint.sources import find_smollm2

    checkpoint = open_gguf(find_smollm2())
    config = read_config(checkpoint.config)
    assert (config.layers, config.heads, config.kv_heads, config.head_width) == (30, 9, 3, 64)
    assert (config.width, config.ffn_width, config.vocab_size) == (576, 1536, 49152)
    assert (config.rope.theta, config.context, config.norm_eps) == (100000.0, 8192, 1e-05)
    assert config.tied and (config.bos_id, config.eos_ids) == (1, (2,))
    assert checkpoint.tensor_types == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert checkpoint.metadata["tokenizer.ggml.pre"] == "smollm"
    for name in checkpoint.names():
        assert np.isfinite(checkpoint[name].array).all(), name
