"""The stage table of a run, computed without a device and, where it can, without data.

`make_plan` computes the numbers, `format_table` prints them. The same table heads a
training run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tabulate
from ml_collections import ConfigDict

from ev2 import progressive
from ev2.train import optimizer, validate

# Sources whose declared counts are trusted until the data are opened.
_COUNTABLE_SOURCES = ("tfds", "tfrecord", "synthetic")


def make_plan(config: ConfigDict) -> dict[str, Any]:
    """Returns the plan of a run as JSON-ready values; see `tabulate_stages`.

    Loads TensorFlow only when the source has to count its images.

    Raises:
        InputError: the config has a value that no run could use.
    """
    validate.check_config(config)
    num_train_images = _count_train_images(config)
    stages = progressive.make_stages(config, num_train_images)
    learning_rate = optimizer.make_learning_rate(config, stages, num_train_images)
    return tabulate_stages(
        config.model.name,
        stages,
        learning_rate,
        num_train_images,
        config.optimizer.warmup_epochs,
    )


def tabulate_stages(
    model_name: str,
    stages: Sequence[progressive.Stage],
    learning_rate: Callable[[int], float],
    num_train_images: int,
    warmup_epochs: float,
) -> dict[str, Any]:
    """Returns stages as JSON-ready values.

    Keys: `model`, `num_train_images`, `steps` and `epochs` (both of the whole run)
    and `stages`, a list of `index`, `first_step`, `last_step` (exclusive), `epochs`,
    `image_size` (px), `batch_size` (global images), `strengths` by name,
    `learning_rate` at the first and the last step of the stage, and
    `peak_learning_rate` within it.
    """
    last, warmup = stages[-1], warmup_epochs * num_train_images
    return {
        "model": model_name,
        "num_train_images": num_train_images,
        "steps": last.last_step,
        "epochs": last.images_seen(last.last_step) / num_train_images,
        "stages": [
            {
                "index": stage.index,
                "first_step": stage.first_step,
                "last_step": stage.last_step,
                "epochs": (stage.images_seen(stage.last_step) - stage.first_image)
                / num_train_images,
                "image_size": stage.image_size,
                "batch_size": stage.batch_size,
                "strengths": stage.strengths,
                "learning_rate": [
                    learning_rate(stage.first_step),
                    learning_rate(stage.last_step - 1),
                ],
                "peak_learning_rate": max(
                    map(learning_rate, _peak_steps(stage, warmup))
                ),
            }
            for stage in stages
        ],
    }


def _peak_steps(stage: progressive.Stage, warmup_images: float) -> list[int]:
    """Steps of which one has the stage's highest learning rate.

    The rate rises until the end of the warm-up and never after it.
    """
    last_step = stage.last_step - 1
    end = stage.first_step + int(
        (warmup_images - stage.first_image) // stage.batch_size
    )
    return [min(max(s, stage.first_step), last_step) for s in (0, end, end + 1)]


def _count_train_images(config: ConfigDict) -> int:
    declared = config.data.num_train_images
    if config.data.source in _COUNTABLE_SOURCES and declared:
        return declared
    from ev2.data import sources  # loads TensorFlow

    return sources.describe(config).num_train_images


def format_table(plan: dict[str, Any]) -> str:
    """Returns the plan as an aligned table, a title above and the totals below."""
    labels = [strength.label for strength in progressive.STRENGTHS]
    headers = [
        *("stage", "from step", "steps", "epochs", "px", "batch"),
        *labels,
        *("lr from", "lr peak", "lr to"),
    ]
    rows = [_format_stage(stage) for stage in plan["stages"]]
    rows.append(["total", "", f"{plan['steps']:,}", f"{plan['epochs']:.2f}"])
    count = len(plan["stages"])
    title = (
        f"{plan['model']}, {plan['num_train_images']:,} training images, "
        f"{count} stage{'s' if count > 1 else ''}"
    )
    table = tabulate.tabulate(
        [headers, *rows],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["right"] * len(headers),
    )
    return "\n".join([title, *map(str.rstrip, table.splitlines())])


def _format_stage(stage: dict[str, Any]) -> list[str]:
    first_rate, last_rate = stage["learning_rate"]
    return [
        str(stage["index"]),
        f"{stage['first_step']:,}",
        f"{stage['last_step'] - stage['first_step']:,}",
        f"{stage['epochs']:.2f}",
        str(stage["image_size"]),
        f"{stage['batch_size']:,}",
        *(f"{value:.4g}" for value in stage["strengths"].values()),
        *(
            f"{rate:.3g}"
            for rate in (first_rate, stage["peak_learning_rate"], last_rate)
        ),
    ]
