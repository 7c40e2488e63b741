"""Measures a training step and inference beside other libraries: `ev2 bench step`.

    ev2 bench step --model=s --size=128 --batch=16 --dtype=float32 --peers
    ev2 bench step --model=s --size=128,185,243,300 --batch=128 --tpu=v3-32 --peers

Without --tpu the clock times one device of this machine. With --tpu the compiler gives
the figures of a slice, and the batch size is per device. The step of ev2 is the one
that `ev2 train` runs: masked loss with smoothing and L2, dropout, drop path, RMSProp,
EMA. The step of Keras on JAX is the same, without drop path for V1 and with its own
rates for V2. PyTorch runs loss, gradient and RMSProp alone. Each row is measured in a
process of its own.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import platform
import re
from collections.abc import Sequence
from typing import Any

import jax
import tabulate
import tqdm
from ml_collections import ConfigDict

from ev2 import errors
from ev2.bench import parity, reference_steps
from ev2.models import arch, normalize
from ev2.tpu import cache as tpu_cache
from ev2.tpu import compile as tpu_compile
from ev2.tpu import slices
from ev2.train import compile as train_compile
from ev2.train import timing

CLASSES = 1000
# Packages and name of the network, by library.
_LIBRARIES = {
    "keras-jax": (("keras",), parity.keras_name),
    "torchvision": (("torch", "torchvision"), parity.torchvision_name),
    "timm": (("torch", "timm"), parity.timm_name),
}
_PACKAGES = ("jax", "jaxlib", "flax", "libtpu", "keras", "torch", "torchvision", "timm")


def measure(
    model: str,
    *,
    sizes: Sequence[int],
    batch_size: int,
    dtype: str = "float32",
    slice_name: str = "",
    peers: bool = False,
) -> dict[str, Any]:
    """Returns the speed of training and of inference, a row per program and size.

    Args:
        model: a name of `ev2.list_models()`, or a short name: s, b0, v1-b0.
        sizes: px.
        batch_size: images; on a slice per device.
        dtype: compute dtype, "float32" or "bfloat16".
        slice_name: TPU slice to compile for; "" measures here.
        peers: measures the installed ones of Keras, torchvision and timm too; on a
            slice Keras alone.

    Returns:
        "model", "image_size" (a list if there are several), "batch_size", "dtype",
        "platform", "versions" and "results", rows of "name" and "image_size" with the
        figures of `reference_steps.make_row` or, on a slice, `compile.compile_lowered`.

    Raises:
        InputError: if a value is not allowed, or libtpu is missing for a slice.
    """
    name = full_name(model)
    _check(sizes, batch_size, dtype)
    names = ["ev2", *(installed_libraries(name, slice_name) if peers else [])]
    if slice_name:
        slices.find(slice_name)
        tpu_compile.check_installed()
    results = []
    for size, row in tqdm.tqdm([*itertools.product(sizes, names)], unit="figure"):
        case = reference_steps.StepCase(
            library=row,
            network=name if row == "ev2" else _LIBRARIES[row][1](name),
            image_size=size,
            batch_size=batch_size,
            dtype=dtype,
        )
        if slice_name:
            figures = _compile(case, slice_name)
        else:
            time = time_own if row == "ev2" else reference_steps.time_reference
            figures = run_in_process(time, case)
        results.append({"name": row, "image_size": size, **figures})
    return {
        "model": name,
        "image_size": sizes[0] if len(sizes) == 1 else list(sizes),
        "batch_size": batch_size,
        "dtype": dtype,
        "platform": slice_name or f"{jax.devices()[0].device_kind}, {_processor()}",
        "versions": _versions(),
        "results": results,
    }


def full_name(model: str) -> str:
    """Returns the full name of a network, given its short or full name.

    Raises:
        InputError: the name is unknown.
    """
    known = arch.list_models()
    for name in (model, f"efficientnetv2-{model}", model.replace("v1", "efficientnet")):
        if name in known:
            return name
    raise errors.InputError(
        f"model: {model!r} is not known; choose one of {', '.join(known)}, or a short "
        "name such as s, b0 or v1-b0"
    )


def _check(sizes: Sequence[int], batch_size: int, dtype: str) -> None:
    if not sizes:
        raise errors.InputError("size: none given; give pixels, 8 or more")
    for size in sizes:
        if size < 8:
            raise errors.InputError(f"size: {size} is not allowed; give 8 px or more")
    if batch_size < 1:
        raise errors.InputError(f"batch: {batch_size} is not allowed; give 1 or more")
    errors.check_choice("dtype", dtype, arch.DTYPES)


def installed_libraries(name: str, slice_name: str = "") -> list[str]:
    """Returns the installed libraries with the network; on a slice, Keras alone."""
    return [
        library
        for library, (packages, name_in) in _LIBRARIES.items()
        if name_in(name)
        and all(importlib.util.find_spec(package) for package in packages)
        and (library == "keras-jax" or not slice_name)
    ]


def run_in_process(function, *args) -> dict[str, Any]:
    """Returns `function(*args)`, called in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *args).result()


