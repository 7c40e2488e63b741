"""The stage table of a run, computed without a device and, where it can, without data.

`make_plan` gives the numbers, `format_table` writes them for people. The same table
heads a training run, so what is planned is what is trained.
"""

from typing import Any

from ml_collections import ConfigDict

from ev2 import progressive
from ev2.models import arch
from ev2.train import optimizer as optim
from ev2.train import validate as check

# Sources whose declared counts are believed until the data are opened.
_COUNTABLE_SOURCES = ("tfds", "tfrecord", "synthetic")


def make_plan(config: ConfigDict) -> dict[str, Any]:
    """Returns the plan of a run as JSON-ready values.

    Keys: `model`, `num_train_images`, `steps` and `epochs` (both of the whole run)
    and `stages`, a list of `index`, `first_step`, `last_step` (exclusive), `epochs`,
    `image_size` (px), `batch_size` (global images), `strengths` by name, and
    `learning_rate` at the first and the last step of the stage.

    Loads TensorFlow only when the source has to count its images.

    Raises:
        errors.InputError: the config has a value that no run could use.
    """
    check.check(config)
    check.check_init(config.init)
    check.check_stall(config.stall_seconds)
    network = config.model  # refused here if its name, blocks or padding are no good
    arch.get(network.name, tuple(network.blocks), network.padding)
    num_train_images = _count_train_images(config)
    stages = progressive.make_stages(config, num_train_images)
    learning_rate = optim.make_learning_rate(config, stages, num_train_images)
    last = stages[-1]
    return {
        "model": config.model.name,
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
            }
            for stage in stages
        ],
    }


def _count_train_images(config: ConfigDict) -> int:
    declared = config.data.num_train_images
    if config.data.source in _COUNTABLE_SOURCES and declared:
        return declared
    from ev2.data import sources  # loads TensorFlow

    return sources.describe(config).num_train_images


_HEADINGS = (
    "stage",
    "from step",
    "steps",
    "epochs",
    "px",
    "batch",
    "dropout",
    "randaug",
    "mixup",
    "cutmix",
    "drop path",
    "lr from",
    "lr to",
)


def format_table(plan: dict[str, Any]) -> str:
    """Returns the plan as an aligned table, a heading above and the totals below."""
    rows = [_HEADINGS]
    rows += [_row(stage) for stage in plan["stages"]]
    totals = ("total", "", f"{plan['steps']:,}", f"{plan['epochs']:.2f}")
    rows.append(totals + ("",) * (len(_HEADINGS) - len(totals)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    title = (
        f"{plan['model']}, {plan['num_train_images']:,} training images, "
        f"{len(plan['stages'])} stage{'s' if len(plan['stages']) > 1 else ''}"
    )
    return "\n".join([title, *lines])


def _row(stage: dict[str, Any]) -> tuple[str, ...]:
    strengths = stage["strengths"]
    first_rate, last_rate = stage["learning_rate"]
    return (
        str(stage["index"]),
        f"{stage['first_step']:,}",
        f"{stage['last_step'] - stage['first_step']:,}",
        f"{stage['epochs']:.2f}",
        str(stage["image_size"]),
        f"{stage['batch_size']:,}",
        f"{strengths['dropout']:.3f}",
        f"{strengths['randaugment']:.2f}",
        f"{strengths['mixup']:.3f}",
        f"{strengths['cutmix']:.3f}",
        f"{strengths['drop_path']:.3f}",
        f"{first_rate:.5f}",
        f"{last_rate:.5f}",
    )
