"""Adds to plans the cost of their steps on TPU slices: memory, time, hours.

Every distinct pair of image size and batch size is compiled once, several at a time,
and cached (see `ev2.tpu.cache`). Hours count the training steps alone, without
evaluation, checkpoints and waiting for data.
"""

import concurrent.futures
import copy
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from ev2 import errors
from ev2.tpu import cache as tpu_cache
from ev2.tpu import compile as tpu_compile
from ev2.tpu import slices
from ev2.train import plan, validate

Compile = Callable[[tpu_compile.CompileRequest], dict[str, Any]]
_Key = TypeVar("_Key", bound=Hashable)

_PROCESS_BYTES = 8 * slices.GIB  # of a compiling process, at its peak
_BATCH_STEP = 8  # images per device between two batch sizes of the bisection


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Placement:
    """A recipe on a slice."""

    config: ConfigDict
    slice: slices.Slice
    stages: list[dict[str, Any]]  # of plan.make_plan
    num_classes: int

    def request(
        self, stage: dict[str, Any], batch_size: int = 0
    ) -> tpu_compile.CompileRequest:
        """Returns the request for a stage, with another batch size if given."""
        return tpu_compile.CompileRequest(
            config=tpu_compile.step_config(self.config),
            num_classes=self.num_classes,
            image_size=stage["image_size"],
            batch_size=batch_size or stage["batch_size"],
            slice_name=self.slice.name,
        )

    def key(self, stage: dict[str, Any]) -> tuple[str, int, int]:
        """Returns the key of a stage's program within the recipe."""
        return self.slice.name, stage["image_size"], stage["batch_size"]


def forecast(
    config: ConfigDict, names: Sequence[str], *, compile_one: Compile | None = None
) -> dict[str, Any]:
    """Returns `plan.make_plan(config)` with the cost of its steps on TPU slices.

    Args:
        config: the recipe.
        names: Cloud names of slices. The stages are planned for the first.
        compile_one: returns the figures of a request; None compiles with libtpu, in as
            many processes as cores and memory allow, and caches the figures.

    Returns:
        The plan. Each stage has "tpu": `compile.compile_lowered`, "cached", and
        "largest" if it does not fit (see `_find_largest`). The plan has "tpu": the row
        of `_totals` for the first slice, "device_kind" and "versions". With several
        slices it has "scaling": rows for "strong" (the same global batch on every
        slice) and "weak" (the batch per device of the first slice on every slice).

    Raises:
        InputError: a slice does not exist, a batch does not divide, or libtpu is
            missing; before anything is compiled.
    """
    chosen = [slices.find(name) for name in names]
    if not names or len(set(names)) < len(names):
        raise errors.InputError(
            f"tpu: {','.join(names)!r} is not allowed; give slices, each once"
        )
    table = plan.make_plan(config)
    strong = [_place(config, slice_) for slice_ in chosen]
    weak = [_place(_scale_batch(config, chosen[0], s), s) for s in chosen[1:]]
    if compile_one is None:
        tpu_compile.check_installed()
        compile_one = tpu_cache.compile_cached
    requests = {p.key(s): p.request(s) for p in [*strong, *weak] for s in p.stages}
    figures = compile_all(
        requests, compile_one, describe=lambda k: f"{k[0]}, {k[1]} px, batch {k[2]:,}"
    )
    first = strong[0]
    for stage in table["stages"]:
        stage["tpu"] = dict(figures[first.key(stage)])
        if not stage["tpu"]["fits"]:
            stage["tpu"]["largest"] = _find_largest(first, stage, compile_one)
    table["tpu"] = {
        **_totals(first, figures),
        "device_kind": first.slice.generation.device_kind,
        "hbm_available_bytes": first.slice.generation.hbm_bytes,
        "versions": tpu_cache.get_versions(),
    }
    if weak:
        table["scaling"] = {
            "strong": [_totals(placement, figures) for placement in strong],
            "weak": [_totals(placement, figures) for placement in (first, *weak)],
        }
    return table


def set_batch_size(config: ConfigDict, batch_size: int) -> ConfigDict:
    """Returns the config with another global batch, the same in all stages.

    Raises:
        InputError: the batch is not positive.
    """
    if batch_size < 1:
        raise errors.InputError(
            f"batch_size: {batch_size} is not allowed; give global images, 1 or more"
        )
    changed = copy.deepcopy(config)
    changed.batch_size = batch_size
    changed.progressive.batch_size = ()
    return changed


