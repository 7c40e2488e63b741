"""Compiles the training step for a TPU slice without a TPU, and reads its cost.

`compile_step` compiles the step that `ev2 train` runs, for a slice of any size.
`compile_apart` does so in a subprocess: several run at once, and their memory is freed.
The compiler is libtpu, the extra "tpu".
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
from ev2.train import validate

# Skips the search for TPUs, and lets other processes compile at the same time.
ENVIRONMENT = {
    **{"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    "TPU_LOG_DIR": "disabled",
}
# Of a process that only compiles: no other device, and no compilation cache, which
# would hide the compile time.
_SUBPROCESS_ENVIRONMENT = {
    **{"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
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
    """A step to compile: everything that its figures depend on, except versions.

    Attributes:
        config: config of the step, from `step_config`.
        num_classes: number of logits.
        image_size: px.
        batch_size: global images.
        slice_name: a name that `slices.find` accepts.
    """

    config: dict[str, Any]
    num_classes: int
    image_size: int
    batch_size: int
    slice_name: str


def step_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the part of the config that reaches the compiled step, JSON-ready.

    Values that change neither shapes nor operations, such as the seed and the learning
    rate, are set to constants.
    """
    plain = json.loads(config.to_json_best_effort())
    constants = {"lr": 1.0, "schedule": "constant", "warmup_epochs": 0.0}
    constants |= {"decay_rate": 1.0, "decay_epochs": 1.0}
    # Mean and std of a checkpoint are three numbers as well.
    data = {key: plain["data"][key] or [1.0] * 3 for key in ("mean", "std")}
    mixup = float(validate.mixes(config))
    return {
        **{key: plain[key] for key in ("model", "loss", "ema")},
        "optimizer": {**plain["optimizer"], **constants},
        "seed": 0,
        "init": {**plain["init"], "checkpoint": ""},
        "data": {**data, "max_labels": plain["data"]["max_labels"]},
        "progressive": {"mixup": [mixup], "cutmix": [0.0]},
    }


def check_installed() -> None:
    """Raises InputError if libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise errors.InputError(
            "tpu: libtpu, the compiler, is not installed; pip install 'ev2[tpu]' "
            "brings it (no TPU is needed)"
        )


def get_devices(slice_: slices.Slice) -> list[Any]:
    """Returns descriptions of a slice's devices, for `sharding.make_mesh`."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    options = {"topology_name": slice_.topology, **slice_.generation.options}
    topology = topologies.get_topology_desc(platform="tpu", **options)
    assert len(topology.devices) == slice_.devices, slice_
    return topology.devices


def compile_step(request: CompileRequest) -> dict[str, Any]:
    """Returns the compiler's figures of one training step; see `compile_lowered`."""
    from ev2 import sharding
    from ev2.train import compile as train_compile
    from ev2.train import optimizer as optim

    slice_ = slices.find(request.slice_name)
    config = ConfigDict(request.config, convert_dict=True)
    mesh = sharding.make_mesh(get_devices(slice_))
    started = time.monotonic()
    lowered = train_compile.lower_train_step(
        train_compile.make_model(config, request.num_classes),
        optim.make_optimizer(config),
        config,
        mesh,
        image_size=request.image_size,
        batch_size=request.batch_size,
    )
    images = request.batch_size // slice_.devices
    return compile_lowered(lowered, slice_, images=images, started=started)


def compile_lowered(
    lowered: Any, slice_: slices.Slice, *, images: int, started: float
) -> dict[str, Any]:
    """Compiles a traced step and returns its figures, all per device and step.

    Keys: "fits"; "hbm_bytes", of arguments, results and temporaries (shared memory
    counts once); "temp_bytes"; "hbm_available_bytes"; "flops"; "bytes_accessed";
    "step_seconds"; "step_seconds_from": "compiler", or "lower bound" by the peak rates
    of the device; "images_per_second_per_device"; "reduced_bytes", the results of
    operations between devices; "compile_seconds".

    If the step does not fit into memory, "fits" is False, "wanted_bytes" is its memory
    (None if unknown), and all other figures are None.

    Args:
        lowered: a `jax.stages.Lowered` for the slice.
        slice_: the slice.
        images: images per device and step.
        started: `time.monotonic` at the start of tracing.
    """
    import jax

    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        figures = _unfit(str(error))
    else:
        figures = _read_figures(compiled, slice_.generation, images)
    figures["hbm_available_bytes"] = slice_.generation.hbm_bytes
    return {**figures, "compile_seconds": round(time.monotonic() - started, 1)}


def _read_figures(
    compiled: Any, generation: slices.Generation, images: int
) -> dict[str, Any]:
    """Returns the figures of a `jax.stages.Compiled`."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    flops, accessed = cost["flops"], cost["bytes accessed"]
    seconds, source = cost.get("optimal_seconds", math.nan), "compiler"
    # The compiler's cost model is incomplete; its time may be negative.
    if not (math.isfinite(seconds) and seconds > 0):
        source = "lower bound"
        seconds = max(
            flops / generation.flops_per_second, accessed / generation.bytes_per_second
        )
    return {
        "fits": used <= generation.hbm_bytes,
        "hbm_bytes": used,
        "temp_bytes": memory.temp_size_in_bytes,
        "flops": flops,
        "bytes_accessed": accessed,
        "step_seconds": seconds,
        "step_seconds_from": source,
        "images_per_second_per_device": images / seconds,
        "reduced_bytes": reduced_bytes(compiled.as_text()),
    }


def _unfit(message: str) -> dict[str, Any]:
    """Returns the figures of a step that does not fit, from the compiler's message."""
    unknown = ("hbm_bytes", "temp_bytes", "flops", "bytes_accessed", "step_seconds")
    unknown += ("step_seconds_from", "images_per_second_per_device", "reduced_bytes")
    match = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available", message)
    wanted = int(float(match[1]) * _SCALES[match[2]]) if match else None
    return {"fits": False, **dict.fromkeys(unknown), "wanted_bytes": wanted}


def reduced_bytes(hlo: str) -> int:
    """Counts the bytes that one device receives from other devices.

    Args:
        hlo: the optimized program as text.
    """
    shapes = (match[1] for match in _COLLECTIVE.finditer(hlo))
    return sum(
        _ITEM_BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(","))))
        for shape in shapes
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def compile_apart(request: CompileRequest) -> dict[str, Any]:
    """Returns `compile_step(request)`, from a subprocess; see `run_apart`."""
    label = f"{request.image_size} px on {request.slice_name}"
    return run_apart("ev2.tpu.compile", dataclasses.asdict(request), label)


def run_apart(module: str, task: Any, label: str) -> dict[str, Any]:
    """Runs a module that compiles as a subprocess and returns its result.

    Args:
        module: reads the task from stdin as JSON; its last line is the result as JSON.
        task: JSON-ready values.
        label: name of the task in messages.

    Raises:
        InputError: this machine has too little memory to compile the task.
        RuntimeError: the module failed; with the end of its stderr.
    """
    run = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(task),
        env={**os.environ, **ENVIRONMENT, **_SUBPROCESS_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if run.returncode == -9:
        raise errors.InputError(
            f"tpu: the compiler was stopped at {label}, most likely because this "
            "machine has too little memory for it"
        )
    if run.returncode:
        raise RuntimeError(f"compiling {label} failed: {run.stderr.strip()[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(compile_step(CompileRequest(**json.loads(sys.stdin.read())))))
