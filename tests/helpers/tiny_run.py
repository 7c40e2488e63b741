"""A run of seconds for tests: two block rows, synthetic images, two stages."""

import dataclasses

from ml_collections import ConfigDict

from ev2 import config as defaults
from ev2.checkpoint import manager, pretrained
from ev2.models.model import Model
from ev2.train import compile as programs
from ev2.train import optimizer as optim
from ev2.train import state as states

BLOCKS = ("r1_k3_s2_e1_i16_o16_c1", "r1_k3_s1_e2_i16_o16_se0.25")


def make_config(**changes) -> ConfigDict:
    """Returns the tiny recipe; `changes` are flat keys such as "data.source"."""
    config = defaults.default_config()
    config.batch_size = 16
    config.epochs = 0.0
    config.steps = 8
    config.model.update(
        {"name": "efficientnetv2-tiny", "dtype": "float32", "blocks": BLOCKS}
    )
    config.data.update(
        {
            "source": "synthetic",
            "num_train_images": 48,
            "num_eval_images": 19,
            "num_classes": 10,
        }
    )
    config.progressive.update(
        {"stages": 2, "image_size": (8, 12), "mixup": (0.0, 0.2)},
    )
    config.optimizer.warmup_epochs = 1.0
    config.eval.update({"image_size": 12, "batch_size": 8})
    config.checkpoint.every_steps = 2
    config.log.every_steps = 2
    config.update_from_flattened_dict(changes)
    return config


def create_model(config: ConfigDict, num_classes: int = 10) -> Model:
    """Returns the network that a run of `config` would train."""
    return programs.make_model(config, num_classes)


def save_checkpoint(workdir, config: ConfigDict, class_names, *, ema=None):
    """Saves a fresh network of the classes under `workdir`; returns its variables.

    `ema` maps the fresh variables to the EMA weights; None: the same.
    """
    model = create_model(config, len(class_names))
    state = states.create_state(model, optim.make_optimizer(config), config, 16)
    if ema is not None:
        state = dataclasses.replace(state, ema=ema(state.ema))
    checkpoints = manager.Checkpoints(str(workdir), keep=1)
    meta = pretrained.make_metadata(model, tuple(class_names), config=config)
    checkpoints.save(state, 1, meta)
    checkpoints.close()
    return {"params": state.params, "batch_stats": state.batch_stats}


def get_config() -> ConfigDict:
    """The tiny recipe, for `ev2 train --config=tests/helpers/tiny_run.py`."""
    return make_config()
