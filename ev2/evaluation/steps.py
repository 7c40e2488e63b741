"""The evaluation step and the prediction step: pure functions of a global batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ev2.evaluation import metrics
from ev2.models import normalize
from ev2.models.model import Model

MAX_CONFUSION_CLASSES = 1000  # larger [classes, classes] tables are not counted


def make_eval_step(
    model: Model, mean: Sequence[float], std: Sequence[float]
) -> Callable[..., dict[str, Any]]:
    """Returns `eval_step(weights, batch) -> {name: sums}`.

    `weights` is `{name: {"params", "batch_stats"}}`, for instance "ema" and "raw".
    `sums` are the sums of `metrics.accuracy_sums`, and "confusion" where images have
    one label each and the network at most `MAX_CONFUSION_CLASSES` classes.
    """

    def eval_step(weights, batch):
        images = normalize.normalize(batch["image"], mean, std)
        labels, mask = batch["label"], batch["mask"]
        confuse = labels.ndim == 1 and model.num_classes <= MAX_CONFUSION_CLASSES

        def count(variables):
            logits = model.apply(variables, images, train=False)
            sums: dict[str, Any] = metrics.accuracy_sums(logits, labels, mask)
            if confuse:
                sums["confusion"] = metrics.confusion_sums(logits, labels, mask)
            return sums

        return {name: count(variables) for name, variables in weights.items()}

    return eval_step


def make_predict_step(
    model: Model, mean: Sequence[float], std: Sequence[float], *, top: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns `predict_step(variables, images) -> (probabilities, classes)`.

    `images` is `[N, H, W, 3]` uint8. The results are `[N, top]`, float32 and int32,
    most probable class first; the lower of two equally probable classes first.
    """

    def predict_step(variables, images):
        images = normalize.normalize(images, mean, std)
        logits = model.apply(variables, images, train=False)
        return jax.lax.top_k(jax.nn.softmax(logits), top)

    return predict_step
