"""LLM in a flash (arXiv 2312.11514): a model on flash, and in DRAM what the next token needs."""
