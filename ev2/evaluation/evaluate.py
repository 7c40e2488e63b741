"""Exact accuracy over a finite split, for any batch size and number of devices."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import errors, sharding
from ev2.checkpoint import class_names, pretrained
from ev2.data import imagenet_classes, pipeline, sources
from ev2.evaluation import metrics, steps
from ev2.train import validate as check

# Keys that a checkpoint's config may lack, and what was done before there were any.
_YOUNGER_KEYS = (
    ("data", "max_labels", 1),
    ("eval", "split", ""),
    ("eval", "metric", "ema.top1"),
    ("eval", "patience", 0),
    ("checkpoint", "keep_best", 1),
)
_NAMES_SHOWN = 3  # of the checkpoint's classes, in the error about unknown ones


def make_compiled_eval_step(model, config: ConfigDict, mesh: Mesh) -> Callable:
    """Returns the jitted evaluation step of `model` on `mesh`."""
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        steps.make_eval_step(model, config.data.mean, config.data.std),
        in_shardings=(everywhere, sharding.split_by_image(mesh)),
        out_shardings=everywhere,
    )


def compile_eval_step(
    model, config: ConfigDict, mesh: Mesh, weights: dict[str, Any]
) -> Callable:
    """Returns that step compiled, for `weights` of which only the shapes are read."""
    batch = sharding.abstract_batch(
        mesh,
        config.eval.image_size,
        _global_batch(config, mesh),
        max_labels=config.data.max_labels,
    )
    return make_compiled_eval_step(model, config, mesh).lower(weights, batch).compile()


def _global_batch(config: ConfigDict, mesh: Mesh) -> int:
    """`eval.batch_size`, rounded up to a multiple of the number of devices."""
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
    """Returns the sums of `eval_step` over every image of the split, each once.

    The last batch is padded and masked; the batch size is rounded up to a multiple
    of the number of devices. Files that could not be decoded are left out of `count`
    and reported in `skipped`.

    Args:
      eval_step: from `make_compiled_eval_step`.
      weights: `{name: variables}`, evaluated side by side in one pass.
      config: data source and `eval.{image_size, batch_size}`.
      mesh: devices to run on.
      split: see `pipeline.make_eval_data`.
      classes: `[data classes]` int32, the network's class of each of the data's; None
        where they are the same.
      progress: whether to draw a progress bar.

    Returns:
      `{name: {"top1", "top5", "count", "skipped", "confusion"}}`, with the fractions
      of `metrics.fractions`, plus "wall_seconds".
    """
    started = time.monotonic()
    batches = _open(config, mesh, split)
    total = None
    on_device = _on_mesh(batches, mesh, classes)
    bar = {"total": len(batches), "unit": "batch", "disable": not progress}
    waits = 0.5 if sys.stderr.isatty() else 10.0  # a log file gets fewer lines
    for batch in tqdm.tqdm(on_device, mininterval=waits, **bar):
        sums = eval_step(weights, batch)
        total = sums if total is None else _add(total, sums)
    assert total is not None, "a split holds at least one image"
    results: dict[str, Any] = {}
    for name, sums in jax.device_get(total).items():
        results[name] = metrics.fractions(sums)
        results[name]["skipped"] = batches.num_images - results[name]["count"]
        if "confusion" in sums:
            results[name]["confusion"] = np.asarray(sums["confusion"], np.int64)
    results["wall_seconds"] = time.monotonic() - started
    batches.close()
    return results


def _open(config: ConfigDict, mesh: Mesh, split: str) -> pipeline.Batches:
    return pipeline.make_eval_data(
        config,
        image_size=config.eval.image_size,
        batch_size=_global_batch(config, mesh),
        split=split,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _on_mesh(batches: pipeline.Batches, mesh: Mesh, classes: np.ndarray | None):
    labelled = batches if classes is None else _relabel(batches, classes)
    return prefetch_to_mesh(labelled, mesh)


@jax.jit
def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jax.numpy.add, a, b)


def _relabel(batches: Iterable, classes: np.ndarray):
    for batch in batches:
        label = batch["label"]
        yield {**batch, "label": np.where(label < 0, label, classes[label])}


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
    split: str | None = None,
    batch_size: int = 0,
    image_size: int = 0,
) -> dict[str, Any]:
    """Returns the accuracy of a checkpoint, as `ev2 evaluate` prints it.

    The data's classes are found among the checkpoint's by name, as `class_names.find`
    does: they may be fewer and in another order.

    Args:
      path: see `pretrained.load_pretrained`.
      config: where the pictures are and the batch size; None means those the
        checkpoint was trained with. Model and preprocessing always come from the
        checkpoint.
      weights: "ema" or "raw".
      split: "eval", "train", "all" (of a folder without train/ and val/), or None: all
        of such a folder if the checkpoint was not trained on one, else "eval".
      batch_size: global images; 0 means the config's.
      image_size: pixels; 0 means the checkpoint's.

    Raises:
      InputError: no checkpoint, no data, or classes that the checkpoint does not know.
    """
    model, variables, meta = pretrained.load_pretrained(path, weights=weights)
    own = _with_preprocessing(meta, config)
    own.eval.batch_size = batch_size or own.eval.batch_size
    own.eval.image_size = image_size or own.eval.image_size
    check.check(own)
    split = split or _default_split(meta, own)
    classes = _find_classes(path, meta, sources.read_class_names(own, split))
    mesh = sharding.make_mesh()
    eval_step = make_compiled_eval_step(model, own, mesh)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    results = evaluate(
        eval_step,
        {weights: variables},
        own,
        mesh,
        split=split,
        classes=classes,
        progress=jax.process_index() == 0,
    )
    kept = {k: v for k, v in results[weights].items() if k != "confusion"}
    size = own.eval.image_size
    return {**kept, "image_size": size, "weights": weights, "split": split}


def _default_split(meta: dict[str, Any], config: ConfigDict) -> str:
    """What was held out; all of a folder of which nothing was, the training elsewhere.

    Whether a checkpoint learnt from a folder decides, not which folder: copies and
    links have other paths, and pictures that were learnt must not count as a test.
    """
    run = meta["config"]
    learnt_from_own = run is not None and run["data"]["source"] in sources.OWN_IMAGES
    return "all" if sources.is_undivided(config) and not learnt_from_own else "eval"


def _find_classes(
    path: str, meta: dict[str, Any], names: tuple[str, ...]
) -> np.ndarray:
    """Returns the checkpoint's class of each of the data's: `[len(names)]` int32."""
    known = meta["class_names"]
    if not known:
        raise errors.InputError(
            f"checkpoint: {path!r} gives features and no classes; give one with classes"
        )
    found = class_names.find(names, known)
    unknown = [name for name, place in zip(names, found, strict=True) if place is None]
    if unknown and len(names) == len(known):
        unnamed = imagenet_classes.default_class_names(len(names))
        if names == unnamed or (tuple(known) == unnamed and unknown == list(names)):
            found, unknown = list(range(len(names))), []  # one side is numbered only
    if unknown:
        shown = ", ".join(
            imagenet_classes.readable(name) for name in known[:_NAMES_SHOWN]
        )
        raise errors.InputError(
            f"checkpoint: {path!r} does not know {len(unknown):,} of the data's "
            f"{len(names):,} classes, the first being {unknown[0]!r}; name them as its "
            f"{len(known):,} are: {shown}, ..."
        )
    return np.array(found, np.int32)


def _with_preprocessing(meta: dict[str, Any], config: ConfigDict | None) -> ConfigDict:
    """The config of the data, with the preprocessing that the weights were made for."""
    if config is None and meta["config"] is None:
        raise errors.InputError(
            "config: missing, and published weights do not say where pictures are; "
            "give --config=configs/folder.py --config.data.path=DIR"
        )
    merged = ConfigDict(meta["config"] if config is None else config.to_dict())
    for section, key, value in _YOUNGER_KEYS:
        if key not in merged[section]:  # a checkpoint of before there was this key
            merged[section][key] = value
    for key, value in meta["preprocessing"].items():
        section = merged.eval if key == "image_size" else merged.data
        section[key] = tuple(value) if isinstance(value, list) else value
    return merged
