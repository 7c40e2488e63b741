"""Classifies image files: the most probable classes, batch by batch."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tabulate
import tqdm

from ev2 import errors, sharding
from ev2.checkpoint import pretrained
from ev2.data import image_paths, imagenet_classes, pipeline
from ev2.evaluation import evaluate, steps


def print_predictions(
    path: str,
    images: Sequence[str],
    *,
    json_lines: bool,
    batch_size: int = 32,
    **options: Any,
) -> None:
    """Prints the predictions for all images.

    A progress bar is drawn on stderr if no output can come between its updates.

    Args:
      path: see `pretrained.load_pretrained`.
      images: files, folders and globs; see `image_paths.find_images`.
      json_lines: prints one JSON object per image as soon as it is classified, in place
        of one table at the end.
      batch_size, options: see `predict`.

    Raises:
      InputError: see `predict`; or none of the images could be read.
    """
    check_options(batch_size=batch_size, **options)
    paths = image_paths.find_images(images)
    _check_paths(paths)
    apart = sys.stderr.isatty() and not sys.stdout.isatty()
    bar = tqdm.tqdm(
        predict(path, paths, batch_size=batch_size, **options),
        total=len(paths),
        unit="img",
        disable=len(paths) <= batch_size or (json_lines and not apart),
        mininterval=0.5 if sys.stderr.isatty() else 10.0,  # fewer lines in a log file
        dynamic_ncols=True,
    )
    results = []
    for result in bar:
        results.append(result)
        if json_lines:
            print(json.dumps(result), flush=True)
    if not json_lines:
        print(format_table(results))
    _report_failures(results)


def _report_failures(results: Sequence[dict[str, Any]]) -> None:
    failed = [result for result in results if "error" in result]
    if len(failed) == len(results):
        more = f"; and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        first = failed[0]
        raise errors.InputError(f"IMAGE: {first['path']!r}: {first['error']}{more}")
    if failed:
        classified = len(results) - len(failed)
        print(
            f"ev2: {classified:,} of {len(results):,} classified; "
            f"{len(failed):,} could not be read",
            file=sys.stderr,
        )


def check_options(
    *, weights: str = "ema", top: int = 5, batch_size: int = 32, image_size: int = 0
) -> None:
    """Raises InputError for an option of `predict` that is out of range."""
    errors.check_choice("weights", weights, ("ema", "raw"))
    if top < 1:
        raise errors.InputError(f"top: {top} is not allowed; give 1 or more")
    evaluate.check_sizes(batch_size=batch_size)
    if image_size:
        evaluate.check_sizes(image_size=image_size)


def _check_paths(paths: Sequence[str]) -> None:
    """Raises InputError, before the network is loaded, if no path is a file."""
    allowed = "give files, folders or globs of images"
    if not paths:
        raise errors.InputError(f"IMAGE: none; {allowed}")
    if not any(os.path.isfile(path) for path in paths):
        reason = image_paths.unreadable_reason(paths[0])
        raise errors.InputError(f"IMAGE: {paths[0]!r}: {reason}; {allowed}")


def predict(
    path: str,
    paths: Sequence[str],
    *,
    weights: str = "ema",
    top: int = 5,
    batch_size: int = 32,
    image_size: int = 0,
) -> Iterator[dict[str, Any]]:
    """Loads the network and returns the predictions for `paths`, in their order.

    A prediction is `{"path", "top": [{"index", "name", "id", "probability"}]}`, most
    probable class first; "id" is the WordNet id, if the checkpoint has one. An
    unreadable image gives `{"path", "error"}`.

    Args:
      path: see `pretrained.load_pretrained`, which also gives the preprocessing.
      paths: local files.
      weights: "ema" or "raw".
      top: number of classes, limited to the classes of the network.
      batch_size: images per step, rounded up to a multiple of the devices.
      image_size: px; 0 for the image size of the checkpoint.

    Raises:
      InputError: the checkpoint is missing or has no classes, or an option is out of
        range.
    """
    check_options(
        weights=weights, top=top, batch_size=batch_size, image_size=image_size
    )
    model, variables, metadata = pretrained.load_pretrained(path, weights=weights)
    if model.num_classes == 0:
        raise errors.InputError(
            f"checkpoint: {path!r} gives features and no classes; give one with classes"
        )
    preprocessing = metadata["preprocessing"]
    mesh = sharding.make_mesh(jax.local_devices())
    replicated = sharding.replicated(mesh)
    mean, std = preprocessing["mean"], preprocessing["std"]
    predict_step = jax.jit(
        steps.make_predict_step(model, mean, std, top=min(top, model.num_classes)),
        in_shardings=(replicated, sharding.split_by_image(mesh)),
        out_shardings=replicated,
    )
    variables = jax.device_put(variables, replicated)
    # All batches have one shape, so that one program serves them all.
    devices = mesh.devices.size
    batches = pipeline.make_predict_data(
        preprocessing,
        paths,
        image_size=image_size or preprocessing["image_size"],
        batch_size=-(-min(batch_size, len(paths) or 1) // devices) * devices,
    )

    def run_step(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        on_devices = sharding.to_global(mesh, {"image": images})["image"]
        return jax.device_get(predict_step(variables, on_devices))

    return _results(batches, paths, run_step, metadata["class_names"])


def _results(
    batches: pipeline.Batches,
    paths: Sequence[str],
    run_step: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    names: list[str],
) -> Iterator[dict[str, Any]]:
    with contextlib.closing(batches):
        for batch in batches:
            probabilities, classes = run_step(batch["image"])
            for row in np.flatnonzero(batch["index"] >= 0):
                path = paths[int(batch["index"][row])]
                if not batch["mask"][row]:
                    yield {"path": path, "error": image_paths.unreadable_reason(path)}
                elif not np.isfinite(probabilities[row]).all():
                    yield {"path": path, "error": "the network's output is not finite"}
                else:
                    ranked = zip(classes[row], probabilities[row], strict=True)
                    yield {"path": path, "top": [_class(*c, names) for c in ranked]}


def _class(index: np.integer, probability: float, names: list[str]) -> dict[str, Any]:
    name = names[index]
    wordnet = {"id": name} if imagenet_classes.is_wordnet_id(name) else {}
    return {
        "index": int(index),
        "name": imagenet_classes.readable(name),
        **wordnet,
        "probability": float(f"{probability:.6g}"),
    }


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns predictions as a table: a row per class, the path in an image's first."""
    rows = []
    for result in results:
        # File names may hold bytes that are not text.
        path = os.fsencode(result["path"]).decode(errors="replace")
        if "error" in result:
            rows.append((path, f"not read: {result['error']}", ""))
        for entry in result.get("top", ()):
            rows.append((path, entry["name"], f"{entry['probability']:.2%}"))
            path = ""
    return tabulate.tabulate(
        rows,
        headers=("image", "class", "probability"),
        disable_numparse=True,
        colalign=("left", "left", "right"),
    )
