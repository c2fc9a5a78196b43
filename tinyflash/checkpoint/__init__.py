"""Checkpoints: tensors by name out of safetensors, PyTorch and GGUF files, none read too early."""
