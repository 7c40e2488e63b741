"""pytest tests/train/test_memory.py"""

import os
import subprocess
import sys

import pytest

# The second of two runs of one program reuses the 64 MB that the first one freed.
FAULTS = """
import resource, jax, jax.numpy as jnp
from ev2.train import memory
if {keep}:
    assert memory.keep_freed()
program = jax.jit(lambda x: jnp.sum(jnp.sin(jax.lax.optimization_barrier(x @ x.T))))
x = jnp.ones((2**12, 8))
counts = []
for _ in range(20):  # on a busy machine many still spread over threads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts))
"""


def page_faults(*, keep):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    script = FAULTS.format(keep=keep)
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_program_that_runs_again_takes_no_new_pages():
    assert page_faults(keep=True) < page_faults(keep=False) / 10


@pytest.mark.parametrize("platforms", ["tpu", "cuda,cpu"])
def test_hosts_of_accelerators_are_left_alone(monkeypatch, platforms):
    from ev2.train import memory

    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert not memory.keep_freed()
