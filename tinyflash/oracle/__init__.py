"""The oracle: record every intermediate tensor, and name the first that differs."""
