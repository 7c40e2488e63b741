"""Produces a stage's batches: order, reading, augmentation, corrupt files.

A batch is a function of (config, step). The step gives the positions of its rows in
the run, a position gives the image (a permutation per epoch) and the seed of its
augmentation, and every image is read by index. So nothing depends on threads, on
the number of processes or on where a run was resumed, and no step has to be played
through to reach the next.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from ev2 import errors
from ev2.data import decode, image_paths, sources
from ev2.data.augment import augment
from ev2.data.tensorflow import tf

STEPS_IN_FLIGHT = 2  # a step's last images overlap with the next one's first
BATCHES_AHEAD = 2  # finished batches that wait for the training step
GREY = 128  # fills the row of a corrupt image and of padding
PADDING = -1  # index of a row past the end of an evaluation


class Batches:
    """Iterator over a stage's (or evaluation's) batches, dicts of NumPy arrays.

    `image` uint8 `[b, s, s, 3]` RGB, `label` int32 `[b]` (with `data.max_labels` L
    above 1 `[b, L]`, filled up with -1), `mask` float32 `[b]`, `index` int64 `[b]`:
    index in the split. Where the mask is 0 the image was corrupt, or the row is padding
    (index -1); the label is then 0, the image grey. `len()` is the number of batches
    left, `num_images` the number of images in the split.

    The first time that a corrupt image occurs, it is logged as a warning (if `warns`)
    and counted in `skipped`; `skipped_paths` lists all of them.
    """

    def __init__(
        self,
        dataset,
        source: sources.Source,
        num_steps: int,
        failures: list,
        warns: bool,
    ):
        self.num_images = len(source)
        self._iterator = iter(dataset)
        self._source = source
        self._left = num_steps
        self._failures = failures
        self._warns = warns
        self._corrupt: dict[int, str] = {}

    def __iter__(self) -> "Batches":
        return self

    def __len__(self) -> int:
        return self._left

    def __next__(self) -> dict[str, np.ndarray]:
        if self._left == 0 or self._iterator is None:
            raise StopIteration
        try:
            tensors = next(self._iterator)
        except (tf.errors.OpError, StopIteration):
            if self._failures:  # raised by a reading thread, wrapped by TensorFlow
                raise self._failures[0] from None
            raise
        self._left -= 1
        batch = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._note_corrupt(batch["index"][batch["mask"] == 0.0])
        return batch

    @property
    def skipped(self) -> int:
        """Number of distinct corrupt images so far."""
        return len(self._corrupt)

    @property
    def skipped_indices(self) -> tuple[int, ...]:
        """Indices in the split of the corrupt images, in order of occurrence."""
        return tuple(self._corrupt)

    @property
    def skipped_paths(self) -> tuple[str, ...]:
        """Locations of the corrupt images, in order of occurrence."""
        return tuple(self._corrupt.values())

    def close(self) -> None:
        """Ends the background work; the iterator is then exhausted."""
        self._iterator = None

    def _note_corrupt(self, indices: np.ndarray) -> None:
        for index in indices.tolist():
            if index != PADDING and index not in self._corrupt:
                name = self._corrupt[index] = self._source.name(index)
                if self._warns:
                    logging.warning("Skipped a corrupt image: %s", name)


def make_train_data(
    config: Any,
    stage: Any,
    *,
    first_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Returns the batches of steps `first_step` to `stage.last_step` of one process.

    Position p of the run (images consumed before it) holds image p % n of epoch
    p // n, in an order drawn from (seed, epoch): every image once per epoch. Its
    augmentation is drawn from (seed, p).

    Args:
        config: keys `seed` and `data.*`.
        stage: `progressive.Stage`; its image size, batch size and RandAugment
            magnitude hold for all batches.
        first_step: global step of the first batch; starting at any step costs the same.
        process_index: process k of P takes rows [k*B/P, (k+1)*B/P) of each batch.
        process_count: P.

    Raises:
        InputError: the source is missing or disagrees with the config.
    """
    source = sources.open_source(config, "train")
    rows = _process_rows(stage.batch_size, process_index, process_count)

    def choose(step: int) -> tuple[np.ndarray, np.ndarray]:
        positions = stage.images_seen(int(step)) + rows
        return positions, train_order(config.seed, positions, len(source))

    augmentation = augment.make_augment(
        config.data,
        magnitude=stage.strengths["randaugment"],
        image_size=stage.image_size,
    )
    num_draws = 1 + augmentation.num_draws

    def draw(encoded, orientation, whole, position):
        # Three streams of the position: crop, noise, everything else.
        crop_seed = tf.stack([tf.constant(2 * config.seed, tf.int64), position])
        odd = tf.constant(2 * config.seed + 1, tf.int64)
        noise_seed = tf.stack([odd, -1 - position])
        draws = tf.raw_ops.StatelessRandomUniform(
            shape=[num_draws], seed=tf.stack([odd, position])
        )
        image = decode.train_image(
            encoded,
            orientation,
            whole,
            crop_seed,
            (draws[0] < 0.5) & config.data.flip,
            image_size=stage.image_size,
            data=config.data,
        )
        return augmentation.apply(image, draws[1:], noise_seed)

    steps = range(first_step, stage.last_step)
    return _batches(
        config.data, source, steps, choose, draw, len(rows), stage.image_size
    )


