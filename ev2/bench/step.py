"""A training step and inference, ours beside others: `ev2 bench step`.

    ev2 bench step --model=s --size=128 --batch=16 --dtype=float32 --peers
    ev2 bench step --model=s --size=128,185,243,300 --batch=128 --tpu=v3-32 --peers

Without --tpu on one device of this machine, by the clock; with it by the compiler of a
slice that is not there, and the batch is per device. Our step is the one that `ev2
train` runs: masked loss with smoothing and L2, dropout, drop path, RMSProp, running
averages. Keras on JAX has the same less drop path for V1 and V2's own rates, PyTorch
loss, gradient and RMSProp alone. Each row is measured in a process of its own.
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
import tqdm
from ml_collections import ConfigDict

from ev2 import errors
from ev2.bench import parity, step_peers
from ev2.models import arch, normalize
from ev2.tpu import cache as tpu_cache
from ev2.tpu import compile as tpu
from ev2.tpu import slices
from ev2.train import compile as programs
from ev2.train import timing

CLASSES = 1000
# What has to be installed for a peer, and what the network is called there.
_PEERS = {
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
        model: a name of `ev2.list_models()`, or short as recipes have it: s, b0, v1-b0.
        sizes: px.
        batch_size: images; on a slice per device.
        dtype: compute dtype, "float32" or "bfloat16".
        slice_name: TPU slice to compile for; "" measures here.
        peers: whether to measure Keras, torchvision and timm too, where installed; on a
            slice Keras alone.

    Returns:
        "model", "image_size" (a list if there are several), "batch_size", "dtype",
        "platform", "versions" and "results", rows of "name" and "image_size" with what
        `time_calls` or, on a slice, `tpu.read_figures` gives.

    Raises:
        InputError: a value is not allowed, or there is no libtpu for the slice.
    """
    name = full_name(model)
    _check(sizes, batch_size, dtype)
    names = ["ev2", *(_installed_peers(name, slice_name) if peers else [])]
    if slice_name:
        slices.find(slice_name)
        tpu.check_installed()
    jobs = list(itertools.product(sizes, names))
    results = []
    for size, row in tqdm.tqdm(jobs, unit="figure"):
        job = step_peers.Job(
            peer=row,
            network=name if row == "ev2" else _PEERS[row][1](name),
            image_size=size,
            batch_size=batch_size,
            dtype=dtype,
        )
        figures = _compile(job, slice_name) if slice_name else _apart(_time, job)
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
    """Returns the name in `ev2.list_models()` of a short or a full name.

    Raises:
        InputError: it is neither.
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
        raise errors.InputError("size: none given; give pixels, 8 up")
    for size in sizes:
        if size < 8:
            raise errors.InputError(f"size: {size} is not allowed; give pixels, 8 up")
    if batch_size < 1:
        raise errors.InputError(f"batch: {batch_size} is not allowed; give 1 or more")
    errors.check_choice("dtype", dtype, arch.DTYPES)


def _installed_peers(name: str, slice_name: str) -> list[str]:
    return [
        peer
        for peer, (packages, named) in _PEERS.items()
        if named(name)
        and all(importlib.util.find_spec(package) for package in packages)
        and (peer == "keras-jax" or not slice_name)
    ]


def _apart(function, *args) -> dict[str, Any]:
    """`function(*args)` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *args).result()


def _time(job: step_peers.Job) -> dict[str, Any]:
    return time_own(job) if job.peer == "ev2" else step_peers.time_peer(job)


def _compile(job: step_peers.Job, slice_name: str) -> dict[str, Any]:
    """The figures of a step on a slice; ours are kept, as those of `ev2 plan`."""
    devices = slices.find(slice_name).devices
    if job.peer == "ev2":
        figures = tpu_cache.compile_cached(
            tpu.CompileRequest(
                config=make_config(job.network, job.dtype),
                num_classes=CLASSES,
                image_size=job.image_size,
                batch_size=job.batch_size * devices,
                slice_name=slice_name,
            )
        )
    else:
        task = [dataclasses.asdict(job), slice_name]
        what = f"{job.peer} at {job.image_size} px"
        figures = tpu.run_apart("ev2.bench.step_peers", task, what)
    speed = figures["images_per_second_per_device"]
    return {
        "train_images_per_second": None if speed is None else speed * devices,
        "infer_images_per_second": None,
        **figures,
    }


