"""A plan with the cost of its steps on TPU slices: memory, time, hours.

Every distinct image size and batch size is compiled once, several at a time, and kept
(see `ev2.tpu.cache`). Hours are those of the training steps alone: evaluation,
checkpoints and waiting for pictures come on top.
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
from ev2.tpu import compile as tpu
from ev2.tpu import slices
from ev2.train import plan, validate

Compile = Callable[[tpu.CompileRequest], dict[str, Any]]
_Key = TypeVar("_Key", bound=Hashable)

_PROCESS_BYTES = 8 * slices.GIB  # of a compiling process, at its peak
_BATCH_STEP = 8  # images per device between two batches that the search may try


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A recipe on a slice."""

    config: ConfigDict
    slice: slices.Slice
    table: dict[str, Any]  # from plan.make_plan
    num_classes: int

    def job(self, stage: dict[str, Any], batch_size: int = 0) -> tpu.CompileRequest:
        """What to compile for a stage; another global batch where it is given."""
        return tpu.CompileRequest(
            config=tpu.step_config(self.config),
            num_classes=self.num_classes,
            image_size=stage["image_size"],
            batch_size=batch_size or stage["batch_size"],
            slice_name=self.slice.name,
        )


def forecast(
    config: ConfigDict,
    names: Sequence[str],
    *,
    compile_job: Compile | None = None,
) -> dict[str, Any]:
    """Returns `plan.make_plan(config)` with what its steps cost on TPU slices.

    Args:
        config: the recipe.
        names: slices by their Cloud names. Stages are those of the first.
        compile_job: gives the figures of a job; None compiles with libtpu, in as many
            processes as cores and memory allow, and keeps what it finds.

    Returns:
        The plan. Each stage has "tpu": `tpu.read_figures`, "cached", and "largest" if
        it does not fit (see `find_largest`). The plan has "tpu": the row of `_totals`
        for the first slice, "device_kind" and "versions". With several slices it has
        "scaling": such rows for "strong" (the same global batch on every slice) and
        "weak" (the same batch per device, that of the first).

    Raises:
        InputError: no such slice, a batch that does not divide, or no libtpu; before
            anything is compiled.
    """
    found = [slices.find(name) for name in names]
    if not names or len(set(names)) < len(names):
        raise errors.InputError(
            f"tpu: {','.join(names)!r} is not allowed; give slices, each once"
        )
    strong = [_make_run(config, slice_) for slice_ in found]
    weak = [_make_run(_grow(config, found[0], s), s) for s in found[1:]]
    if compile_job is None:
        tpu.check_installed()
        compile_job = tpu_cache.cached(tpu.compile_apart)
    runs = [*strong, *weak]
    jobs = {_key(run, s): run.job(s) for run in runs for s in run.table["stages"]}
    figures = compile_all(jobs, compile_job, describe=_describe)
    first = strong[0]
    table = copy.deepcopy(first.table)
    for stage in table["stages"]:
        stage["tpu"] = dict(figures[_key(first, stage)])
        if not stage["tpu"]["fits"]:
            stage["tpu"]["largest"] = _find_largest(first, stage, compile_job)
    table["tpu"] = {
        **_totals(first, figures),
        "device_kind": first.slice.generation.device_kind,
        "hbm_available_bytes": first.slice.generation.hbm_bytes,
        "versions": tpu_cache.get_versions(),
    }
    if weak:
        table["scaling"] = {
            "strong": [_totals(run, figures) for run in strong],
            "weak": [_totals(run, figures) for run in (first, *weak)],
        }
    return table


def set_batch_size(config: ConfigDict, batch_size: int) -> ConfigDict:
    """Returns the config with another global batch, the same in all stages.

    Raises:
        InputError: it is not positive.
    """
    if batch_size < 1:
        raise errors.InputError(
            f"batch_size: {batch_size} is not allowed; give global images, 1 or more"
        )
    changed = copy.deepcopy(config)
    changed.batch_size = batch_size
    changed.progressive.batch_size = ()
    return changed


def _grow(config: ConfigDict, first: slices.Slice, to: slices.Slice) -> ConfigDict:
    """The config with the batch per device that it has on the first slice."""
    grown = copy.deepcopy(config)
    grown.batch_size = config.batch_size * to.devices // first.devices
    grown.progressive.batch_size = tuple(
        size * to.devices // first.devices for size in config.progressive.batch_size
    )
    return grown


def _make_run(config: ConfigDict, slice_: slices.Slice) -> _Run:
    """Checks that the recipe can run on the slice."""
    table = plan.make_plan(config)
    batch_sizes = {stage["batch_size"] for stage in table["stages"]}
    validate.check_batches(config, batch_sizes, slice_.devices)
    return _Run(
        config=config, slice=slice_, table=table, num_classes=_count_classes(config)
    )


