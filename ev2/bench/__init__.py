"""Measurements beside peers; nothing else in ev2 imports them."""
