"""Progressive learning: the stages of a run as plain values (paper, Algorithm 1).

A run is cut into stages. Each has an image size and a strength for every kind of
regularization, and small images go with weak regularization. Nothing here knows of
networks or devices, so a plan can be printed and tested in microseconds.
"""

import dataclasses
import itertools
import math
import random
from typing import Any

from ev2 import errors

SCHEDULES = ("progressive", "random", "fixed")
SIZE_RULES = ("paper", "released")
MIN_IMAGE_SIZE = 8  # px; the networks halve the side five times, rounding up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strength:
    """One regularization strength that may grow with the image size.

    Attributes:
        name: key of `config.progressive`, a pair (first stage, last stage).
        label: column heading and figure title.
        unit: quantity that a value is.
        meaning: one line for the help.
        default: the pair of the paper's S recipe (Table 6).
        limit: every value is at least 0 and below this.
        in_step: whether the compiled training step takes it as an argument; otherwise
            it belongs to the data pipeline.
    """

    name: str
    label: str
    unit: str
    meaning: str
    default: tuple[float, float]
    limit: float = math.inf
    in_step: bool = True


# The one list of strengths: config, validation, stages, plan, step, plots and report
# walk it. What a strength does stands in the data pipeline or in the training step.
STRENGTHS = (
    Strength(
        name="dropout",
        label="dropout",
        unit="probability",
        meaning="probability, before the classifier",
        default=(0.1, 0.3),
        limit=1.0,
    ),
    Strength(
        name="randaugment",
        label="RandAugment",
        unit="magnitude",
        meaning="magnitude, scale 0..10, extrapolated",
        default=(5.0, 15.0),
        in_step=False,
    ),
    Strength(
        name="mixup",
        label="mixup",
        unit="alpha",
        meaning="alpha of Beta(alpha, alpha); 0 = off",
        default=(0.0, 0.0),
    ),
    Strength(
        name="cutmix",
        label="CutMix",
        unit="alpha",
        meaning="alpha of Beta(alpha, alpha); 0 = off; the paper does not mention it",
        default=(0.0, 0.0),
    ),
    Strength(
        name="drop_path",
        label="drop path",
        unit="probability",
        meaning="probability of dropping the last block, falling linearly to 0 at the "
        "first; the paper's survival probability is 0.8",
        default=(0.2, 0.2),
        limit=1.0,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of steps at one image size, batch size and set of strengths."""

    index: int
    first_step: int
    last_step: int  # exclusive
    first_image: int  # training images consumed before first_step
    image_size: int  # px, side of a square
    batch_size: int  # global images
    strengths: dict[str, float]  # by name, in the order of `STRENGTHS`

    def images_seen(self, step: int) -> int:
        """Returns the training images consumed before `step`, a step of this stage."""
        return self.first_image + (step - self.first_step) * self.batch_size


def make_stages(config: Any, num_train_images: int) -> tuple[Stage, ...]:
    """Returns the stages of a run: contiguous from step 0, covering every step.

    With N = int(epochs * num_train_images / batch_size), or `config.steps`, stage i
    of M runs from step floor(N * i / M) to floor(N * (i + 1) / M). At t = i / (M - 1)
    (t = 1 when M = 1) a strength is first + (last - first) * t; the size follows
    `progressive.size_rule`, see `_image_sizes`.

    Schedule "random" draws one of those M sizes every `random_epochs` from
    `config.seed`, and the strengths follow the size drawn; "fixed" is one stage at
    the last size and strengths. With `adaptive=False` strengths stay at the last
    value while the size moves.

    With `progressive.batch_size` the images of the run, rather than its steps, are
    shared equally; a stage takes as many whole batches as fit its share. The batch
    belongs to the size: "random" uses the batch of the size drawn, "fixed" the last.

    Args:
        config: keys `seed`, `batch_size`, `epochs`, `steps` and `progressive.*`, with
            values that `train.validate` allows.
        num_train_images: images of one epoch.

    Raises:
        InputError: the run is too short for its stages.

    Source: Algorithm 1; Table 6 (strengths); Table 13 (random, adaptive).
    """
    progressive = config.progressive
    # A level is a row of Algorithm 1: one size with its strengths and batch size.
    num_levels = progressive.stages
    sizes = _image_sizes(progressive)
    strengths = [_strengths(progressive, level) for level in range(num_levels)]
    batch_sizes = progressive.batch_size or (config.batch_size,) * num_levels

    levels, steps = _levels_and_steps(config, num_train_images)
    _check_steps(steps, config, num_train_images)

    stages = []
    first_step = first_image = 0
    for index, (level, num_steps) in enumerate(zip(levels, steps, strict=True)):
        stage = Stage(
            index=index,
            first_step=first_step,
            last_step=first_step + num_steps,
            first_image=first_image,
            image_size=sizes[level],
            batch_size=batch_sizes[level],
            strengths=strengths[level],
        )
        stages.append(stage)
        first_step = stage.last_step
        first_image = stage.images_seen(stage.last_step)
    return tuple(stages)


def _levels_and_steps(
    config: Any, num_train_images: int
) -> tuple[list[int], list[int]]:
    """Level and number of steps of each stage."""
    levels, bounds = _levels_and_bounds(config, num_train_images)
    steps = [last - first for first, last in itertools.pairwise(bounds)]
    batch_sizes = config.progressive.batch_size
    if batch_sizes:  # those were images
        steps = [
            n // batch_sizes[level] for level, n in zip(levels, steps, strict=True)
        ]
    if config.progressive.schedule == "random" and len(steps) > 1 and steps[-1] == 0:
        return levels[:-1], steps[:-1]  # the last draw is cut to nothing
    return levels, steps


def _levels_and_bounds(
    config: Any, num_train_images: int
) -> tuple[list[int], list[int]]:
    """Level of each stage; where stages begin and the last ends, in steps or images.

    In steps, unless every stage has its own batch size: then in images.
    """
    progressive = config.progressive
    unit = 1 if progressive.batch_size else config.batch_size
    if config.steps:
        total = config.steps * config.batch_size // unit
    else:
        total = int(config.epochs * num_train_images / unit)
    m = progressive.stages
    if progressive.schedule == "fixed":
        return [m - 1], [0, total]
    if progressive.schedule == "progressive":
        return list(range(m)), [total * i // m for i in range(m + 1)]
    period = progressive.random_epochs * num_train_images / unit
    num_draws = max(1, math.ceil(total / period))
    # random() is the one stream that Python promises never to change.
    rng = random.Random(config.seed)
    levels = [int(rng.random() * m) for _ in range(num_draws)]
    return levels, [int(period * k) for k in range(num_draws)] + [total]


def _image_sizes(progressive: Any) -> list[int]:
    """Size of each level in px, in whole-number arithmetic.

    Rule "paper" is Algorithm 1; the paper prints 185.3 and 242.7 px for S without a
    rounding, ours is to the nearest pixel, half up. Rule "released" is one step of
    an M-step ladder ahead and cuts the fraction off, as google/automl does.
    """
    first, last = progressive.image_size
    m = progressive.stages
    if progressive.size_rule == "released":
        return [first + (last - first) * (i + 1) // m for i in range(m)]
    if m == 1:
        return [last]
    return [
        first + (2 * (last - first) * i + (m - 1)) // (2 * (m - 1)) for i in range(m)
    ]


def _strengths(progressive: Any, level: int) -> dict[str, float]:
    m = progressive.stages
    is_last = level == m - 1 or not progressive.adaptive
    strengths = {}
    for strength in STRENGTHS:
        first, last = progressive[strength.name]
        # Last values are taken as they are: 0.2 + (0.9 - 0.2) is 0.8999999999999999.
        value = last if is_last else first + (last - first) * level / (m - 1)
        strengths[strength.name] = float(value)
    return strengths


def _check_steps(steps: list[int], config: Any, num_train_images: int) -> None:
    if min(steps) >= 1:
        return
    raise errors.InputError(
        f"epochs: {config.epochs:g} (steps: {config.steps}) with {num_train_images} "
        f"training images and batch_size {config.batch_size} is {sum(steps)} steps "
        f"for {len(steps)} stages, and each stage needs at least 1; raise epochs, or "
        "lower progressive.stages or the batch size"
    )
