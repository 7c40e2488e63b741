"""Measures the input pipeline in images/s beside other loaders: `ev2 bench input`.

    ev2 bench input --config=configs/imagenet1k.py:s --config.data.source=folder \\
      --config.data.path=DIR --config.data.num_train_images=0 \\
      --config.data.num_eval_images=0 --config.data.num_classes=0

Each row is measured in a process of its own, for each image size of the recipe:

    decode  reads and decodes whole images
    half    decodes at half scale, where JPEG leaves out most of the arithmetic
    crop    the pipeline of ev2 without augmentation, which decodes the crop alone
    ev2     the pipeline of ev2

The loaders of torchvision and timm (PIL, one worker process per core, RandAugment at
the same magnitude) read the same files if they are installed (pip install 'ev2[peers]')
and the source is a folder.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import multiprocessing
import os
import resource
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tabulate
import tqdm
from ml_collections import ConfigDict

from ev2 import errors, progressive
from ev2.bench import reference_loaders
from ev2.data import pipeline, sources


def measure(
    config: Any, *, images: int = 2000, sizes: Iterable[int] = ()
) -> dict[str, Any]:
    """Returns images/s and memory of each pipeline at each image size.

    Args:
        config: the recipe; its training split is read, repeatedly if it is short.
        images: number of images per figure.
        sizes: px; () for the sizes of the recipe's stages.

    Returns:
        `{"images", "cores", "stages": [{"image_size", "results": [{"name",
        "images_per_second", "peak_mib"}]}]}`; the memory of the main process, and for
        PyTorch of the largest worker.

    Raises:
        InputError: if the config or the data are bad, or a value is out of range.
    """
    if images < 1:
        raise errors.InputError(f"images: {images} is not allowed; give 1 or more")
    info = sources.describe(config)
    by_size = {
        stage.image_size: stage
        for stage in progressive.make_stages(config, info.num_train_images)
    }
    last = max(by_size)
    for size in sizes:
        if size < 8:
            raise errors.InputError(f"sizes: {size} is not allowed; give 8 or more")
        by_size.setdefault(size, dataclasses.replace(by_size[last], image_size=size))
    stages = [by_size[size] for size in sizes or sorted(by_size)]
    names = ["decode", "half", "crop", "ev2", *installed_loaders(config)]
    figures = []
    for stage in stages:
        bar = tqdm.tqdm(names, f"{stage.image_size} px", unit="figure")
        rows = [measure_row(name, config, stage, images) for name in bar]
        figures.append({"image_size": stage.image_size, "results": rows})
    return {"images": images, "cores": os.cpu_count(), "stages": figures}


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table: a row per pipeline."""
    stages = figures["stages"]
    rows = []
    for cells in zip(*(stage["results"] for stage in stages), strict=True):
        speeds = [cell["images_per_second"] for cell in cells]
        peak = max(cell["peak_mib"] for cell in cells)
        rows.append([cells[0]["name"], *speeds, peak])
    headings = ["", *(f"{stage['image_size']} px" for stage in stages), "MiB"]
    table = tabulate.tabulate(rows, headings, tablefmt="plain", floatfmt=",.0f")
    return f"images/s, {figures['cores']} cores\n{table}"


def installed_loaders(config: Any) -> list[str]:
    """Returns the installed loaders that can read the source."""
    if config.data.source != "folder":
        return []
    return [
        name for name in reference_loaders.LOADERS if importlib.util.find_spec(name)
    ]


def measure_row(name: str, config: Any, stage, images: int) -> dict[str, Any]:
    """Returns the figures of one pipeline, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        if name in reference_loaders.LOADERS:
            source = sources.open_source(config, "train")
            future = process.submit(
                reference_loaders.time_loader,
                name,
                [source.name(i) for i in range(len(source))],
                image_size=stage.image_size,
                magnitude=round(stage.strengths["randaugment"]),
                crop_area=tuple(config.data.crop_area),
                images=images,
            )
        else:
            future = process.submit(time_own, name, config.to_dict(), stage, images)
        return future.result()


def time_own(name: str, values: dict, stage, images: int) -> dict[str, Any]:
    """Returns the figures of a pipeline of ev2, measured in this process."""
    config = ConfigDict(values)
    make = {
        "decode": _decoded,
        "half": functools.partial(_decoded, ratio=2),
        "crop": _cropped,
        "ev2": _batches,
    }[name]
    speed = reference_loaders.images_per_second(make(config, stage, images), images)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"name": name, "images_per_second": speed, "peak_mib": memory}


def _batches(config: Any, stage, images: int) -> Iterator[int]:
    """Yields the sizes of training batches."""
    steps, batch_size = reference_loaders.count_batches(images), reference_loaders.BATCH
    start = {"first_step": 0, "first_image": 0}
    stage = dataclasses.replace(stage, last_step=steps, batch_size=batch_size, **start)
    for batch in pipeline.make_train_data(config, stage, first_step=0):
        yield len(batch["image"])


def _cropped(config: Any, stage, images: int) -> Iterator[int]:
    config.data.augment = "none"
    return _batches(config, stage, images)


def _decoded(config: Any, stage, images: int, *, ratio: int = 1) -> Iterator[int]:
    """Yields the sizes of batches of images, JPEGs at 1 / `ratio` of their size."""
    del stage, images
    import tensorflow as tf

    source = sources.open_source(config, "train")
    cores = os.cpu_count()

    def read(index):
        return source.read(np.array([index]))[0][0]

    def decode(index):
        encoded = tf.numpy_function(read, [index], tf.string)
        image = tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio),
            lambda: tf.io.decode_image(encoded, 3, expand_animations=False),
        )
        return tf.reduce_max(image[0, 0])

    dataset = tf.data.Dataset.range(len(source)).repeat()
    dataset = dataset.map(decode, num_parallel_calls=cores).ignore_errors()
    for batch in dataset.batch(reference_loaders.BATCH).prefetch(2):
        yield len(batch)
