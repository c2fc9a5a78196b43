"""Keys of a config.json that say nothing about the arithmetic of inference."""

# How to write texts. Files of transformers before 4.40 have it in config.json, later ones in
# generation_config.json, and transformers 5 passes over what it finds here.
GENERATION = {
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids",
    "begin_suppress_tokens", "constraints", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "force_words_ids",
    "forced_bos_token_id", "forced_decoder_ids", "forced_eos_token_id", "generation_config",
    "length_penalty", "max_length", "max_new_tokens", "max_time", "min_length", "min_new_tokens",
    "min_p", "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "penalty_alpha",
    "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits",
    "repetition_penalty", "return_dict_in_generate", "stop_strings", "suppress_tokens",
    "target_lookbehind", "temperature", "top_k", "top_p", "typical_p", "use_cache",
}  # fmt: skip
TRAINING = {
    "activation_dropout", "attention_dropout", "attn_pdrop", "dropout", "embd_pdrop",
    "gradient_checkpointing", "hidden_dropout", "init_std", "initializer_range", "layerdrop",
    "predict_special_tokens", "resid_pdrop", "summary_dropout", "use_gradient_checkpointing",
}  # fmt: skip
# How a model came about, how it is run, and what other heads than that for language would need.
# The dtype stands in the weights' own file; `architectures` and `model_type` are looked at.
NOTES = {
    "architectures", "attn_implementation", "auto_map", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "dtype", "finetuning_task", "id2label", "is_decoder",
    "is_encoder_decoder", "label2id", "model_type", "n_special", "name_or_path", "num_labels",
    "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "prefix",
    "pruned_heads",
    "pretraining_tp", "problem_type", "return_dict", "sep_token_id", "task_specific_params",
    "tf_legacy_loss", "tie_encoder_decoder", "tie_last_hidden_states", "tokenizer_class",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version",
    "unk_token_id", "unsloth_fixed", "unsloth_version", "use_bfloat16",
}  # fmt: skip
IGNORED = GENERATION | TRAINING | NOTES
