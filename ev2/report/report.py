"""The report of a run: pictures in `plots/` and one self-contained `report.html`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from matplotlib import figure as mpl_figure

from ev2 import errors, files
from ev2.report import class_plots, plots
from ev2.report import html as page
from ev2.train import workdir as workdirs

SAMPLES_PER_STAGE = 12  # divides into rows of 6, 4, 3 and 2
SPARE_SAMPLES = 4  # in place of corrupt files, which have no picture
MAX_SAMPLED_STAGES = 6  # more stages than this: one of each image size

Draw = Callable[[plots.Theme], mpl_figure.Figure]


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes `plots/*.png` and `report.html` of a run and returns the page's path.

    The run may be unfinished: the report shows what there is and says what is
    missing. The page needs no other file and no network, and looks right on a
    phone and in dark mode. Pictures of training images are drawn anew from the
    training pipeline; if the data cannot be read any more the page says so.
    Each file is replaced at once or not at all; nothing else is touched.

    Raises:
        errors.InputError: `workdir` is not the folder of a run, or not writable.
    """
    run = workdirs.read_run(pathlib.Path(workdir))
    samples, excuse = _draw_samples(run)
    pictures = {
        name: page.Picture(
            light=plots.to_png(draw(plots.LIGHT)), dark=plots.to_png(draw(plots.DARK))
        )
        for name, draw in _figures(run).items()
    }
    contents = {f"plots/{name}.png": p.light for name, p in pictures.items()}
    if samples:
        rows = class_plots.sample_rows(samples, run.class_names, plots.LIGHT)
        contents["plots/samples.png"] = plots.to_png(rows)
    contents["report.html"] = page.render(run, pictures, samples, excuse).encode()
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


def _figures(run: workdirs.Run) -> dict[str, Draw]:
    """The pictures that this run has values for, by file name."""
    train, evals, stages = run.train, run.evals, run.stages
    figures: dict[str, Draw] = {}
    if train or evals:
        figures["learning_curves"] = lambda theme: plots.learning_curves(
            train, evals, stages, theme
        )
    if stages:
        figures["stages"] = lambda theme: plots.stage_steps(stages, theme)
    if train:
        figures["learning_rate"] = lambda theme: plots.learning_rate(
            train, stages, theme
        )
        figures["throughput"] = lambda theme: plots.throughput(train, stages, theme)
    if run.confusion is not None:
        matrix, names = run.confusion, run.class_names
        figures["confusion"] = lambda theme: class_plots.confusion_matrix(
            matrix, names, theme
        )
        figures["class_accuracy"] = lambda theme: class_plots.class_accuracy(
            matrix, names, theme
        )
    return figures


def _draw_samples(run: workdirs.Run) -> tuple[list[class_plots.Samples], str]:
    """The first images of each stage, or none and the reason why."""
    if not run.stages:
        return [], "The run has not written its stages yet."
    try:
        return _read_samples(run), ""
    except Exception as error:  # a missing data set must not cost a finished run
        logging.warning("report: no training images: %s", error)
        return [], f"The training data could not be read: {error}"


def _read_samples(run: workdirs.Run) -> list[class_plots.Samples]:
    from ev2 import progressive
    from ev2.data import pipeline  # late: loads TensorFlow

    config = ml_collections.ConfigDict(_with_tuples(run.config))
    if "max_labels" not in config.data:  # a run of before there was this key
        config.data.max_labels = 1
    stages = progressive.make_stages(config, run.plan["num_train_images"])
    if len(stages) > MAX_SAMPLED_STAGES:
        first_of_size = {s.image_size: s for s in reversed(stages)}
        stages = [first_of_size[size] for size in sorted(first_of_size)]
    samples = []
    for stage in stages:
        # Augmentation follows the position in the run, so a smaller batch holds
        # the same first images and spares decoding the others.
        few = dataclasses.replace(stage, batch_size=SAMPLES_PER_STAGE + SPARE_SAMPLES)
        batches = pipeline.make_train_data(config, few, first_step=stage.first_step)
        try:
            batch = next(iter(batches))
        finally:
            batches.close()
        kept = np.flatnonzero(batch["mask"])[:SAMPLES_PER_STAGE]
        samples.append(
            class_plots.Samples(
                title=_sample_title(stage, config.data.augment),
                image_size=stage.image_size,
                images=batch["image"][kept],
                labels=[int(np.ravel(label)[0]) for label in batch["label"][kept]],
            )
        )
    return samples


def _sample_title(stage, augment: str) -> str:
    magnitude = plots.brief(stage.strengths["randaugment"])
    what = {
        "randaugment": f"RandAugment magnitude {magnitude}",
        "autoaugment": "AutoAugment",
        "none": "neither RandAugment nor AutoAugment",
    }[augment]
    return f"Stage {stage.index}: {stage.image_size} px, {what}"


def _with_tuples(value: Any) -> Any:
    """JSON has lists only; the config has tuples only."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
