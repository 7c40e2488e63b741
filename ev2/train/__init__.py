"""One training run: setup, compiled step, loop, files."""
