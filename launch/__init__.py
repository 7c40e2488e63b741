"""Launching on machines elsewhere; nothing of it is imported by ev2."""
