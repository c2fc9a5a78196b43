"""Matrices that are not plain float32 arrays but can be multiplied by as if they were.

What each of them has is in matrix.py.
"""
