"""The report of a run: figures in `plots/` and one self-contained `report.html`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from matplotlib import figure as mpl_figure

from ev2 import errors, files, progressive
from ev2.report import class_plots, html, plots
from ev2.train.workdir import Run, read_run

SAMPLES_PER_STAGE = 12  # divides into rows of 6, 4, 3 and 2
SPARE_SAMPLES = 4  # in place of files that cannot be decoded
MAX_SAMPLED_STAGES = 6  # more stages than this: one of each image size


def _by_class(draw: Callable[..., mpl_figure.Figure]) -> Callable:
    return lambda run: draw(run.confusion, run.class_names)


# File name of each figure: the attribute of the run that it draws, and its function.
FIGURES: dict[str, tuple[str, Callable[[Run], mpl_figure.Figure]]] = {
    "progressive": ("stages", plots.progressive_learning),
    "learning_curves": ("train", plots.learning_curves),
    "stages": ("stages", plots.stages),
    "learning_rate": ("train", plots.learning_rate),
    "throughput": ("train", plots.throughput),
    "confusion": ("confusion", _by_class(class_plots.confusion_matrix)),
    "class_accuracy": ("confusion", _by_class(class_plots.class_accuracy)),
}


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes `plots/*.png` and `report.html` of a run and returns the page's path.

    The run may be unfinished: the report then lacks values, and lists them. The page
    needs no other file and no network, and fits phones. Sample images are read from the
    training data; if that fails, the page gives the reason. Files are replaced
    atomically.

    Raises:
        InputError: `workdir` is not the folder of a run, or not writable.
    """
    run = read_run(workdir)
    samples, reason = _draw_samples(run)
    figures = {}
    for name, (needs, draw) in FIGURES.items():
        values = getattr(run, needs)
        if values is not None and len(values):
            figures[name] = plots.to_png(draw(run))
    contents = {f"plots/{name}.png": png for name, png in figures.items()}
    if samples:
        rows = class_plots.sample_rows(samples, run.class_names)
        contents["plots/samples.png"] = plots.to_png(rows)
    contents["report.html"] = html.render(run, figures, samples, reason).encode()
    try:
        (run.workdir / "plots").mkdir(exist_ok=True)
        for name, content in contents.items():
            files.write_atomically(run.workdir / name, content)
    except OSError as error:
        raise errors.InputError(
            f"workdir: '{run.workdir}' cannot be written ({error}); "
            "give a folder that you may write to"
        ) from error
    return run.workdir / "report.html"


def _draw_samples(run: Run) -> tuple[list[class_plots.Samples], str]:
    """Returns the samples and ""; or no samples and the reason."""
    if not run.stages:
        return [], "The run has not written its stages yet."
    try:
        return read_samples(run), ""
    except Exception as error:  # missing data must not cost a finished run its report
        logging.warning("report: no training images: %s", error)
        return [], f"The training data could not be read: {error}"


def read_samples(run: Run) -> list[class_plots.Samples]:
    """Returns the first images of each stage, as the run trained on them.

    Of more than `MAX_SAMPLED_STAGES` stages, the first stage of each image size.
    """
    from ev2.data import pipeline  # late: loads TensorFlow

    config = ml_collections.ConfigDict(_with_tuples(run.config))
    stages = progressive.make_stages(config, run.plan["num_train_images"])
    if len(stages) > MAX_SAMPLED_STAGES:
        first_of_size = {s.image_size: s for s in reversed(stages)}
        stages = [first_of_size[size] for size in sorted(first_of_size)]
    samples = []
    for stage in stages:
        # Augmentation depends on the position in the run alone, so that a smaller
        # batch holds the same first images.
        few = dataclasses.replace(stage, batch_size=SAMPLES_PER_STAGE + SPARE_SAMPLES)
        batches = pipeline.make_train_data(config, few, first_step=stage.first_step)
        try:
            batch = next(iter(batches))
        finally:
            batches.close()
        kept = np.flatnonzero(batch["mask"])[:SAMPLES_PER_STAGE]
        magnitude = plots.brief(stage.strengths["randaugment"])
        augment = {
            "randaugment": f"RandAugment magnitude {magnitude}",
            "autoaugment": "AutoAugment",
            "none": "neither RandAugment nor AutoAugment",
        }[config.data.augment]
        samples.append(
            class_plots.Samples(
                title=f"Stage {stage.index}: {stage.image_size} px, {augment}",
                image_size=stage.image_size,
                images=batch["image"][kept],
                labels=[int(np.ravel(label)[0]) for label in batch["label"][kept]],
            )
        )
    return samples


def _with_tuples(value: Any) -> Any:
    """Turns the lists of JSON into the tuples of a config."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
