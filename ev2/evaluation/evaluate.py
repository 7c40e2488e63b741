"""Exact accuracy over a finite split, for any batch size and number of devices."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import errors, sharding
from ev2.checkpoint import class_names, pretrained
from ev2.data import pipeline, sources
from ev2.evaluation import metrics, steps

_LOWEST = {"batch_size": 1, "image_size": 8}


def compile_eval_step(
    model, config: ConfigDict, mesh: Mesh, weights: dict[str, Any]
) -> Callable:
    """Returns the compiled evaluation step; of `weights` only the shapes are read."""
    replicated = sharding.replicated(mesh)
    eval_step = jax.jit(
        steps.make_eval_step(model, config.data.mean, config.data.std),
        in_shardings=(replicated, sharding.split_by_image(mesh)),
        out_shardings=replicated,
    )
    batch = sharding.abstract_batch(
        mesh,
        config.eval.image_size,
        _global_batch(config, mesh),
        max_labels=config.data.max_labels,
    )
    return eval_step.lower(weights, batch).compile()


def _global_batch(config: ConfigDict, mesh: Mesh) -> int:
    """Returns `eval.batch_size`, rounded up to a multiple of the number of devices."""
    devices = mesh.devices.size
    return -(-config.eval.batch_size // devices) * devices


def evaluate(
    eval_step: Callable,
    weights: dict[str, Any],
    config: ConfigDict,
    mesh: Mesh,
    *,
    split: str = "eval",
    classes: np.ndarray | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates weights on every image of the split exactly once.

    The last batch is padded and masked. Unreadable files are left out of `count` and
    reported in `skipped`.

    Args:
      eval_step: from `compile_eval_step`, with the same `config` and `mesh`.
      weights: `{name: variables}`, evaluated side by side in one pass.
      config: data source and `eval.{image_size, batch_size}`.
      mesh: devices to run on.
      split: see `pipeline.make_eval_data`.
      classes: `[data classes]` int32, the network's class of each class of the data;
        None if they are equal.
      progress: draws a progress bar on stderr.

    Returns:
      `{name: {"top1", "top5", "count", "skipped", "confusion"}}`, with the fractions
      of `metrics.fractions`, plus "wall_seconds".
    """
    started = time.monotonic()
    batches = pipeline.make_eval_data(
        config,
        image_size=config.eval.image_size,
        batch_size=_global_batch(config, mesh),
        split=split,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    labelled = batches if classes is None else _relabel(batches, classes)
    bar = tqdm.tqdm(
        sharding.prefetch(labelled, mesh),
        total=len(batches),
        unit="batch",
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,  # fewer lines in a log file
    )
    total: Any = None
    for batch in bar:
        sums = eval_step(weights, batch)
        total = sums if total is None else _add(total, sums)
    results: dict[str, Any] = {}
    for name, sums in jax.device_get(total).items():
        results[name] = metrics.fractions(sums)
        results[name]["skipped"] = batches.num_images - results[name]["count"]
        if "confusion" in sums:
            results[name]["confusion"] = np.asarray(sums["confusion"], np.int64)
    results["wall_seconds"] = time.monotonic() - started
    batches.close()
    return results


@jax.jit
def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jax.numpy.add, a, b)


def _relabel(batches: Iterable, classes: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for batch in batches:
        label = batch["label"]
        yield {**batch, "label": np.where(label < 0, label, classes[label])}


def evaluate_checkpoint(
    path: str,
    config: ConfigDict | None = None,
    *,
    weights: str = "ema",
    split: str | None = None,
    batch_size: int = 0,
    image_size: int = 0,
) -> dict[str, Any]:
    """Returns the accuracy of a checkpoint, as `ev2 evaluate` prints it.

    The classes of the data are matched by name to the classes of the checkpoint: they
    may be fewer and in another order.

    Args:
      path: see `pretrained.load_pretrained`.
      config: data source and batch size; None for the config of the checkpoint's run.
        Model and preprocessing always come from the checkpoint.
      weights: "ema" or "raw".
      split: "eval", "train" or "all" (images in a folder without train/ and val/);
        None for "all" in such a folder unless the checkpoint was trained on a folder,
        "eval" otherwise.
      batch_size: global images; 0 for the batch size of the config.
      image_size: px; 0 for the image size of the checkpoint.

    Raises:
      InputError: the checkpoint or the data is missing, a size is out of range, or the
        checkpoint lacks a class of the data.
    """
    model, variables, metadata = pretrained.load_pretrained(path, weights=weights)
    merged = _with_preprocessing(metadata, config)
    merged.eval.batch_size = batch_size or merged.eval.batch_size
    merged.eval.image_size = image_size or merged.eval.image_size
    check_sizes(**{key: merged.eval[key] for key in _LOWEST})
    split = split or _default_split(metadata, merged)
    classes = class_names.match(
        sources.open_source(merged, split).class_names, metadata["class_names"], path
    )
    mesh = sharding.make_mesh()
    by_name = {weights: jax.device_put(variables, sharding.replicated(mesh))}
    results = evaluate(
        compile_eval_step(model, merged, mesh, by_name),
        by_name,
        merged,
        mesh,
        split=split,
        classes=classes,
        progress=jax.process_index() == 0,
    )[weights]
    results.pop("confusion", None)
    size = merged.eval.image_size
    return {**results, "image_size": size, "weights": weights, "split": split}


def check_sizes(**sizes: int) -> None:
    """Raises InputError if `batch_size` (images) or `image_size` (px) is too small."""
    for key, lowest in _LOWEST.items():
        if key in sizes and sizes[key] < lowest:
            raise errors.InputError(
                f"{key}: {sizes[key]} is not allowed; give {lowest} or more"
            )


def _default_split(metadata: dict[str, Any], config: ConfigDict) -> str:
    """Returns "all" for an undivided folder, if the run was not trained on a folder.

    The kind of the run's data decides, not its path, which differs for copies and
    links: training images must not count as test images.
    """
    run = metadata["config"]
    trained_on_own = run is not None and run["data"]["source"] in sources.OWN_IMAGES
    return "all" if sources.is_undivided(config) and not trained_on_own else "eval"


def _with_preprocessing(
    metadata: dict[str, Any], config: ConfigDict | None
) -> ConfigDict:
    """Returns the config of the data with the preprocessing of the checkpoint."""
    if config is None and metadata["config"] is None:
        raise errors.InputError(
            "config: missing, and published weights do not name a data set; "
            "give --config=configs/folder.py --config.data.path=DIR"
        )
    merged = ConfigDict(metadata["config"] if config is None else config.to_dict())
    for key, value in metadata["preprocessing"].items():
        section = merged.eval if key == "image_size" else merged.data
        section[key] = tuple(value) if isinstance(value, list) else value
    return merged
