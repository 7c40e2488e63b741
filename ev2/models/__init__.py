"""Networks: what is computed. The only package that imports Flax."""
