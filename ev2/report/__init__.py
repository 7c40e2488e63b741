"""One run for people to look at: figures and an HTML page."""
