"""Random arrays for the tests of layers."""

import numpy as np


def normal(*shape, seed=0) -> np.ndarray:
    """Standard normal float32 numbers, the same at every call."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
