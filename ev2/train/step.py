"""The training step: a pure function of state, global batch and hyperparameters."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ev2.evaluation import metrics
from ev2.models import normalize
from ev2.models.model import Model
from ev2.train import losses
from ev2.train import mixup as mix
from ev2.train import optimizer as optim
from ev2.train.state import TrainState


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    config: ConfigDict,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `train_step(state, batch, hyperparameters) -> (state, sums)`.

    batch: "image" `[N, H, W, 3]` uint8, "label" `[N]` or `[N, L]` int32, "mask" `[N]`
      float32; see `pipeline.Batches`.
    hyperparameters: float32 scalars by the names of `compile.HYPERPARAMETERS`. They are
      arguments, so one program serves every strength of a size.
    sums: "loss" and "l2" (of the step), "top1", "top5" and "count", and "finite":
      whether the averages, and so all weights until now, are finite.

    Random draws are a function of (config.seed, state.step) over the global batch.
    """
    mixes = max(config.progressive.mixup + config.progressive.cutmix) > 0
    mean, std = config.data.mean, config.data.std

    def train_step(state: TrainState, batch, hyperparameters):
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        mix_rng, model_rng = jax.random.split(rng)
        images = normalize.normalize(batch["image"], mean, std)
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
                mixup=hyperparameters["mixup"],
                cutmix=hyperparameters["cutmix"],
                group_images=config.loss.mix_group_images,
            )

        def loss_fn(params):
            params = optim.hold_frozen(config.init, params)
            logits, batch_stats = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                dropout=hyperparameters["dropout"],
                drop_path=hyperparameters["drop_path"],
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
            learning_rate=hyperparameters["learning_rate"],
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
