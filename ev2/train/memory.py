"""Keeps freed memory on the heap for the next step, where steps run on the CPU.

XLA allocates a step's temporaries anew in every step. glibc maps blocks of that size
afresh each time, and the kernel clears them page by page while the step runs.
"""

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of glibc's mallopt, from malloc.h, and their values.
_SETTINGS = {-8: 1, -4: 0, -1: 2**31 - 1}  # ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD


def keep_freed() -> bool:
    """Makes glibc keep freed memory; must be called before JAX starts its threads.

    Only a process's first arena can hold large blocks, so there must be no other. Hosts
    of accelerators and other C libraries are left alone: threads that read images need
    many arenas.

    Returns:
        True if the settings were made.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    accelerated = bool(plugins) or importlib.util.find_spec("libtpu") is not None
    on_cpu = platforms.split(",")[0] == "cpu" or not (platforms or accelerated)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not on_cpu or mallopt is None:
        return False
    return all(mallopt(parameter, value) for parameter, value in _SETTINGS.items())
