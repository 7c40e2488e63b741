"""What the training step costs on a TPU slice, from its compiler, without a TPU.

`compile_step` compiles the very step that `ev2 train` runs for a slice of any size and
reads the compiler's figures; `compile_apart` does so in a process of its own, so that
several run at once and the memory is given back. libtpu, the extra "tpu", is the
compiler.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

from ml_collections import ConfigDict

from ev2 import errors
from ev2.tpu import slices
from ev2.train import validate as check

# No TPU is looked for, and other processes may compile at the same time.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
# What a process that only compiles needs beside that: no other device, no cache of
# programs, which would hide how long compiling takes.
_APART = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
_SCALES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "f64": 8}
_COLLECTIVE = re.compile(
    r" = (\(.*?\)|\S+) (?:all-reduce|reduce-scatter|all-gather|all-to-all|"
    r"collective-permute)(?:-start)?\("
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """One step to compile; everything that its figures depend on but versions.

    Attributes:
        config: what the step reads, from `step_config`.
        num_classes: of the network.
        image_size: px.
        batch_size: global images.
        slice_name: a name that `slices.find` knows.
    """

    config: dict[str, Any]
    num_classes: int
    image_size: int
    batch_size: int
    slice_name: str


def step_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the part of the config that reaches the compiled step, JSON-ready.

    The seed and whatever the learning rate is made of are set to one value: they move
    neither shapes nor operations.
    """
    plain = json.loads(config.to_json_best_effort())
    kept = {key: plain[key] for key in ("model", "loss", "optimizer", "ema")}
    fixed = {"lr": 1.0, "schedule": "constant", "warmup_epochs": 0.0}
    fixed |= {"decay_rate": 1.0, "decay_epochs": 1.0}
    kept["optimizer"] = {**kept["optimizer"], **fixed}
    mixed = float(check.mixes(config))
    return {
        **kept,
        "seed": 0,
        "init": {**plain["init"], "checkpoint": ""},
        # What is left to a checkpoint is three numbers as well.
        "data": {key: plain["data"][key] or [1.0] * 3 for key in ("mean", "std")}
        | {"max_labels": plain["data"]["max_labels"]},
        "progressive": {"mixup": [mixed], "cutmix": [0.0]},
    }


def check_installed() -> None:
    """Raises InputError if there is no libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise errors.InputError(
            "tpu: libtpu, the compiler, is not installed; pip install 'ev2[tpu]' "
            "brings it (no TPU is needed)"
        )


def get_devices(slice_: slices.Slice) -> list[Any]:
    """Returns the devices of a slice that is not here, for `sharding.make_mesh`."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    described = topologies.get_topology_desc(
        platform="tpu",
        topology_name=slice_.topology,
        **slice_.generation.options,
    )
    assert len(described.devices) == slice_.devices, slice_
    return described.devices


def compile_step(job: CompileRequest) -> dict[str, Any]:
    """Returns what the compiler says about one training step; see `read_figures`.

    Where the step does not fit, "fits" is False, "wanted_bytes" is what it asked for
    (None if the compiler does not say), and the other figures are None.
    """
    from ev2 import sharding
    from ev2.train import compile as programs
    from ev2.train import optimizer as optim

    slice_ = slices.find(job.slice_name)
    config = ConfigDict(job.config, convert_dict=True)
    mesh = sharding.make_mesh(get_devices(slice_))
    started = time.monotonic()
    lowered = programs.lower_train_step(
        programs.make_model(config, job.num_classes),
        optim.make_optimizer(config),
        config,
        mesh,
        image_size=job.image_size,
        batch_size=job.batch_size,
    )
    images = job.batch_size // slice_.devices
    return compile_lowered(lowered, slice_, images=images, started=started)


def compile_lowered(
    lowered: Any, slice_: slices.Slice, *, images: int, started: float
) -> dict[str, Any]:
    """Returns the figures of a traced step, as `compile_step` does.

    Args:
        lowered: as `jax.stages.Lowered`, for the slice.
        slice_: where it would run.
        images: per device and step.
        started: when tracing began, by `time.monotonic`.
    """
    import jax

    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _unfit(slice_, str(error), time.monotonic() - started)
    seconds = time.monotonic() - started
    return read_figures(compiled, slice_, images=images, compile_seconds=seconds)


