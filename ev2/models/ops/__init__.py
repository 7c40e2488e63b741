"""Convolutions and memory-saving forms of them, chosen by platform."""
