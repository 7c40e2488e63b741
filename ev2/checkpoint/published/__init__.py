"""Published weights, read into variables of our networks."""