def read_figures(
    compiled: Any, slice_: slices.Slice, *, images: int, compile_seconds: float
) -> dict[str, Any]:
    """Returns the figures of a compiled step, all per device and step.

    Keys: "fits"; "hbm_bytes", of arguments, results and temporaries, results that
    reuse the memory of arguments counted once; "temp_bytes"; "hbm_available_bytes";
    "flops"; "bytes_accessed"; "step_seconds" with "step_seconds_from", see
    `step_seconds`; "images_per_second_per_device"; "reduced_bytes", the results of
    operations between devices; "compile_seconds".

    Args:
        compiled: as `jax.stages.Compiled`.
        slice_: that it was compiled for.
        images: per device and step.
        compile_seconds: that it took, with tracing.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    available = slice_.generation.hbm_bytes
    flops, accessed = cost["flops"], cost["bytes accessed"]
    seconds, source = step_seconds(
        cost.get("optimal_seconds", math.nan), flops, accessed, slice_.generation
    )
    return {
        "fits": used <= available,
        "hbm_bytes": used,
        "temp_bytes": memory.temp_size_in_bytes,
        "hbm_available_bytes": available,
        "flops": flops,
        "bytes_accessed": accessed,
        "step_seconds": seconds,
        "step_seconds_from": source,
        "images_per_second_per_device": images / seconds,
        "reduced_bytes": reduced_bytes(compiled.as_text()),
        "compile_seconds": round(compile_seconds, 1),
    }


def step_seconds(
    said: float, flops: float, accessed: float, generation: slices.Generation
) -> tuple[float, str]:
    """Returns the seconds of a step and where they are from.

    They are the compiler's ("compiler") where those can be true. Its cost model counts
    only what it knows and can come out negative; then they are what arithmetic or
    memory traffic takes at the peak of the device ("lower bound").
    """
    if math.isfinite(said) and said > 0:
        return said, "compiler"
    bound = max(
        flops / generation.flops_per_second, accessed / generation.bytes_per_second
    )
    return bound, "lower bound"


def reduced_bytes(hlo: str) -> int:
    """Returns the bytes that operations between devices give one device.

    Args:
        hlo: the optimized program as text.
    """
    shapes = (match[1] for match in _COLLECTIVE.finditer(hlo))
    return sum(
        _ITEM_BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(","))))
        for shape in shapes
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def _unfit(slice_: slices.Slice, message: str, seconds: float) -> dict[str, Any]:
    """The figures of a step that the compiler finds no memory for."""
    wanted = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available", message)
    unknown = ("hbm_bytes", "temp_bytes", "flops", "bytes_accessed", "step_seconds")
    unknown += ("step_seconds_from", "images_per_second_per_device", "reduced_bytes")
    return {
        "fits": False,
        **dict.fromkeys(unknown),
        "wanted_bytes": int(float(wanted[1]) * _SCALES[wanted[2]]) if wanted else None,
        "hbm_available_bytes": slice_.generation.hbm_bytes,
        "compile_seconds": round(seconds, 1),
    }


def compile_apart(job: CompileRequest) -> dict[str, Any]:
    """Returns `compile_step(job)`, from a process of its own; see `run_apart`."""
    what = f"{job.image_size} px on {job.slice_name}"
    return run_apart("ev2.tpu.compile", dataclasses.asdict(job), what)


def run_apart(module: str, task: Any, what: str) -> dict[str, Any]:
    """Returns what a module that compiles prints when it is run with a task.

    Args:
        module: reads the task from stdin as JSON; its last line is the result as JSON.
        task: JSON-ready.
        what: the task, for messages.

    Raises:
        InputError: the machine has not the memory for it.
        RuntimeError: it failed; with what it said.
    """
    run = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(task),
        env={**os.environ, **ENVIRONMENT, **_APART},
        capture_output=True,
        text=True,
    )
    if run.returncode == -9:
        raise errors.InputError(
            f"tpu: the compiler was stopped at {what}, most likely because this "
            "machine has too little memory for it"
        )
    if run.returncode:
        raise RuntimeError(f"compiling {what} failed: {run.stderr.strip()[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(compile_step(CompileRequest(**json.loads(sys.stdin.read())))))
