"""Freed memory kept for the next step, for training on CPU.

XLA takes a step's temporaries from the system allocator anew in every step. glibc maps
so large a block afresh each time, and the kernel then clears it page by page while the
step runs. Kept on the heap, the same pages serve the next step. The process holds on to
its largest step's memory until it ends.
"""

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Makes glibc keep what is freed, where steps will run on CPU.

    To be called before JAX starts its threads, for each of them takes an arena of its
    own with its first allocation, and only the first arena can hold large blocks.
    Hosts of accelerators are left as they are: their steps take no memory here, and
    the threads that read pictures do better with many arenas.

    Returns:
        Whether it did: not on another C library, nor where JAX has an accelerator.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    if not _steps_on_cpu():
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(name, value) for name, value in settings)


def _steps_on_cpu() -> bool:
    """Whether JAX will use the CPU, told without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
