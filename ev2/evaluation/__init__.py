"""Evaluation of trained weights: accuracy over a split, and predictions for images."""
