"""Benchmarks: each measures ratios within one run, and says on what machine."""
