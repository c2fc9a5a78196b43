"""Random transformers configs: awkward sizes, and every switch of a family thrown at random."""

from transformers import (
    DistilBertConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PersimmonConfig,
    PhiConfig,
    Qwen2Config,
)


def random_config(family, rng):
    """A transformers config of awkward sizes with every switch thrown at random.

    family : one of FAMILIES;  rng : np.random.Generator
    """
    return FAMILIES[family](Draw(rng))


class Draw:
    """Random choices, and the sizes that every family has."""

    def __init__(self, rng):
        self.rng = rng
        self.F = self.between(20, 120)
        self.L = self.between(1, 4)
        self.context = self.between(40, 90)
        self.eps = float(10.0 ** rng.uniform(-6, -3))
        self.theta = float(rng.uniform(10, 10000))
        self.words = {
            "vocab_size": self.between(50, 300),
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,
            "tie_word_embeddings": self.one_of(True, False),
        }

    def one_of(self, *values):
        """One of the values."""
        return values[self.rng.integers(len(values))]

    def between(self, low, high):
        """An int, at least `low` and below `high`."""
        return int(self.rng.integers(low, high))

    def grouped_heads(self):
        """Query heads H and the key heads G that they share, mostly fewer."""
        G = self.between(1, 4)
        return G * self.between(1 if G > 1 else 2, 5), G

    def width(self, H):
        """A width that H divides. Below 20, norms of a few numbers would be what is tested."""
        return H * (20 // H + self.between(1, 6))

    def even_width(self, H, normed=False):
        """A width of H heads whose own widths are even, as rotary positions need them.

        normed : queries and keys are normalized head by head; then heads are not narrow either
        """
        return H * 2 * (self.between(8, 12) if normed else 10 // H + self.between(1, 4))

    def rope(self):
        """Rotary positions as they are."""
        return {"rope_type": "default", "rope_theta": self.theta}

    def partial_rope(self, K):
        """Rotary positions of the first numbers of each head; what is half a pair is cut off."""
        turned = 2 * self.between(1, K // 2 + 1)
        share = 1.0 if turned == K else (turned + float(self.rng.uniform(0.1, 0.9))) / K
        return self.rope() | {"partial_rotary_factor": share}

    def llama(self):
        """What Llama, Mistral, Gemma and MobileLLM have: heads need not be D/H wide."""
        H, G = self.grouped_heads()
        return {
            "hidden_size": H * (20 // H + self.between(1, 4)),
            "num_hidden_layers": self.L,
            "num_attention_heads": H,
            "num_key_value_heads": G,
            "head_dim": 2 * self.between(2, 7),
            "intermediate_size": self.F,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.eps,
        }


def random_opt(draw):
    """OPT: norms before or after, narrow embeddings, with and without biases and gains."""
    H = draw.between(2, 8)
    D = draw.width(H)
    return OPTConfig(
        **draw.words,
        hidden_size=D,
        num_hidden_layers=draw.L,
        ffn_dim=draw.F,
        num_attention_heads=H,
        max_position_embeddings=draw.context,
        word_embed_proj_dim=draw.one_of(D, draw.between(10, 40)),
        do_layer_norm_before=draw.one_of(True, False),
        enable_bias=draw.one_of(True, True, False),
        layer_norm_elementwise_affine=draw.one_of(True, True, False),
    )


def random_gpt2(draw):
    """GPT-2: every activation that anybody gave it."""
    H = draw.between(2, 8)
    return GPT2Config(
        **draw.words,
        n_embd=draw.width(H),
        n_layer=draw.L,
        n_head=H,
        n_inner=draw.one_of(draw.F, None),
        n_positions=draw.context,
        activation_function=draw.one_of("gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
        layer_norm_epsilon=draw.eps,
    )


def random_llama(draw):
    """Llama: biases, and rotary positions stretched in two ways."""
    rope = draw.rope()
    kind = draw.one_of("default", "linear", "llama3")
    if kind == "linear":
        rope |= {"rope_type": kind, "factor": float(draw.rng.uniform(1.5, 8))}
    if kind == "llama3":
        rope |= {
            "rope_type": kind,
            "factor": float(draw.rng.uniform(2, 8)),
            "low_freq_factor": 1.0,
            "high_freq_factor": float(draw.rng.uniform(2, 6)),
            "original_max_position_embeddings": draw.between(16, draw.context),
        }
    return LlamaConfig(
        **draw.words,
        **draw.llama(),
        rope_parameters=rope,
        attention_bias=draw.one_of(True, False),
        mlp_bias=draw.one_of(True, False),
    )


def random_mistral(draw):
    """Mistral: with and without a window."""
    window = draw.one_of(None, draw.between(2, 20))
    return MistralConfig(
        **draw.words, **draw.llama(), rope_parameters=draw.rope(), sliding_window=window
    )


def random_mobilellm(draw):
    """MobileLLM as the Llama it is: embeddings shared or not, layers run once or twice."""
    settings = draw.words | draw.llama() | {"num_hidden_layers": draw.between(1, 3)}
    shared = settings["tie_word_embeddings"]
    return LlamaConfig(
        **settings,
        rope_parameters=draw.rope(),
        share_embedding=shared,
        layer_sharing=draw.one_of(True, False),
    )


def random_qwen2(draw):
    """Qwen 2: biases of queries, keys and values; a window in the upper layers, or in none."""
    H, G = draw.grouped_heads()
    window = draw.one_of(None, draw.between(2, 20))
    return Qwen2Config(
        **draw.words,
        hidden_size=draw.even_width(H),
        num_hidden_layers=draw.L,
        num_attention_heads=H,
        num_key_value_heads=G,
        intermediate_size=draw.F,
        max_position_embeddings=draw.context,
        rms_norm_eps=draw.eps,
        rope_parameters=draw.rope(),
        use_sliding_window=window is not None,
        sliding_window=window,
        max_window_layers=draw.between(0, draw.L + 1),
    )


def random_gemma(draw):
    """Gemma: embeddings multiplied by √D, gains around one, and wide heads."""
    return GemmaConfig(
        **draw.words,
        **draw.llama(),
        rope_parameters=draw.rope(),
        hidden_act=draw.one_of("gelu", "gelu_pytorch_tanh"),
        attention_bias=draw.one_of(True, False),
    )


def random_falcon(draw):
    """Falcon: one key head (7B), groups (40B and 11B), or all heads (RW); ALiBi or rotary."""
    kind = draw.one_of("multi-query", "groups", "all heads")
    H, G = draw.grouped_heads()
    parallel = kind == "groups" or draw.one_of(True, False)
    return FalconConfig(
        **draw.words,
        hidden_size=draw.even_width(H),
        num_hidden_layers=draw.L,
        num_attention_heads=H,
        num_kv_heads=G if kind == "groups" else None,
        new_decoder_architecture=kind == "groups",
        num_ln_in_parallel_attn=draw.one_of(None, 1, 2) if kind == "groups" else None,
        multi_query=kind == "multi-query",
        parallel_attn=parallel,
        alibi=draw.one_of(True, False),
        bias=draw.one_of(True, False),
        ffn_hidden_size=draw.one_of(draw.F, None),
        activation=draw.one_of("gelu", "relu"),
        layer_norm_epsilon=draw.eps,
        max_position_embeddings=draw.context,
        rope_parameters=draw.rope(),
    )


def random_phi(draw):
    """Phi: rotary positions of a part of each head, norms of queries and keys or none."""
    H, G = draw.grouped_heads()
    normed = draw.one_of(True, False)
    D = draw.even_width(H, normed)
    return PhiConfig(
        **draw.words,
        hidden_size=D,
        num_hidden_layers=draw.L,
        num_attention_heads=H,
        num_key_value_heads=G,
        intermediate_size=draw.F,
        hidden_act=draw.one_of("gelu_new", "gelu", "relu"),
        layer_norm_eps=draw.eps,
        qk_layernorm=normed,
        max_position_embeddings=draw.context,
        rope_parameters=draw.partial_rope(D // H),
    )


def random_persimmon(draw):
    """Persimmon: the same of a sequential block, with squared ReLU."""
    H = draw.between(2, 6)
    normed = draw.one_of(True, True, False)
    D = draw.even_width(H, normed)
    return PersimmonConfig(
        **draw.words,
        hidden_size=D,
        num_hidden_layers=draw.L,
        num_attention_heads=H,
        intermediate_size=draw.F,
        layer_norm_eps=draw.eps,
        qk_layernorm=normed,
        max_position_embeddings=draw.context,
        rope_parameters=draw.partial_rope(D // H),
    )


def random_distilbert(draw):
    """DistilBERT with its masked-word head."""
    H = draw.between(2, 8)
    words = {key: draw.words[key] for key in ("vocab_size", "pad_token_id", "tie_word_embeddings")}
    return DistilBertConfig(
        **words,
        dim=draw.width(H),
        n_layers=draw.L,
        n_heads=H,
        hidden_dim=draw.F,
        activation=draw.one_of("gelu", "relu"),
        max_position_embeddings=draw.context,
        sinusoidal_pos_embds=draw.one_of(True, False),
    )


FAMILIES = {
    "opt": random_opt,
    "gpt2": random_gpt2,
    "llama": random_llama,
    "mistral": random_mistral,
    "mobilellm": random_mobilellm,
    "qwen2": random_qwen2,
    "gemma": random_gemma,
    "falcon": random_falcon,
    "phi": random_phi,
    "persimmon": random_persimmon,
    "distilbert": random_distilbert,
}
