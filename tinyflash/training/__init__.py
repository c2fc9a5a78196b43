"""Gradients of the same forward pass, the optimizer, and the training of language models."""
