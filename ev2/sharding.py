"""One mesh axis, "data": the state is replicated, batches are split by image."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh over all devices of all processes (or those given).

    A process's devices are neighbours, whatever their ids: its rows of a batch are
    then one piece, as the data have them.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state, the strengths and the metrics."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_image(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_global(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices and returns the global batch."""
    sharding = split_by_image(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in batch.items()
    }


def prefetch(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, depth: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Yields global batches that are on the devices, `depth` of them ahead of use."""
    queue = []
    for batch in batches:
        batch = {key: batch[key] for key in ("image", "label", "mask")}
        queue.append(to_global(mesh, batch))
        if len(queue) > depth:
            yield queue.pop(0)
    yield from queue


def abstract_batch(
    mesh: Mesh, image_size: int, batch_size: int, *, max_labels: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and sharding of a global batch, for compiling ahead of time."""
    sharding = split_by_image(mesh)
    shapes = {
        "image": ((batch_size, image_size, image_size, 3), np.uint8),
        "label": ((batch_size, max_labels)[: 1 + (max_labels > 1)], np.int32),
        "mask": ((batch_size,), np.float32),
    }
    return {
        key: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for key, (shape, dtype) in shapes.items()
    }


def abstract(mesh: Mesh, tree: Any) -> Any:
    """Shapes and dtypes of a replicated tree."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
