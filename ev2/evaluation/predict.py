"""What pictures show, batch by batch: the likeliest classes and how likely they are."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from ev2 import errors, sharding
from ev2.checkpoint import pretrained
from ev2.data import image_paths, imagenet_classes, pipeline
from ev2.evaluation import steps
from ev2.models.model import Model

_ALLOWED = {"top": 1, "batch_size": 1, "image_size": 8}  # lowest values


def print_predictions(
    path: str,
    images: Sequence[str],
    *,
    json_lines: bool,
    batch_size: int = 32,
    **options: Any,
) -> None:
    """Prints the predictions for all pictures as they are made, with a progress bar.

    Args:
      path: see `pretrained.load_pretrained`.
      images: files, folders and globs; see `image_paths.find_images`.
      json_lines: one JSON object per picture on stdout, else a table for people.
      batch_size, options: as `predict`.

    Raises:
      InputError: as `predict`, or no picture at all could be read.
    """
    check_options(batch_size=batch_size, **options)
    paths = image_paths.find_images(images)
    _check_paths(paths)
    results = predict(path, paths, batch_size=batch_size, **options)
    failed = []
    # One batch has no progress to show. Lines in a log file come less often.
    bar = tqdm.tqdm(
        total=len(paths),
        unit="img",
        disable=len(paths) <= batch_size,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
        dynamic_ncols=True,
    )
    with bar:
        for result in results:
            text = json.dumps(result) if json_lines else format_result(result)
            if sys.stdout.isatty():
                bar.write(text, file=sys.stdout)  # above the bar
            else:
                print(text, flush=True)
            bar.update()
            failed += [result] if "error" in result else []
    if len(failed) == len(paths):
        more = f"; and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        first = failed[0]
        raise errors.InputError(f"IMAGE: {first['path']!r}: {first['error']}{more}")
    if failed:
        named = len(paths) - len(failed)
        line = f"{named:,} of {len(paths):,} named; {len(failed):,} could not be read"
        print(f"ev2: {line}", file=sys.stderr)


def check_options(
    *, weights: str = "ema", top: int = 5, batch_size: int = 32, image_size: int = 0
) -> None:
    """Raises InputError for an option of `predict` that is out of range."""
    errors.check_choice("weights", weights, ("ema", "raw"))
    values = {"top": top, "batch_size": batch_size, "image_size": image_size}
    for key, lowest in _ALLOWED.items():
        is_default = key == "image_size" and values[key] == 0
        if values[key] < lowest and not is_default:
            raise errors.InputError(
                f"{key}: {values[key]} is not allowed; give {lowest} or more"
            )


def _check_paths(paths: Sequence[str]) -> None:
    """Refuses before the network is loaded if there is nothing to show it."""
    if not paths:
        raise errors.InputError("IMAGE: none; give files, folders or globs of pictures")
    if not any(os.path.isfile(path) for path in paths):
        reason = image_paths.unreadable_reason(paths[0])
        raise errors.InputError(
            f"IMAGE: {paths[0]!r}: {reason}; give files, folders or globs of pictures"
        )


def predict(
    path: str,
    paths: Sequence[str],
    *,
    weights: str = "ema",
    top: int = 5,
    batch_size: int = 32,
    image_size: int = 0,
) -> Iterator[dict[str, Any]]:
    """Loads the network; returns the prediction for each of `paths`, in their order.

    They are made as they are asked for, batch by batch. A prediction is `{"path",
    "top"}`: the classes of highest probability, each `{"index", "name",
    "probability"}`, and "id" where the class is one of ImageNet's with a WordNet id.
    Where a picture cannot be read it is `{"path", "error"}`, the reason in words.

    Args:
      path: see `pretrained.load_pretrained`; preprocessing comes from there.
      paths: local files.
      weights: "ema" or "raw".
      top: number of classes; all of them where the network knows fewer.
      batch_size: most images at once, rounded up to a multiple of the devices.
      image_size: pixels; 0 means the checkpoint's.

    Raises:
      InputError: no checkpoint, one without classes, or an option out of range.
    """
    check_options(
        weights=weights, top=top, batch_size=batch_size, image_size=image_size
    )
    model, variables, meta = pretrained.load_pretrained(path, weights=weights)
    if model.num_classes == 0:
        raise errors.InputError(
            f"checkpoint: {path!r} gives features and no classes; give one with classes"
        )
    preprocessing = meta["preprocessing"]
    mesh = sharding.make_mesh(jax.local_devices())
    predict_step = _make_compiled_step(model, preprocessing, mesh, top)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    # All batches have one shape, for one program; few pictures do not fill it up.
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

    return _results(batches, paths, run_step, meta["class_names"])


def _results(
    batches: pipeline.Batches,
    paths: Sequence[str],
    run_step: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    names: list[str],
) -> Iterator[dict[str, Any]]:
    with contextlib.closing(batches):
        for batch in batches:
            likely, classes = run_step(batch["image"])
            for row in np.flatnonzero(batch["index"] >= 0):
                path = paths[int(batch["index"][row])]
                if batch["mask"][row]:
                    yield {"path": path, **_top(likely[row], classes[row], names)}
                else:
                    yield {"path": path, "error": image_paths.unreadable_reason(path)}


def _make_compiled_step(
    model: Model, preprocessing: dict[str, Any], mesh: Mesh, top: int
) -> Callable:
    """The jitted prediction step, naming `top` classes or as many as there are."""
    everywhere = sharding.replicated(mesh)
    mean, std = preprocessing["mean"], preprocessing["std"]
    return jax.jit(
        steps.make_predict_step(model, mean, std, top=min(top, model.num_classes)),
        in_shardings=(everywhere, sharding.split_by_image(mesh)),
        out_shardings=everywhere,
    )


def _top(
    probabilities: np.ndarray, classes: np.ndarray, names: list[str]
) -> dict[str, Any]:
    if not np.isfinite(probabilities).all():
        return {"error": "the network's output is not finite"}
    top = []
    for index, probability in zip(classes.tolist(), probabilities, strict=True):
        name = names[index]
        known = {"id": name} if imagenet_classes.is_wordnet_id(name) else {}
        top.append(
            {
                "index": index,
                "name": imagenet_classes.readable(name),
                **known,
                "probability": float(f"{probability:.6g}"),
            }
        )
    return {"top": top}


def format_result(result: dict[str, Any]) -> str:
    """Returns a prediction for people: the path, and a line per class below it."""
    # Names of files may hold bytes that are no text.
    lines = [os.fsencode(result["path"]).decode(errors="replace")]
    if "error" in result:
        lines.append(f"  not read: {result['error']}")
    for place in result.get("top", ()):
        lines.append(f"{place['probability']:>9.2%}  {place['name']}")
    return "\n".join(lines)
