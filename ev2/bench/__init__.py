"""Measurements, printed as a table or written as JSON; nothing in ev2 imports them."""
