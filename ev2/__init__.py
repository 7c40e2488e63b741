"""EfficientNetV2 with progressive learning, in JAX.

Importing this package is fast and touches no device: each function below loads what
it needs when it is called.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ev2.models.model import Model

__version__ = "0.1.0"


def list_models() -> list[str]:
    """Returns the names of the networks that `create_model` makes, sorted."""
    from ev2.models import arch

    return arch.list_models()


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    dtype: str = "float32",
    bn_momentum: float = 0.99,
    bn_group_images: int = 0,
    bn_frozen: bool = False,
    blocks: Sequence[str] = (),
    padding: str = "",
    remat: bool = False,
) -> "Model":
    """Returns a network without weights.

    `model.init(rng, image_size=224)` returns `{"params", "batch_stats"}`, and
    `model.apply(variables, images)` maps images `[N, H, W, 3]`, float and normalized,
    to logits `[N, num_classes]`, float32.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits; 0 for pooled features `[N, C]`.
        dtype: type of the computation, "float32" or "bfloat16".
        bn_momentum: fraction of the running BatchNorm statistics kept at each step, in
            [0, 1). The paper has 0.99, the released code 0.9.
        bn_group_images: consecutive images of the global batch that share BatchNorm
            statistics; 0 for all of them.
        bn_frozen: whether training normalizes by the running statistics and leaves
            them unchanged.
        blocks: block strings in place of the network's block rows.
        padding: "same" (TensorFlow) or "symmetric" (PyTorch); "" for the network's own.
        remat: whether training recomputes the inside of each block for its gradient:
            same values, less memory, more time. Not for ResNets.

    Raises:
        ev2.errors.InputError: a value is not allowed.
    """
    from ev2.models import model

    return model.create_model(
        name,
        num_classes=num_classes,
        dtype=dtype,
        bn_momentum=bn_momentum,
        bn_group_images=bn_group_images,
        bn_frozen=bn_frozen,
        blocks=blocks,
        padding=padding,
        remat=remat,
    )


def load_pretrained(
    path: str, *, weights: str = "ema"
) -> tuple["Model", dict[str, Any], dict[str, Any]]:
    """Returns `(model, variables, metadata)` of a checkpoint or of published weights.

    Args:
        path: directory of a run, a checkpoint, weights that `ev2 convert` wrote, or a
            published file, whose format and network are detected.
        weights: "ema" or "raw"; ignored where there is one set of weights.

    Returns:
        The network, computing in float32; `{"params", "batch_stats"}`, float32 NumPy
        arrays; and the metadata: model, preprocessing, class names and, for a run, its
        config.

    Raises:
        ev2.errors.InputError: `path` is not a complete, undamaged checkpoint or a
            known published file.
    """
    from ev2.checkpoint import pretrained

    return pretrained.load_pretrained(path, weights=weights)
