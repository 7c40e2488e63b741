"""Recipes: one file is one result; `defaults.py` declares every key."""