def make_eval_data(
    config: Any,
    *,
    image_size: int,
    batch_size: int,
    split: str = "eval",
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Returns every image of a split once, in order, without augmentation.

    Args:
        config: keys `data.*`.
        image_size: side of the images, px.
        batch_size: global images; the last batch is padded with masked rows.
        split: "eval", "train" for the training images, "watch" for the images of
            `eval.split`, or "all" of a folder without train/ and val/.
        process_index, process_count: see `make_train_data`.

    Raises:
        InputError: the source is missing or disagrees with the config.
    """
    errors.check_choice("split", split, sources.SPLITS)
    source = sources.open_source(config, split)
    rows = _process_rows(batch_size, process_index, process_count)
    return _once(config.data, source, image_size, batch_size, rows)


def make_predict_data(
    preprocessing: Mapping[str, Any],
    paths: Sequence[str],
    *,
    image_size: int,
    batch_size: int,
) -> Batches:
    """Returns the images at `paths` once, in order, as an evaluation sees them.

    Labels are 0. An unreadable image has mask 0 and is not logged:
    `image_paths.unreadable_reason` explains it.

    Args:
        preprocessing: "interpolation", "eval_crop", "eval_crop_padding" and "exif", as
            in a checkpoint's metadata.
        paths: local files.
        image_size: side of the images, px.
        batch_size: images; the last batch is padded with masked rows.
    """
    data = ConfigDict({**preprocessing, "max_labels": 1, "workers": 0})
    source = image_paths.PathSource(paths)
    rows = np.arange(batch_size)
    return _once(data, source, image_size, batch_size, rows, warns=False)


def open_splits(config: Any) -> None:
    """Opens all splits that a run reads, before anything is built.

    Raises:
        InputError: a source is missing or disagrees with the config.
    """
    for split in ("train", "eval", "watch")[: 3 if config.eval.split else 2]:
        sources.open_source(config, split)


def train_order(seed: int, positions: np.ndarray, num_images: int) -> np.ndarray:
    """Returns the dataset indices of positions of the run: `[N] int64`.

    The order of an epoch is `RandomState([seed, epoch]).permutation`, a stream that
    is the same in all versions of NumPy.
    """
    epochs, offsets = np.divmod(positions, num_images)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs).tolist():
        of_epoch = epochs == epoch
        indices[of_epoch] = _permutation(seed, epoch, num_images)[offsets[of_epoch]]
    return indices


@functools.lru_cache(maxsize=3)
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    order = np.random.RandomState([seed, epoch]).permutation(num_images)
    return order.astype(np.int32)


def _process_rows(
    batch_size: int, process_index: int, process_count: int
) -> np.ndarray:
    """Returns the rows of the global batch that belong to this process."""
    if batch_size % process_count:
        raise errors.InputError(
            f"batch_size: {batch_size} is not divisible among {process_count} processes"
        )
    size = batch_size // process_count
    return process_index * size + np.arange(size)


def _once(data, source, image_size, batch_size, rows, *, warns=True) -> Batches:
    """Returns every image once, in order; `rows` of each batch are this process's."""

    def choose(step: int) -> tuple[np.ndarray, np.ndarray]:
        positions = int(step) * batch_size + rows
        return positions, np.where(positions < len(source), positions, PADDING)

    def draw(encoded, orientation, whole, position):
        del position
        return decode.eval_image(
            encoded, orientation, whole, image_size=image_size, data=data
        )

    steps = range(-(-len(source) // batch_size))
    return _batches(
        data, source, steps, choose, draw, len(rows), image_size, warns=warns
    )


def _batches(
    data: Any,
    source: sources.Source,
    steps: range,
    choose: Callable,
    draw: Callable,
    size: int,
    image_size: int,
    *,
    warns: bool = True,
) -> Batches:
    """Assembles the graph: steps, one read per step, images in parallel, batches."""
    workers = data.workers or os.cpu_count() or 1
    failures: list[Exception] = []
    read = functools.partial(_read_step, source, choose, data, failures)
    label_shape = [size, data.max_labels] if data.max_labels > 1 else [size]
    no_row = (np.int64(size), np.full((image_size, image_size, 3), GREY, np.uint8))

    @tf.autograph.experimental.do_not_convert  # plain tensor code, quicker to trace
    def load_step(step: tf.Tensor) -> tf.data.Dataset:
        labels, indices, *columns = tf.numpy_function(read, [step], READ_TYPES)
        labels = tf.ensure_shape(labels, label_shape)
        rows = tf.data.Dataset.from_tensor_slices(tuple(columns)).map(
            lambda row, *image: (row, draw(*image)),
            num_parallel_calls=workers,
            deterministic=True,
        )
        # A corrupt image is an error of its row alone. The extra row makes a batch
        # even of a step without a single good image.
        rows = rows.ignore_errors().concatenate(tf.data.Dataset.from_tensors(no_row))
        return rows.batch(size + 1).map(
            lambda row, images: _fill(row[:-1], images[:-1], labels, indices, size)
        )

    dataset = tf.data.Dataset.range(steps.start, steps.stop).interleave(
        load_step,
        cycle_length=STEPS_IN_FLIGHT,
        num_parallel_calls=STEPS_IN_FLIGHT,
        deterministic=True,
    )
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    dataset = dataset.prefetch(BATCHES_AHEAD).with_options(options)
    return Batches(dataset, source, len(steps), failures, warns)


# labels [b] or [b, L], indices [b]; then of the rows to decode: row, bytes,
# orientation, whole, position
READ_TYPES = (tf.int32, tf.int64, tf.int64, tf.string, tf.int32, tf.bool, tf.int64)


def _read_step(source, choose, data: Any, failures: list, step):
    """Reads the images of one step; runs in TensorFlow's threads."""
    try:
        positions, indices = choose(step)
        rows = np.flatnonzero(indices != PADDING)
        encoded, row_labels = source.read(indices[rows])
    except Exception as error:
        failures.append(error)
        raise
    labels = np.zeros((len(indices), data.max_labels), np.int32)
    labels[rows] = -1
    row_labels = row_labels[:, None] if row_labels.ndim == 1 else row_labels
    labels[rows, : row_labels.shape[1]] = row_labels
    labels = labels if data.max_labels > 1 else labels[:, 0]
    orientation = np.ones(len(rows), np.int32)
    if data.exif:
        orientation[:] = [decode.exif_orientation(e) for e in encoded]
    whole = np.array([not decode.can_decode_part(e) for e in encoded], bool)
    whole |= orientation != 1
    strings = np.empty(len(rows), object)
    strings[:] = encoded
    return labels, indices, rows, strings, orientation, whole, positions[rows]


def _fill(row, images, labels, indices, size: int) -> dict[str, tf.Tensor]:
    """Puts decoded images at their rows; other rows are grey, label and mask 0."""

    def scatter():
        full = tf.fill([size, *images.shape[1:]], tf.constant(GREY, tf.uint8))
        return tf.tensor_scatter_nd_update(full, row[:, None], images)

    images = tf.cond(tf.size(row) == size, lambda: images, scatter)
    mask = tf.scatter_nd(row[:, None], tf.ones_like(row, tf.float32), [size])
    kept = tf.reshape(tf.cast(mask, tf.int32), [size] + [1] * (labels.shape.rank - 1))
    return {
        "image": tf.ensure_shape(images, [size, None, None, 3]),
        "label": labels * kept,
        "mask": mask,
        "index": tf.ensure_shape(indices, [size]),
    }
