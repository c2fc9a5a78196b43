"""Matrices that are not plain float32 arrays but can be multiplied by as if they were.

Each has `shape`, `nbytes`, `multiply(x)`, `rows(ids)` and `dense()`; `ops.linear` asks for
nothing more.
"""
