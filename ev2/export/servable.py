"""The function to export, from uint8 images to logits, with its weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ev2.checkpoint import pretrained
from ev2.models import normalize
from ev2.models.model import Model, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Servable:
    """A network, its weights and its preprocessing.

    Attributes:
        model: the network, float32.
        variables: `{"params", "batch_stats"}`.
        mean, std: per channel, in 0..255.
        image_size: height and width of the images, px.
        metadata: of the checkpoint, JSON values; empty without one.
    """

    model: Model
    variables: Variables
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Returns the shape of one image, `[S, S, 3]`."""
        return (self.image_size, self.image_size, 3)

    @property
    def abstract_images(self) -> jax.ShapeDtypeStruct:
        """Returns the input of `logits`, with a batch of any size."""
        (batch,) = jax.export.symbolic_shape("batch")
        return jax.ShapeDtypeStruct((batch, *self.image_shape), jnp.uint8)

    def random_images(self, count: int) -> np.ndarray:
        """Returns `[count, S, S, 3]` uint8 images of noise, equal at every call."""
        rng = np.random.default_rng(count)
        return rng.integers(0, 256, (count, *self.image_shape), np.uint8)

    def logits(self, images: jax.Array) -> jax.Array:
        """Returns `[N, classes]` float32 of `images`, `[N, S, S, 3]` uint8 RGB."""
        return self.apply(self.variables, images)

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Returns the logits with other weights."""
        images = normalize.normalize(images, self.mean, self.std)
        return self.model.apply(variables, images, train=False)


def from_checkpoint(
    path: str, *, weights: str = "ema", image_size: int = 0
) -> Servable:
    """Returns the servable function of a checkpoint.

    Args:
        path: see `pretrained.load_pretrained`.
        weights: "ema" or "raw".
        image_size: px; 0 for the size that the network is evaluated at.

    Raises:
        InputError: `path` holds no checkpoint.
    """
    model, variables, metadata = pretrained.load_pretrained(path, weights=weights)
    preprocessing = metadata["preprocessing"]
    return Servable(
        model=model,
        variables=variables,
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        image_size=image_size or preprocessing["image_size"],
        metadata=metadata,
    )