def _scale_batch(config: ConfigDict, first: slices.Slice, to: slices.Slice):
    """Returns the config with the batch per device of the first slice."""
    scaled = copy.deepcopy(config)
    scaled.batch_size = config.batch_size * to.devices // first.devices
    scaled.progressive.batch_size = tuple(
        size * to.devices // first.devices for size in config.progressive.batch_size
    )
    return scaled


def _place(config: ConfigDict, slice_: slices.Slice) -> _Placement:
    """Places the recipe on the slice; InputError if it cannot run there."""
    stages = plan.make_plan(config)["stages"]
    batch_sizes = {stage["batch_size"] for stage in stages}
    validate.check_batches(config, batch_sizes, slice_.devices)
    num_classes = config.data.num_classes
    if not num_classes:
        from ev2.data import sources  # loads TensorFlow

        num_classes = sources.describe(config).num_classes
    return _Placement(
        config=config, slice=slice_, stages=stages, num_classes=num_classes
    )


def compile_all(
    requests: Mapping[_Key, tpu_compile.CompileRequest],
    compile_one: Compile,
    *,
    describe: Callable[[_Key], str],
) -> dict[_Key, dict[str, Any]]:
    """Compiles every request, as many at once as the machine allows.

    Returns the figures by key, and reports each on stderr as `describe(key)`.
    """
    workers = min(len(requests), count_processes())
    _report(
        f"{len(requests)} programs to compile, {workers} at a time; each takes minutes"
    )
    figures = {}
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(compile_one, r): key for key, r in requests.items()}
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            key, result = futures[future], future.result()
            figures[key] = result
            seconds = f"{result['compile_seconds']:.0f} s"
            text = "cached" if result.get("cached") else seconds
            text += "" if result["fits"] else ", does not fit"
            _report(f"{done} of {len(requests)}: {describe(key)}: {text}")
    finally:
        pool.shutdown(cancel_futures=True)
    return figures


def count_processes() -> int:
    """Returns the number of processes that cores and free memory allow to compile."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(n.split()[1]) for n in lines if n.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), kib * 1024 // _PROCESS_BYTES))


def _report(line: str) -> None:
    print(f"ev2: {line}", file=sys.stderr, flush=True)


def _totals(placement: _Placement, figures: dict) -> dict[str, Any]:
    """Returns the row of a recipe on a slice.

    Keys: "slice", "devices", "batch_size" (global images, of the first stage), "fits",
    "hours" and "device_hours" (None unless it fits), and by stage "step_seconds" and
    "reduced_bytes".
    """
    stages, devices = placement.stages, placement.slice.devices
    costs = [figures[placement.key(stage)] for stage in stages]
    fits, hours = all(cost["fits"] for cost in costs), None
    if fits:
        steps = [stage["last_step"] - stage["first_step"] for stage in stages]
        seconds = [cost["step_seconds"] for cost in costs]
        hours = sum(n * s for n, s in zip(steps, seconds, strict=True)) / 3600
    return {
        "slice": placement.slice.name,
        "devices": devices,
        "batch_size": stages[0]["batch_size"],
        "fits": fits,
        "hours": hours,
        "device_hours": None if hours is None else hours * devices,
        "step_seconds": [cost["step_seconds"] for cost in costs],
        "reduced_bytes": [cost["reduced_bytes"] for cost in costs],
    }


def _find_largest(
    placement: _Placement, stage: dict[str, Any], compile_one: Compile
) -> dict[str, Any] | None:
    """Finds the largest batch per device that fits, by bisection; None if none fits.

    Batch sizes are multiples of 8 images per device that the recipe's groups allow.

    Returns:
        "batch_per_device", "batch_size" (global), "hbm_bytes", "step_seconds" and
        "images_per_second_per_device".
    """
    devices, best = placement.slice.devices, None
    sizes = range(_BATCH_STEP * devices, stage["batch_size"], _BATCH_STEP * devices)
    sizes = [size for size in sizes if _divides(placement, size)]
    low, high = 0, len(sizes)  # all below low fit, none from high on
    while low < high:
        middle = (low + high) // 2
        per_device = sizes[middle] // devices
        _report(f"{stage['image_size']} px: trying {per_device} images per device")
        figures = compile_one(placement.request(stage, sizes[middle]))
        if not figures["fits"]:
            high = middle
            continue
        low = middle + 1
        best = {"batch_per_device": per_device, "batch_size": sizes[middle]}
        keys = ("hbm_bytes", "step_seconds", "images_per_second_per_device")
        best |= {key: figures[key] for key in keys}
    return best


def _divides(placement: _Placement, batch_size: int) -> bool:
    """Returns True if the recipe's groups divide the global batch."""
    try:
        validate.check_batches(placement.config, [batch_size], placement.slice.devices)
    except errors.InputError:
        return False
    return True
