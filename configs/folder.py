"""Your own images: a folder with one folder of JPEG or PNG files per class.

    ev2 train --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine
    ev2 train --config=configs/folder.py:efficientnetv2-s ...   (another network)

DIR/CLASS/IMAGE.jpg, or DIR/train/CLASS/... beside DIR/val/CLASS/...; without
train and val a tenth of each class is held out, chosen by file name. Classes, counts
and steps follow from the folder, so 40 images work, and so do a million.

Hardware: anything; 16-bit compute is off so that a laptop's CPU is not slowed. On a
GPU or TPU add `--config.model.dtype=bfloat16` and raise `--config.batch_size`; the
learning rate follows the batch.
Time and top-1: depend on the images; not yet measured on any set.
Source: Algorithm 1; the strengths, between Table 6's weakest and its S, are ours.
"""

from ml_collections import ConfigDict

from ev2.config import default_config


def get_config(model: str = "efficientnetv2-b0") -> ConfigDict:
    """Returns the recipe for a folder of images and `model`, locked.

    Args:
        model: a name of `ev2.list_models()`; checked when the run is planned.
    """
    config = default_config()

    config.batch_size = 32
    config.epochs = 60.0

    config.model.name = model
    config.model.dtype = "float32"
    config.model.bn_momentum = 0.9  # short runs: 0.99 would lag behind the weights

    config.data.source = "folder"
    config.data.name = ""
    config.data.exif = True  # phones store sideways images
    config.data.crop_area = (0.25, 1.0)  # few images: tiny crops teach little

    config.progressive.stages = 3
    config.progressive.image_size = (128, 224)  # 128, 176, 224
    config.progressive.dropout = (0.1, 0.3)
    config.progressive.randaugment = (2.0, 10.0)
    config.progressive.drop_path = (0.1, 0.1)

    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 3.0

    config.ema.decay = 0.999  # its warm-up keeps it short in a short run

    config.eval.image_size = 256
    config.eval.batch_size = 32
    config.eval.every_epochs = 5.0

    config.checkpoint.every_steps = 200
    config.log.every_steps = 10
    return config
