"""Progressive learning: the stages of a run as plain values (paper, Algorithm 1).

A run is cut into stages. Each has an image size and a strength for every kind of
regularization, and small images go with weak regularization. Nothing here knows of
networks or devices, so a plan can be printed and tested in microseconds.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

from ev2 import errors

SCHEDULES = ("progressive", "random", "fixed")
SIZE_RULES = ("paper", "released")
STRENGTHS = ("dropout", "randaugment", "mixup", "cutmix", "drop_path")
MIN_IMAGE_SIZE = 8  # px; the networks halve the side five times, rounding up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of steps at one image size, batch size and set of strengths."""

    index: int
    first_step: int
    last_step: int  # exclusive
    first_image: int  # training images consumed before first_step
    image_size: int  # px, side of a square
    batch_size: int  # global images
    dropout: float  # probability
    randaugment: float  # magnitude
    mixup: float  # alpha
    cutmix: float  # alpha
    drop_path: float  # probability, of the last block

    @property
    def strengths(self) -> dict[str, float]:
        """The five regularization strengths by name, in the order of `STRENGTHS`."""
        return {name: getattr(self, name) for name in STRENGTHS}

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
        config: keys `seed`, `batch_size`, `epochs`, `steps` and `progressive.*`.
        num_train_images: images of one epoch.

    Raises:
        errors.InputError: a value is out of range, or the run is too short for its
            stages.

    Source: Algorithm 1; Table 6 (strengths); Table 13 (random, adaptive).
    """
    _check(config, num_train_images)
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
            **strengths[level],
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
    for name in STRENGTHS:
        first, last = progressive[name]
        # Last values are taken as they are: 0.2 + (0.9 - 0.2) is 0.8999999999999999.
        value = last if is_last else first + (last - first) * level / (m - 1)
        strengths[name] = float(value)
    return strengths


def _check(config: Any, num_train_images: int) -> None:
    progressive = config.progressive
    errors.check_choice("progressive.schedule", progressive.schedule, SCHEDULES)
    errors.check_choice("progressive.size_rule", progressive.size_rule, SIZE_RULES)
    _check_integer("progressive.stages", progressive.stages, 1)
    _check_integer("batch_size", config.batch_size, 1)
    _check_integer("data.num_train_images", num_train_images, 1)
    _check_length(config)
    _check_image_size(progressive.image_size)
    for name in STRENGTHS:
        _check_strength(name, progressive[name])
    if progressive.batch_size:
        if len(progressive.batch_size) != progressive.stages:
            raise errors.InputError(
                f"progressive.batch_size: {progressive.batch_size!r} has "
                f"{len(progressive.batch_size)} numbers; give one for each of the "
                f"{progressive.stages} stages, or () to use batch_size for all"
            )
        for batch_size in progressive.batch_size:
            _check_integer("progressive.batch_size", batch_size, 1)
    if not 0 < progressive.random_epochs < math.inf:
        raise errors.InputError(
            f"progressive.random_epochs: {progressive.random_epochs!r} is not a "
            "length; give epochs above 0"
        )


def _check_integer(key: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or value < minimum:
        raise errors.InputError(
            f"{key}: {value!r} is not allowed; give a whole number of at least "
            f"{minimum}"
        )


def _check_steps(steps: list[int], config: Any, num_train_images: int) -> None:
    if min(steps) >= 1:
        return
    raise errors.InputError(
        f"epochs: {config.epochs:g} (steps: {config.steps}) with {num_train_images} "
        f"training images and batch_size {config.batch_size} is {sum(steps)} steps "
        f"for {len(steps)} stages, and each stage needs at least 1; raise epochs, or "
        "lower progressive.stages or the batch size"
    )


def _check_length(config: Any) -> None:
    for key, value in (("epochs", config.epochs), ("steps", config.steps)):
        if not 0 <= value < math.inf:
            raise errors.InputError(
                f"{key}: {value!r} is not a length; give a number of at least 0"
            )
    if bool(config.epochs) == bool(config.steps):
        raise errors.InputError(
            f"epochs: {config.epochs!r} and steps: {config.steps!r}; exactly one of "
            "the two must be above 0, set the other to 0"
        )


def _check_pair(key: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise errors.InputError(
            f"{key}: {value!r} is not a pair; give (first stage, last stage)"
        )


def _check_image_size(value: Any) -> None:
    key = "progressive.image_size"
    _check_pair(key, value)
    for size in value:
        _check_integer(key, size, MIN_IMAGE_SIZE)
    if value[0] > value[1]:
        raise errors.InputError(
            f"{key}: {value!r} shrinks, so its last size is never reached by "
            "growing; give (smaller, larger) in px"
        )


def _check_strength(name: str, value: Any) -> None:
    key = f"progressive.{name}"
    _check_pair(key, value)
    is_probability = name in ("dropout", "drop_path")
    limit = 1.0 if is_probability else math.inf
    if not all(isinstance(v, int | float) and 0 <= v < limit for v in value):
        allowed = "in [0, 1)" if is_probability else "of at least 0"
        raise errors.InputError(
            f"{key}: {value!r} is not allowed; give two numbers {allowed}"
        )
