"""The goldens' shapes: tiny, no two sizes alike, and what each is there to isolate."""

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

NINE, NEW_TOKENS = 9, 64
CONTEXT = NINE + NEW_TOKENS
WINDOW = 5  # of Mistral and Qwen 2: shorter than nine tokens

OPT = {
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "max_position_embeddings": CONTEXT,
}
LLAMA = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": CONTEXT}


def rope(theta, kind="default", **settings):
    """Rotary positions as transformers writes them."""
    return {"rope_type": kind, "rope_theta": theta, **settings}


# directory -> config of what is stored in float32
CONFIGS = {
    "opt": OPTConfig(
        vocab_size=211, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, ffn_dim=70,
        word_embed_proj_dim=36, **OPT,
    ),
    # norms after each part, and embeddings narrower than the model
    "opt-350m": OPTConfig(
        vocab_size=199, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, ffn_dim=74,
        word_embed_proj_dim=22, do_layer_norm_before=False, **OPT,
    ),
    # no biases, no gains, logits from a matrix of their own
    "opt-bare": OPTConfig(
        vocab_size=173, hidden_size=28, num_hidden_layers=3, num_attention_heads=7, ffn_dim=62,
        word_embed_proj_dim=28, enable_bias=False, layer_norm_elementwise_affine=False,
        tie_word_embeddings=False, **OPT,
    ),
    "gpt2": GPT2Config(
        vocab_size=181, n_embd=33, n_layer=2, n_head=3, n_inner=85, n_positions=CONTEXT,
        layer_norm_epsilon=3e-5, bos_token_id=180, eos_token_id=180,
    ),
    # heads share keys and values, and are wider than D/H
    "llama": LlamaConfig(
        vocab_size=151, hidden_size=30, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, intermediate_size=58, rms_norm_eps=2e-5,
        rope_parameters=rope(500.0), **LLAMA,
    ),
    # of the wavelengths 6, 16, 40, 100, 250 the first is kept, two are blended, two divided
    "llama3": LlamaConfig(
        vocab_size=157, hidden_size=28, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, intermediate_size=54, rms_norm_eps=1e-5,
        rope_parameters=rope(
            100.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=41,
        ),
        **LLAMA,
    ),
    "llama-biases": LlamaConfig(
        vocab_size=163, hidden_size=36, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=3, head_dim=4, intermediate_size=50, rms_norm_eps=1e-6,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        rope_parameters=rope(10000.0), **LLAMA,
    ),
    # every frequency divided; all heads share one key head
    "llama-linear": LlamaConfig(
        vocab_size=139, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=12, intermediate_size=42, rms_norm_eps=1e-5,
        rope_parameters=rope(1000.0, "linear", factor=3.0), **LLAMA,
    ),
    "mistral": MistralConfig(
        vocab_size=167, hidden_size=40, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=6, intermediate_size=46, rms_norm_eps=1e-5,
        sliding_window=WINDOW, rope_parameters=rope(10000.0), **LLAMA,
    ),
    # the unembedding is the embedding, which tie_word_embeddings denies
    "mobilellm": LlamaConfig(
        vocab_size=131, hidden_size=30, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=4, intermediate_size=44, rms_norm_eps=1e-5,
        rope_parameters=rope(10000.0), tie_word_embeddings=True, share_embedding=True,
        layer_sharing=False, **LLAMA,
    ),
    # every layer runs twice in a row
    "mobilellm-ls": LlamaConfig(
        vocab_size=103, hidden_size=24, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=3, head_dim=6, intermediate_size=34, rms_norm_eps=1e-5,
        rope_parameters=rope(10000.0), tie_word_embeddings=True, share_embedding=True,
        layer_sharing=True, **LLAMA,
    ),
    # biases of queries, keys and values alone
    "qwen2": Qwen2Config(
        vocab_size=127, hidden_size=36, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, intermediate_size=40, rms_norm_eps=1e-6,
        rope_parameters=rope(5000.0), **LLAMA,
    ),
    # the second layer has a window, the first has none
    "qwen2-window": Qwen2Config(
        vocab_size=109, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=38, rms_norm_eps=1e-6, tie_word_embeddings=True,
        use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1,
        rope_parameters=rope(5000.0), **LLAMA,
    ),
    # embeddings times √D, gains of 1 + w, one key head, heads together wider than the model
    "gemma": GemmaConfig(
        vocab_size=113, hidden_size=28, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=10, intermediate_size=46, rms_norm_eps=1e-6,
        rope_parameters=rope(10000.0), pad_token_id=0, bos_token_id=2, eos_token_id=1,
        max_position_embeddings=CONTEXT,
    ),
    # Falcon-7B: one key head, one norm for attention and feed-forward side by side
    "falcon": FalconConfig(
        vocab_size=137, hidden_size=30, num_hidden_layers=2, num_attention_heads=5,
        ffn_hidden_size=52, layer_norm_epsilon=1e-5, rope_parameters=rope(10000.0),
        **LLAMA,
    ),
    # Falcon-RW: ALiBi over a number of heads that is no power of two, biases, parts in turn
    "falcon-rw": FalconConfig(
        vocab_size=107, hidden_size=30, num_hidden_layers=2, num_attention_heads=10,
        ffn_hidden_size=42, alibi=True, multi_query=False, parallel_attn=False, bias=True, **LLAMA,
    ),
    # Falcon-40B: three query heads a key head, two norms side by side
    "falcon-40b": FalconConfig(
        vocab_size=101, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_kv_heads=2,
        ffn_hidden_size=56, new_decoder_architecture=True, rope_parameters=rope(10000.0), **LLAMA,
    ),
    # six of ten numbers of a head turn; the logits have a bias
    "phi": PhiConfig(
        vocab_size=97, hidden_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=34, layer_norm_eps=1e-5,
        rope_parameters=rope(10000.0, partial_rotary_factor=0.6), **LLAMA,
    ),
    # norms of the queries and keys of each head, of which half turns; squared ReLU
    "persimmon": PersimmonConfig(
        vocab_size=89, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=64, layer_norm_eps=1e-5,
        rope_parameters=rope(25000.0, partial_rotary_factor=0.5), **LLAMA,
    ),
    # every token sees the whole text; a norm of the embeddings, and a head that transforms
    "distilbert": DistilBertConfig(
        vocab_size=149, dim=28, n_layers=2, n_heads=4, hidden_dim=66, max_position_embeddings=21,
    ),
}  # fmt: skip

HALF = (
    "opt-float16", "opt-bfloat16",
    "gpt2-float16", "gpt2-bfloat16",
    "llama-float16", "llama-bfloat16",
    "mistral-float16", "mistral-bfloat16",
    "mobilellm-float16",
    "qwen2-bfloat16",
    "gemma-bfloat16",
    "falcon-bfloat16",
    "falcon-40b-float16",
    "phi-float16",
    "persimmon-bfloat16",
)  # fmt: skip

# directory -> config, dtype of the stored numbers
CASES = {name: (config, "float32") for name, config in CONFIGS.items()} | {
    name: (CONFIGS[name.rpartition("-")[0]], name.rpartition("-")[2]) for name in HALF
}
