"""Measures of trained weights: accuracy over a split, predictions."""
