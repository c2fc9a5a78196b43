"""The flash directory: what it holds, writing it, opening it, checking it."""
