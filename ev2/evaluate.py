"""Exact accuracy over a finite split, for any batch size and number of devices."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import check, checkpoint, data, errors, metrics, sharding, step


def make_compiled_eval_step(model, config: ConfigDict, mesh: Mesh) -> Callable:
    """Returns the jitted evaluation step of `model` on `mesh`."""
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        step.make_eval_step(model, config.data.mean, config.data.std),
        in_shardings=(everywhere, sharding.split_by_image(mesh)),
        out_shardings=everywhere,
    )


def evaluate(
    eval_step: Callable,
    weights: dict[str, Any],
    config: ConfigDict,
    mesh: Mesh,
    *,
    split: str = "eval",
) -> dict[str, Any]:
    """Returns the sums of `eval_step` over every image of the split, each once.

    The last batch is padded and masked; the batch size is rounded up to a multiple
    of the number of devices. Files that could not be decoded are left out of `count`
    and reported in `skipped`.

    Args:
      eval_step: from `make_compiled_eval_step`.
      weights: `{name: variables}`, evaluated side by side in one pass.
      config: data source and `eval.{image_size, batch_size}`.
      mesh: devices to run on.
      split: "eval" or "train".

    Returns:
      `{name: {"top1", "top5", "count", "skipped", "confusion"}}`, with the fractions
      of `metrics.fractions`, plus "wall_seconds".
    """
    started = time.monotonic()
    devices = mesh.devices.size
    batches = data.make_eval_data(
        config,
        image_size=config.eval.image_size,
        batch_size=-(-config.eval.batch_size // devices) * devices,
        split=split,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    total = None
    for batch in prefetch_to_mesh(batches, mesh):
        sums = eval_step(weights, batch)
        total = sums if total is None else _add(total, sums)
    assert total is not None, "a split holds at least one image"
    info = data.describe(config)
    num_images = info.num_eval_images if split == "eval" else info.num_train_images
    results: dict[str, Any] = {}
    for name, sums in jax.device_get(total).items():
        results[name] = metrics.fractions(sums)
        results[name]["skipped"] = num_images - results[name]["count"]
        if "confusion" in sums:
            results[name]["confusion"] = np.asarray(sums["confusion"], np.int64)
    results["wall_seconds"] = time.monotonic() - started
    batches.close()
    return results


@jax.jit
def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jax.numpy.add, a, b)


def prefetch_to_mesh(batches: Iterable, mesh: Mesh, depth: int = 2):
    """Yields batches already on the devices, `depth` of them ahead of their use."""
    queue = []
    for batch in batches:
        batch = {key: batch[key] for key in ("image", "label", "mask")}
        queue.append(sharding.to_global(mesh, batch))
        if len(queue) > depth:
            yield queue.pop(0)
    yield from queue


def evaluate_checkpoint(
    path: str,
    config: ConfigDict | None = None,
    *,
    weights: str = "ema",
    split: str = "eval",
    batch_size: int = 0,
    image_size: int = 0,
) -> dict[str, Any]:
    """Returns the accuracy of a checkpoint, as `ev2 evaluate` prints it.

    Args:
      path: see `checkpoint.load_pretrained`.
      config: where the pictures are and the batch size; None means those the
        checkpoint was trained with. Model and preprocessing always come from the
        checkpoint.
      weights: "ema" or "raw".
      split: "eval" or "train".
      batch_size: global images; 0 means the config's.
      image_size: pixels; 0 means the checkpoint's.

    Raises:
      InputError: no checkpoint, no data, or another number of classes.
    """
    errors.check_choice("split", split, ("eval", "train"))
    model, variables, meta = checkpoint.load_pretrained(path, weights=weights)
    own = _with_preprocessing(meta, config)
    own.eval.batch_size = batch_size or own.eval.batch_size
    own.eval.image_size = image_size or own.eval.image_size
    check.check(own)
    num_classes = data.describe(own).num_classes
    if num_classes != model.num_classes:
        raise errors.InputError(
            f"checkpoint: {path!r} tells {model.num_classes} classes apart and the "
            f"data has {num_classes}; give data with the same classes"
        )
    mesh = sharding.make_mesh()
    eval_step = make_compiled_eval_step(model, own, mesh)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    results = evaluate(eval_step, {weights: variables}, own, mesh, split=split)
    kept = {k: v for k, v in results[weights].items() if k != "confusion"}
    return {**kept, "image_size": own.eval.image_size, "weights": weights}


def _with_preprocessing(meta: dict[str, Any], config: ConfigDict | None) -> ConfigDict:
    """The config of the data, with the preprocessing that the weights were made for."""
    merged = ConfigDict(meta["config"] if config is None else config.to_dict())
    for key, value in meta["preprocessing"].items():
        section = merged.eval if key == "image_size" else merged.data
        section[key] = tuple(value) if isinstance(value, list) else value
    return merged
