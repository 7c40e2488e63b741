"""Images a second of the input pipeline, beside other loaders: `ev2 bench input`.

    ev2 bench input --config=configs/imagenet1k.py:s --config.data.source=folder \\
      --config.data.path=DIR --config.data.num_train_images=0 \\
      --config.data.num_eval_images=0 --config.data.num_classes=0

For each image size of the recipe, each row in a process of its own, so that its memory
is its own: `decode` reads and decodes whole pictures and throws them away; `half` does
so at half scale, where JPEG leaves out most of the arithmetic; `crop` is ours without
augmentation, which decodes the crop alone; `ev2` is ours.
torchvision's and timm's loaders (PIL, one worker process per core, RandAugment at the
same magnitude) read the same files where installed (pip install 'ev2[peers]')
and the source is a folder.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import os
import resource
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tqdm
from ml_collections import ConfigDict

from ev2 import errors, progressive
from ev2.bench import peers
from ev2.data import pipeline, sources
from ev2.data import sources as source


def measure(
    config: Any, *, images: int = 2000, sizes: Iterable[int] = ()
) -> dict[str, Any]:
    """Returns images/s and memory of each pipeline at each image size.

    Args:
        config: the recipe; its training split is read, over and over if it is short.
        images: number that each figure is taken over.
        sizes: px; () for those of the recipe's stages.

    Returns:
        `{"images", "cores", "stages": [{"image_size", "results": [{"name",
        "images_per_second", "peak_mib"}]}]}`; the memory is that of the main process,
        and for the peers of the largest of their workers.

    Raises:
        InputError: the config or the data are bad, or a value is out of range.
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
    names = ["decode", "half", "crop", "ev2", *_installed_peers(config)]
    jobs = list(itertools.product(stages, names))
    rows = [
        _measure(name, config, stage, images)
        for stage, name in tqdm.tqdm(jobs, unit="figure")
    ]
    return {
        "images": images,
        "cores": os.cpu_count(),
        "stages": [
            {
                "image_size": stage.image_size,
                "results": rows[i * len(names) : (i + 1) * len(names)],
            }
            for i, stage in enumerate(stages)
        ],
    }


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table: a row per pipeline."""
    stages = figures["stages"]
    heading = "".join(f"{stage['image_size']:>8} px" for stage in stages)
    lines = [f"images/s, {figures['cores']} cores", f"{'':<14}{heading}    MiB"]
    for i, row in enumerate(stages[0]["results"]):
        cells = [stage["results"][i] for stage in stages]
        speeds = "".join(f"{cell['images_per_second']:>11,.0f}" for cell in cells)
        memory = max(cell["peak_mib"] for cell in cells)
        lines.append(f"{row['name']:<14}{speeds}{memory:>7,}")
    return "\n".join(lines)


def _installed_peers(config: Any) -> list[str]:
    found = [n for n in peers.LOADERS if importlib.util.find_spec(n) is not None]
    return found if config.data.source == "folder" else []


def _measure(name: str, config: Any, stage, images: int) -> dict[str, Any]:
    """The figures of one pipeline, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        if name in peers.LOADERS:
            opened = source.open_source(config, "train")
            job = process.submit(
                peers.time_loader,
                name,
                [opened.name(i) for i in range(len(opened))],
                image_size=stage.image_size,
                magnitude=round(stage.strengths["randaugment"]),
                crop_area=tuple(config.data.crop_area),
                images=images,
            )
        else:
            job = process.submit(time_own, name, config.to_dict(), stage, images)
        return job.result()


def time_own(name: str, values: dict, stage, images: int) -> dict[str, Any]:
    """Returns the figures of one of our rows, measured in this process."""
    config = ConfigDict(values)
    make = {
        "decode": _decoded,
        "half": functools.partial(_decoded, ratio=2),
        "crop": _cropped,
        "ev2": _batches,
    }[name]
    speed = peers.images_per_second(make(config, stage, images), images)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"name": name, "images_per_second": speed, "peak_mib": memory}


def _batches(config: Any, stage, images: int) -> Iterator[int]:
    """Sizes of our own training batches."""
    steps = peers.count_batches(images)
    stage = dataclasses.replace(
        stage,
        first_step=0,
        first_image=0,
        last_step=steps,
        batch_size=peers.BATCH,
    )
    for batch in pipeline.make_train_data(config, stage, first_step=0):
        yield len(batch["image"])


def _cropped(config: Any, stage, images: int) -> Iterator[int]:
    config.data.augment = "none"
    return _batches(config, stage, images)


def _decoded(config: Any, stage, images: int, *, ratio: int = 1) -> Iterator[int]:
    """Sizes of batches of whole pictures, decoded and thrown away.

    With a `ratio` above 1 JPEGs are decoded at that fraction of their size.
    """
    del stage, images
    import tensorflow as tf

    opened = source.open_source(config, "train")
    cores = os.cpu_count()

    def read(index):
        return opened.read(np.array([index]))[0][0]

    def decode(index):
        encoded = tf.numpy_function(read, [index], tf.string)
        picture = tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio),
            lambda: tf.io.decode_image(encoded, 3, expand_animations=False),
        )
        return tf.reduce_max(picture[0, 0])

    dataset = tf.data.Dataset.range(len(opened)).repeat()
    dataset = dataset.map(decode, num_parallel_calls=cores).ignore_errors()
    for batch in dataset.batch(peers.BATCH).prefetch(2):
        yield len(batch)
