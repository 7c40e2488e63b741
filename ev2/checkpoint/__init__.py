"""Weights on disk: checkpoints of runs, and published weights."""
