"""Where transformers keeps the modules whose inputs and outputs are taps.

A layer's modules stand under `layers`; the others under the names of the parts they compute.
"""

OPT = {
    "layers": "model.decoder.layers",
    "final_norm": "model.decoder.final_layer_norm",
    "attn.norm": "self_attn_layer_norm",
    "ffn.norm": "final_layer_norm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.out_proj",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
GPT2 = {
    "layers": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attn.norm": "ln_1",
    "ffn.norm": "ln_2",
    "attn.qkv": "attn.c_attn",
    "attn.o": "attn.c_proj",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}
LLAMA = {
    "layers": "model.layers",
    "final_norm": "model.norm",
    "attn.norm": "input_layernorm",
    "ffn.norm": "post_attention_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.down": "mlp.down_proj",
}
FALCON = {
    "layers": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attn.norm": "input_layernorm",
    "attn.qkv": "self_attention.query_key_value",
    "attn.o": "self_attention.dense",
    "ffn.up": "mlp.dense_h_to_4h",
    "ffn.down": "mlp.dense_4h_to_h",
}
PHI = {
    "layers": "model.layers",
    "final_norm": "model.final_layernorm",
    "attn.norm": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.dense",
    "ffn.up": "mlp.fc1",
    "ffn.down": "mlp.fc2",
}
PERSIMMON = {
    "layers": "model.layers",
    "final_norm": "model.final_layernorm",
    "attn.norm": "input_layernorm",
    "ffn.norm": "post_attention_layernorm",
    "attn.qkv": "self_attn.query_key_value",
    "attn.o": "self_attn.dense",
    "ffn.up": "mlp.dense_h_to_4h",
    "ffn.down": "mlp.dense_4h_to_h",
}
DISTILBERT = {
    "layers": "distilbert.transformer.layer",
    "unembed.transform": "vocab_layer_norm",  # it is what enters the norm
    "final_norm": "vocab_layer_norm",
    "attn.norm": "sa_layer_norm",
    "ffn.norm": "output_layer_norm",
    "attn.q": "attention.q_lin",
    "attn.k": "attention.k_lin",
    "attn.v": "attention.v_lin",
    "attn.o": "attention.out_lin",
    "ffn.up": "ffn.lin1",
    "ffn.down": "ffn.lin2",
}
PLACES = {
    "opt": OPT,
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gemma": LLAMA,
    "falcon": FALCON,
    "phi": PHI,
    "persimmon": PERSIMMON,
    "distilbert": DISTILBERT,
}


def places_of(hf_config):
    """The places in a model of this transformers config: dict part -> module path.

    `resid_mid` is the norm that it enters: where norms stand after, that of the attention.
    Parallel blocks have none; where they share one norm, ffn.norm has no place either.
    """
    family = hf_config.model_type
    places = dict(PLACES[family])
    if family == "falcon":
        if not hf_config.parallel_attn:
            places["ffn.norm"] = "post_attention_layernorm"
        elif hf_config.new_decoder_architecture and hf_config.num_ln_in_parallel_attn != 1:
            places |= {"attn.norm": "ln_attn", "ffn.norm": "ln_mlp"}
    if getattr(hf_config, "qk_layernorm", False):
        places |= {
            "attn.norm_q": "self_attn.q_layernorm",
            "attn.norm_k": "self_attn.k_layernorm",
        }
    if family == "opt" and not hf_config.do_layer_norm_before:
        del places["final_norm"]
        places["resid_mid"] = places["attn.norm"]
    elif family == "distilbert":
        places["resid_mid"] = places["attn.norm"]
    elif family != "phi" and not (family == "falcon" and hf_config.parallel_attn):
        places["resid_mid"] = places["ffn.norm"]
    return places


def split_qkv(hf_config, qkv):
    """Queries, keys and values of a fused (1, T, rows) tensor, each (1, T, heads, K).

    GPT-2 puts the three below one another; Persimmon and the oldest Falcons alternate them head
    by head; Falcon-40B puts behind the queries of each group its key and its value, and
    Falcon-7B is the case of one group.
    """
    H = hf_config.num_attention_heads
    K = hf_config.hidden_size // H
    if hf_config.model_type == "gpt2":
        return [part.unflatten(-1, (H, K)) for part in qkv.chunk(3, dim=-1)]
    per_head = qkv.unflatten(-1, (-1, K))
    if hf_config.model_type == "falcon" and hf_config.new_decoder_architecture:
        groups = hf_config.num_kv_heads
    elif hf_config.model_type == "falcon" and hf_config.multi_query:
        groups = 1
    else:
        groups = H
    per_group = per_head.unflatten(2, (groups, -1))  # (1, T, G, H/G + 2, K)
    q, k, v = per_group[:, :, :, :-2], per_group[:, :, :, -2], per_group[:, :, :, -1]
    return q.flatten(2, 3), k, v
