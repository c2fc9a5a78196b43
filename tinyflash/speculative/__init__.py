"""Speculative decoding: propose several tokens, let the model verify them in one pass."""
