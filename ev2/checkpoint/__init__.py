"""Weights on disk: checkpoints of runs, and weights that others published."""
