"""Your own images, from trained weights: a few hundred images are enough.

    ev2 train --config=configs/finetune.py --config.data.path=DIR --workdir=runs/mine \\
      --config.init.checkpoint=runs/lite0
    ev2 train --config=configs/finetune.py:efficientnetv2-s ...   (another network)

DIR as for `configs/folder.py`. The checkpoint is a run, weights that `ev2 convert`
wrote, or a published file, of the network named; its images' normalization and
interpolation are taken over.

Hardware: anything. The classifier alone learns, which two CPU cores do in three minutes
and a few hundred images allow (docs/your-own-images.md). With a GPU or TPU, or with
thousands of images, let all learn, at the network's own size:
`--config.init.freeze= --config.init.layer_decay=0.8 --config.optimizer.lr=0.002
--config.epochs=10 --config.model.dtype=bfloat16`, and `progressive.image_size` and
`eval.image_size`. Ten times that rate forgets what was learnt.
Source: none; all values are ours.
"""

from ml_collections import ConfigDict

from ev2.config import load_recipe

folder = load_recipe(__file__, "folder")


def get_config(model: str = "efficientnet-lite0") -> ConfigDict:
    """Returns the recipe for a folder of images and trained weights, locked.

    Args:
        model: a name of `ev2.list_models()`; checked when the run is planned.
    """
    config = folder.get_config(model)
    config.init.checkpoint = "required"
    config.init.freeze = "backbone"
    # A batch of few images tells less of their statistics than the checkpoint does.
    config.init.freeze_bn = True
    config.data.mean = config.data.std = ()
    config.data.interpolation = ""

    config.epochs = 6.0
    config.progressive.schedule = "fixed"  # a change of size costs a compilation
    config.progressive.image_size = (128, 128)
    config.progressive.dropout = (0.2, 0.2)
    config.progressive.randaugment = (5.0, 5.0)
    config.data.randaugment_layers = 1
    config.progressive.drop_path = (0.0, 0.0)

    config.optimizer.lr = 0.01  # per 256 images
    config.optimizer.warmup_epochs = 1.0
    config.ema.decay = 0.99

    config.eval.image_size = 128
    config.eval.every_epochs = 0.0
    return config