def make_config(name: str, dtype: str) -> dict[str, Any]:
    """Returns what `tpu.step_config` gives for the paper's recipe of the network.

    A test holds it to the recipe of S. What recipes do differently for other networks
    are values, not operations.
    """
    model = {"name": name, "dtype": dtype, "bn_momentum": 0.99, "bn_group_images": 0}
    optimizer = {"name": "rmsprop", "lr": 1.0, "schedule": "constant"}
    optimizer |= {"warmup_epochs": 0.0, "decay_rate": 1.0, "decay_epochs": 1.0}
    optimizer |= {"decay": 0.9, "momentum": 0.9, "epsilon": 1e-3}
    optimizer |= {"weight_decay": 1e-5, "clip_norm": 0.0}
    return {
        "model": {**model, "blocks": [], "padding": "", "remat": False},
        "loss": {"label_smoothing": 0.1, "mix_group_images": 16},
        "optimizer": optimizer,
        "ema": {"decay": 0.9999, "warmup": True},
        "seed": 0,
        "init": {
            **{"checkpoint": "", "weights": "ema", "freeze": "", "freeze_bn": False},
            "layer_decay": 1.0,
        },
        "data": {"mean": [128.0] * 3, "std": [128.0] * 3, "max_labels": 1},
        "progressive": {"mixup": [0.0], "cutmix": [0.0]},
    }


def time_own(job: step_peers.Job) -> dict[str, Any]:
    """Returns the figures of our own step and inference on one device, here."""
    config = ConfigDict(make_config(job.network, job.dtype), convert_dict=True)
    size, count = job.image_size, job.batch_size
    seconds = timing.time_train_step(config, CLASSES, image_size=size, batch_size=count)
    model = programs.make_model(config, CLASSES)
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), image_size=job.image_size)
    )()
    images = jax.device_put(
        timing.make_batch(CLASSES, image_size=size, batch_size=count)["image"]
    )
    infer = jax.jit(
        lambda variables, images: model.apply(
            variables, normalize.normalize(images, config.data.mean, config.data.std)
        )
    )
    return step_peers.make_row(
        job.batch_size,
        seconds,
        timing.time_calls(lambda: jax.block_until_ready(infer(variables, images))),
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            found = re.search(r"model name\s*: (.*)", lines.read())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _versions() -> dict[str, str]:
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    found = {name: installed[name] for name in _PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table: a row per program and size."""
    on_slice = "hbm_bytes" in figures["results"][0]
    headings = (
        ("ms/step", "GB", "TFLOP", "temp GiB", "HBM GiB", "images/s/device")
        if on_slice
        else ("train images/s", "ms", "+-", "infer images/s", "ms", "+-")
    )
    lines = [
        f"{figures['model']}, {figures['dtype']}, batches of {figures['batch_size']}"
        f"{' per device' if on_slice else ''}, {figures['platform']}",
        f"{'':<12}{'px':>5}" + "".join(f"{heading:>16}" for heading in headings),
    ]
    cells = _slice_cells if on_slice else _clock_cells
    for row in figures["results"]:
        text = "".join(f"{cell:>16}" for cell in cells(row))
        lines.append(f"{row['name']:<12}{row['image_size']:>5}{text}")
    lines.append(", ".join(f"{k} {v}" for k, v in figures["versions"].items()))
    return "\n".join(lines)


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
    cells = []
    for kind in ("train", "infer"):
        cells += [
            f"{row[f'{kind}_images_per_second']:,.1f}",
            f"{row[f'{kind}_ms']:,.1f}",
            f"{row[f'{kind}_spread']:.1%}",
        ]
    return tuple(cells)