def _count_classes(config: ConfigDict) -> int:
    if config.data.num_classes:
        return config.data.num_classes
    from ev2.data import sources  # loads TensorFlow

    return sources.describe(config).num_classes


def _key(run: _Run, stage: dict[str, Any]) -> tuple[str, int, int]:
    return run.slice.name, stage["image_size"], stage["batch_size"]


def _describe(key: tuple[str, int, int]) -> str:
    return f"{key[0]}, {key[1]} px, batch {key[2]:,}"


def compile_all(
    jobs: Mapping[_Key, tpu.CompileRequest],
    compile_job: Compile,
    *,
    describe: Callable[[_Key], str],
) -> dict[_Key, dict[str, Any]]:
    """Returns the figures of every job, as many at once as cores and memory allow.

    Lines on stderr say which are done.
    """
    workers = min(len(jobs), _count_processes())
    _say(f"{len(jobs)} programs to compile, {workers} at a time; each takes minutes")
    done = 0
    figures = {}
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        waiting = {pool.submit(compile_job, job): key for key, job in jobs.items()}
        for future in concurrent.futures.as_completed(waiting):
            key, found = waiting[future], future.result()
            figures[key] = found
            done += 1
            seconds = f"{found['compile_seconds']:.0f} s"
            _say(
                f"{done} of {len(jobs)}: {describe(key)}: "
                + ("cached" if found.get("cached") else seconds)
                + ("" if found["fits"] else ", does not fit")
            )
    finally:
        pool.shutdown(cancel_futures=True)
    return figures


def _count_processes() -> int:
    """How many processes may compile at once, by cores and free memory."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(n.split()[1]) for n in lines if n.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), kib * 1024 // _PROCESS_BYTES))


def _say(line: str) -> None:
    print(f"ev2: {line}", file=sys.stderr, flush=True)


def _totals(run: _Run, figures: dict) -> dict[str, Any]:
    """One row: a recipe on a slice.

    Keys: "slice", "devices", "batch_size" (global images, of the first stage),
    "fits", "hours" and "device_hours" (None unless it fits), and by stage
    "step_seconds" and "reduced_bytes".
    """
    stages = run.table["stages"]
    found = [figures[_key(run, stage)] for stage in stages]
    fits = all(stage["fits"] for stage in found)
    hours = None
    if fits:
        steps = [stage["last_step"] - stage["first_step"] for stage in stages]
        seconds = [stage["step_seconds"] for stage in found]
        hours = sum(n * s for n, s in zip(steps, seconds, strict=True)) / 3600
    return {
        "slice": run.slice.name,
        "devices": run.slice.devices,
        "batch_size": stages[0]["batch_size"],
        "fits": fits,
        "hours": hours,
        "device_hours": None if hours is None else hours * run.slice.devices,
        "step_seconds": [stage["step_seconds"] for stage in found],
        "reduced_bytes": [stage["reduced_bytes"] for stage in found],
    }


def _find_largest(
    run: _Run, stage: dict[str, Any], compile_job: Compile
) -> dict[str, Any] | None:
    """Returns the largest batch per device that fits, by bisection, or None.

    Batches are multiples of 8 images per device that the recipe's groups allow.

    Returns:
        "batch_per_device", "batch_size" (global), "hbm_bytes", "step_seconds" and
        "images_per_second_per_device".
    """
    devices, best = run.slice.devices, None
    per_device = stage["batch_size"] // devices
    sizes = [n for n in range(_BATCH_STEP, per_device, _BATCH_STEP) if _allows(run, n)]
    low, high = 0, len(sizes)  # all below low fit, none from high on does
    while low < high:
        middle = (low + high) // 2
        batch_size = sizes[middle] * devices
        _say(f"{stage['image_size']} px: trying {sizes[middle]} images per device")
        found = compile_job(run.job(stage, batch_size))
        if not found["fits"]:
            high = middle
            continue
        low = middle + 1
        kept = ("hbm_bytes", "step_seconds", "images_per_second_per_device")
        best = {"batch_per_device": sizes[middle], "batch_size": batch_size}
        best |= {key: found[key] for key in kept}
    return best


def _allows(run: _Run, per_device: int) -> bool:
    """Whether the recipe's groups divide such a batch."""
    batch_size = per_device * run.slice.devices
    try:
        validate.check_batches(run.config, [batch_size], run.slice.devices)
    except errors.InputError:
        return False
    return True
