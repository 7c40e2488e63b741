"""Runs many trainings: the trials of a study, and chains of runs."""
