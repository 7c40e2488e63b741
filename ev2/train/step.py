"""The steps of training, evaluation and prediction: pure, global batch, no I/O."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ev2.evaluation import metrics
from ev2.models import model as models
from ev2.train import losses
from ev2.train import mixup as mix
from ev2.train import optimizer as optim
from ev2.train.state import TrainState


def make_train_step(
    model: models.Model,
    optimizer: optax.GradientTransformationExtraArgs,
    config: ConfigDict,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `train_step(state, batch, strengths) -> (state, sums)`.

    batch: "image" `[N, H, W, 3]` uint8, "label" `[N]` or `[N, L]` int32, "mask" `[N]`
      float32; see `pipeline.Batches`.
    strengths: float32 scalars "learning_rate", "dropout", "drop_path", "mixup" and
      "cutmix". They are arguments, so one program serves every strength of a size.
    sums: "loss" and "l2" (of the step), "top1", "top5" and "count", and "finite":
      whether the averages, and so all weights until now, are finite.

    Random draws are a function of (config.seed, state.step) over the global batch.
    """
    mixes = max(config.progressive.mixup + config.progressive.cutmix) > 0
    mean, std = config.data.mean, config.data.std

    def train_step(state: TrainState, batch, strengths):
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        mix_rng, model_rng = jax.random.split(rng)
        images = normalize(batch["image"], mean, std)
        mask = batch["mask"]
        targets = losses.smoothed_one_hot(
            batch["label"], model.num_classes, config.loss.label_smoothing
        )
        if mixes:
            images, targets = mix.mix(
                mix_rng,
                images,
                targets,
                mask,
                mixup=strengths["mixup"],
                cutmix=strengths["cutmix"],
                group_images=config.loss.mix_group_images,
            )

        def loss_fn(params):
            params = optim.hold_frozen(config.init, params)
            logits, batch_stats = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                dropout=strengths["dropout"],
                drop_path=strengths["drop_path"],
                rng=model_rng,
            )
            loss = losses.cross_entropy(logits, targets, mask)
            l2 = config.optimizer.weight_decay * losses.l2(params)
            return loss + l2, (logits, batch_stats, loss, l2)

        grads, aux = jax.grad(loss_fn, has_aux=True)(state.params)
        logits, batch_stats, loss, l2 = aux
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            learning_rate=strengths["learning_rate"],
        )
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema = optim.update_ema(
            config, state.ema, {"params": params, "batch_stats": batch_stats}, step
        )
        sums = metrics.accuracy_sums(logits, batch["label"], mask)
        sums["finite"] = jnp.isfinite(optax.tree.norm(ema))
        state = dataclasses.replace(
            state,
            step=step,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
        )
        return state, {"loss": loss, "l2": l2, **sums}

    return train_step


def make_eval_step(
    model: models.Model, mean: Sequence[float], std: Sequence[float]
) -> Callable[..., dict[str, Any]]:
    """Returns `eval_step(weights, batch) -> sums`.

    weights: `{name: {"params", "batch_stats"}}`, for instance "ema" and "raw".
    sums: per name the accuracy sums and, up to 1,000 classes and where no picture has
      several labels, "confusion".
    """

    def eval_step(weights, batch):
        images = normalize(batch["image"], mean, std)

        def sums_of(variables):
            logits = model.apply(variables, images, train=False)
            sums: dict[str, Any] = metrics.accuracy_sums(
                logits, batch["label"], batch["mask"]
            )
            one_label = batch["label"].ndim == 1
            if one_label and model.num_classes <= metrics.MAX_CONFUSION_CLASSES:
                sums["confusion"] = metrics.confusion_sums(
                    logits, batch["label"], batch["mask"]
                )
            return sums

        return {name: sums_of(variables) for name, variables in weights.items()}

    return eval_step


def make_predict_step(
    model: models.Model, mean: Sequence[float], std: Sequence[float], *, top: int
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns `predict_step(variables, images) -> (probabilities, classes)`.

    images: `[N, H, W, 3]` uint8.
    probabilities, classes: `[N, top]` float32 and int32, highest first; of equal ones
      the lower class is first.
    """

    def predict_step(variables, images):
        logits = model.apply(variables, normalize(images, mean, std), train=False)
        return jax.lax.top_k(jax.nn.softmax(logits), top)

    return predict_step


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Returns `(images - mean) / std` as float32; mean and std in 0..255 units."""
    shift = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, 3)
    scale = jnp.asarray(std, jnp.float32).reshape(1, 1, 1, 3)
    return (images.astype(jnp.float32) - shift) / scale
