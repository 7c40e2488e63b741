"""Memory, time and hours of a run on TPU slices, by the slices' compiler."""