def _compile(case: reference_steps.StepCase, slice_name: str) -> dict[str, Any]:
    """Returns the figures of a step on a slice; steps of ev2 are cached."""
    devices = slices.find(slice_name).devices
    if case.library == "ev2":
        figures = tpu_cache.compile_cached(
            tpu_compile.CompileRequest(
                config=make_config(case.network, case.dtype),
                num_classes=CLASSES,
                image_size=case.image_size,
                batch_size=case.batch_size * devices,
                slice_name=slice_name,
            )
        )
    else:
        task = [dataclasses.asdict(case), slice_name]
        label = f"{case.library} at {case.image_size} px"
        figures = tpu_compile.run_apart("ev2.bench.reference_steps", task, label)
    speed = figures["images_per_second_per_device"]
    return {
        "train_images_per_second": None if speed is None else speed * devices,
        "infer_images_per_second": None,
        **figures,
    }


def make_config(name: str, dtype: str) -> dict[str, Any]:
    """Returns `compile.step_config` of the recipe of S, for any network.

    The recipes of other networks differ in values, not in operations.
    """
    model = {"name": name, "dtype": dtype, "bn_momentum": 0.99, "bn_group_images": 0}
    optimizer = {"name": "rmsprop", "lr": 1.0, "schedule": "constant"}
    optimizer |= {"warmup_epochs": 0.0, "decay_rate": 1.0, "decay_epochs": 1.0}
    optimizer |= {"decay": 0.9, "momentum": 0.9, "epsilon": 1e-3}
    optimizer |= {"weight_decay": 1e-5, "clip_norm": 0.0}
    init = {"checkpoint": "", "weights": "ema", "freeze": ""}
    return {
        "model": {**model, "blocks": [], "padding": "", "remat": False},
        "loss": {"label_smoothing": 0.1, "mix_group_images": 16},
        "optimizer": optimizer,
        "ema": {"decay": 0.9999, "warmup": True},
        "seed": 0,
        "init": {**init, "freeze_bn": False, "layer_decay": 1.0},
        "data": {"mean": [128.0] * 3, "std": [128.0] * 3, "max_labels": 1},
        "progressive": {"mixup": [0.0], "cutmix": [0.0]},
    }


def time_own(case: reference_steps.StepCase) -> dict[str, Any]:
    """Times ev2 on one device of this machine."""
    config = ConfigDict(make_config(case.network, case.dtype), convert_dict=True)
    size, count = case.image_size, case.batch_size
    seconds = timing.time_train_step(config, CLASSES, image_size=size, batch_size=count)
    model = train_compile.make_model(config, CLASSES)
    variables = model.init(jax.random.key(0), image_size=size)
    batch = timing.make_batch(CLASSES, image_size=size, batch_size=count)
    images = jax.device_put(batch["image"])

    @jax.jit
    def infer(variables, images):
        images = normalize.normalize(images, config.data.mean, config.data.std)
        return model.apply(variables, images)

    def call():
        jax.block_until_ready(infer(variables, images))

    return reference_steps.make_row(count, seconds, timing.time_calls(call))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            match = re.search(r"model name\s*: (.*)", lines.read())
    except OSError:
        match = None
    return match[1] if match else platform.machine()


def _versions() -> dict[str, str]:
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    found = {name: installed[name] for name in _PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table: a row per library and size."""
    on_slice = "hbm_bytes" in figures["results"][0]
    headings = (
        ("ms/step", "GB", "TFLOP", "temp GiB", "HBM GiB", "images/s/device")
        if on_slice
        else ("train images/s", "ms", "+-", "infer images/s", "ms", "+-")
    )
    cells = _slice_cells if on_slice else _clock_cells
    title = (
        f"{figures['model']}, {figures['dtype']}, batches of {figures['batch_size']}"
        f"{' per device' if on_slice else ''}, {figures['platform']}"
    )
    rows = [(r["name"], r["image_size"], *cells(r)) for r in figures["results"]]
    options = {"colalign": ("left", *("right",) * 7), "disable_numparse": True}
    table = tabulate.tabulate(rows, ("", "px", *headings), "plain", **options)
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    return f"{title}\n{table}\n{versions}"


def _slice_cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["step_seconds"] is None:
        return ("does not fit", *("-",) * 5)
    return (
        f"{1e3 * row['step_seconds']:.1f}",
        f"{row['bytes_accessed'] / 1e9:.1f}",
        f"{row['flops'] / 1e12:.3g}",
        f"{row['temp_bytes'] / slices.GIB:.2f}",
        f"{row['hbm_bytes'] / slices.GIB:.2f}",
        f"{row['images_per_second_per_device']:,.0f}",
    )


def _clock_cells(row: dict[str, Any]) -> tuple[str, ...]:
    formats = {"images_per_second": ",.1f", "ms": ",.1f", "spread": ".1%"}
    return tuple(
        format(row[f"{kind}_{key}"], spec)
        for kind in ("train", "infer")
        for key, spec in formats.items()
    )
