"""Runs: their directories, their results, their processes."""
