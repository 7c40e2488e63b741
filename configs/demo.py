"""The whole road in minutes: a tiny EfficientNetV2 on the embedded Fashion-MNIST.

    ev2 train --config=configs/demo.py --workdir=runs/demo      (or: make demo)

Hardware: 2 CPU cores. Time: not yet measured.
Top-1 on the 2,000 test images, EMA weights: not yet measured.
Source: none; the schedule is the paper's Algorithm 1 at toy size.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """Returns the demo's recipe, locked."""
    config = defaults.get_config()

    config.batch_size = 128
    config.epochs = 12.0  # 1,125 steps

    config.model.name = "efficientnetv2-tiny"
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.bn_momentum = 0.9  # about 1,000 steps: 0.99 would lag behind

    config.data.source = "embedded"
    config.data.name = "fashion_mnist"
    config.data.crop_area = (0.5, 1.0)  # 28 px leave little to crop

    config.progressive.image_size = (16, 28)  # 16, 20, 24, 28; the originals are 28
    config.progressive.dropout = (0.0, 0.2)
    config.progressive.randaugment = (1.0, 4.0)
    config.progressive.drop_path = (0.0, 0.1)

    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0

    config.ema.decay = 0.995  # averages the last 200 steps, 2 epochs

    config.eval.image_size = 28
    config.eval.batch_size = 512

    config.checkpoint.every_steps = 200
    config.log.every_steps = 25
    return config
