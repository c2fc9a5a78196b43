"""One short file a verb: the parsed arguments in, the exit code out."""
