"""Loads weights of runs and of published files, and saves converted weights."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from ev2 import errors, files
from ev2.checkpoint import integrity
from ev2.checkpoint.published import convert, formats
from ev2.models import arch
from ev2.models.model import Model, create_model

# Keys of the metadata's preprocessing that a config has under `data`.
_DATA_KEYS = "mean", "std", "interpolation", "eval_crop", "eval_crop_padding", "exif"


def load_pretrained(
    path: str, *, weights: str = "ema"
) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """Returns `(model, variables, metadata)` of an ev2 checkpoint or published file.

    Args:
      path: a run folder (its evaluated checkpoint, or else its newest), its
        `checkpoints` folder, one checkpoint in it, weights written by `ev2 convert`,
        or a published file, whose format and network are detected (see
        `published.convert`).
      weights: "ema" or "raw". Ignored for files with one set of weights.

    Returns:
      The network (float32), `{"params", "batch_stats"}` as float32 NumPy arrays, and
      the metadata (see `make_metadata`).

    Raises:
      InputError: `path` holds no complete checkpoint, the checkpoint is corrupt, or
        the published file fits no network.
    """
    errors.check_choice("weights", weights, ("ema", "raw"))
    path = os.fspath(path)
    folder = find(path)
    if folder is None and formats.is_published(path):
        converted = convert.convert(path, averaged=weights == "ema")
        return converted.model, converted.variables, _published_metadata(converted)
    if folder is None:
        raise errors.InputError(
            f"checkpoint: {path!r} holds no complete checkpoint; give a run folder, a "
            f"folder such as RUN/{integrity.CHECKPOINTS}/1000, or {formats.FORMATS}"
        )
    if damage := integrity.find_damage(folder):
        raise errors.InputError(
            f"checkpoint: {str(folder)!r} is corrupt ({damage}); give another one"
        )
    metadata = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
    model = create_model(**metadata["model"])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image_size=32))
    if weights == "ema" or metadata["config"] is None:
        return model, _restore(folder, {"ema": shapes})["ema"], metadata
    return model, _restore(folder, dict(shapes)), metadata


def _restore(folder: pathlib.Path, shapes: Any) -> Any:
    """Returns the part of a checkpoint's state that `shapes` names, as NumPy arrays."""
    item = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return ocp.PyTreeCheckpointer().restore(
        folder / "state",
        args=ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        ),
    )


def find(path: str) -> pathlib.Path | None:
    """Returns the folder of the checkpoint that `load_pretrained` reads, or None."""
    root = pathlib.Path(path).absolute()
    for folder in (root, root / integrity.CHECKPOINTS):
        if (folder / "meta").is_dir():
            return folder
        steps = integrity.list_checkpoints(folder)
        complete = [step for step in steps if (step / "meta").is_dir()]
        if complete:
            evaluated = _evaluated_step(folder.parent)
            return next((c for c in complete if c.name == evaluated), complete[0])
    return None


def _evaluated_step(workdir: pathlib.Path) -> str | None:
    """Returns the step in a run's eval.json, the result of a finished run."""
    try:
        return str(json.loads((workdir / "eval.json").read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_weights(
    path: str, variables: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Writes one set of weights as a checkpoint that `load_pretrained` reads.

    Args:
      path: folder to create.
      variables: `{"params", "batch_stats"}`.
      metadata: from `make_metadata`, without a config.

    Raises:
      InputError: `path` exists, or cannot be written.
    """
    files.check_new("out", path)
    with files.atomic_path(pathlib.Path(path).absolute()) as folder:
        ocp.PyTreeCheckpointer().save(folder / "state", {"ema": variables})
        ocp.Checkpointer(ocp.JsonCheckpointHandler()).save(folder / "meta", metadata)
        integrity.write_checksums(pathlib.Path(folder))


def make_metadata(
    model: Model,
    class_names: tuple[str, ...],
    *,
    config: ConfigDict | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Returns the metadata that a checkpoint holds beside its weights, in JSON.

    Args:
      model: the network.
      class_names: one per class.
      config: of the run; None for weights that do not come from a run.
      others: more entries, such as "preprocessing" where there is no config.

    Returns:
      `{"model", "preprocessing", "class_names", "config"}` and the other entries.
      "model" holds arguments of `create_model`; "preprocessing" holds the keys of
      `published.preprocessing.of_published`.
    """
    stages = model.arch.stages
    is_own = stages == arch.get(model.name).stages
    blocks = [] if is_own else list(arch.encode(stages))
    arguments = {"name": model.name, "num_classes": model.num_classes}
    metadata = {
        "model": {**arguments, "blocks": blocks, "padding": model.arch.padding},
        "class_names": list(class_names),
        "config": None,
        **others,
    }
    if config is not None:
        preprocessing = {key: config.data[key] for key in _DATA_KEYS}
        preprocessing["image_size"] = config.eval.image_size
        metadata |= {"preprocessing": preprocessing, "config": config.to_dict()}
    return metadata


def convert_published(source: str, out: str, **options: Any) -> dict[str, Any]:
    """Writes a published file as a checkpoint; returns the mapping report.

    Args:
      source: path of the file.
      out: folder to create.
      options: of `published.convert.convert`.

    Raises:
      InputError: `convert` refuses the file or an option, raw weights are asked of a
        file with one set of weights, or `out` exists or cannot be written.
    """
    files.check_new("out", out)
    converted = convert.convert(source, **options)
    if not options.get("averaged", True) and not converted.has_both:
        raise errors.InputError(
            f"raw: {source!r} has one set of weights and no averages; leave --raw out"
        )
    save_weights(out, converted.variables, _published_metadata(converted))
    return {**converted.report, "preprocessing": converted.preprocessing}


def _published_metadata(converted: convert.Converted) -> dict[str, Any]:
    return make_metadata(
        converted.model,
        converted.class_names,
        preprocessing=converted.preprocessing,
        source=converted.report,
        one_set=True,  # no EMA weights beside raw ones
    )
