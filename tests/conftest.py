"""Test settings: eight simulated devices, strict dtypes and ranks, no GPU."""

import contextlib
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Compiling is most of the tests' time; what is computed stays the same program.
    + " --xla_backend_optimization_level=0"
)

# Where the peers are installed: torchvision 0.29 crashes when TensorFlow 2.21 was
# imported before it, and does not in this order.
with contextlib.suppress(ImportError):
    import torchvision  # noqa: F401

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Several tests compile the same small programs: one session shares them.
_compiled = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
