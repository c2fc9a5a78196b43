"""Many reads at a time, past the page cache."""
