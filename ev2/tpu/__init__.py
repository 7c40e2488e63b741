"""Forecasts memory, time and hours of a run on TPU slices by their compiler."""
