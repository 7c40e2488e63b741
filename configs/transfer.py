"""CIFAR-10, CIFAR-100, Flowers and Cars from weights trained on ImageNet1k.

    ev2 train --config=configs/transfer.py:cifar10,s --workdir=DIR \\
      --config.init.checkpoint=RUN_OF_IMAGENET1K
    ev2 plan  --config=configs/transfer.py:flowers,l,recipe=released

Argument: DATASET,MODEL[,recipe=paper|released][,seed=NUMBER]. Datasets: cifar10
cifar100 flowers cars. Models: s m l. Data: TFDS `cifar10`, `cifar100`,
`oxford_flowers102` and `cars196`, prepared by TFDS; `--config.data.path` is their
data_dir. Or shards of `ev2 prepare flowers` or `ev2 prepare cars`:
`--config.data.source=tfrecord --config.data.path=DIR`. Flowers trains on `train` and
`validation`, 2,040 images in all. The checkpoint is a run of `configs/imagenet1k.py`,
or any weights of the same network; its EMA weights are taken, with a new classifier.

Image size: images are resized to that of the network's evaluation, 384 px (S) or
480 px (M, L), in training and in test. The paper does not say; the released code's.

Hardware: 512 images of that size a step; not yet tried on any. The paper's results
(Table 8, mean and standard deviation of five runs; not ours: nothing here has been
measured yet), top-1 on the test images in %, for seed=0 to 4 in five folders:

    model  cifar10        cifar100       flowers        cars
    s      98.7 +- 0.04   91.5 +- 0.11   97.9 +- 0.13   93.8 +- 0.11
    m      99.0 +- 0.08   92.2 +- 0.08   98.5 +- 0.08   94.6 +- 0.10
    l      99.1 +- 0.03   92.3 +- 0.13   98.8 +- 0.05   95.1 +- 0.10

`paper`: 10,000 steps of 512 images, 0.001 and cosine, no weight decay, "a simple
cutout". Where it has "mostly the same settings as ImageNet", ours are the dropout and
stochastic depth of Table 6's last stage, whole images flipped, and a cutout of half
the side, as in the released code, without RandAugment and mixing; images are
normalized as the checkpoint's were. `released` has a constant rate, weight decay 1e-5,
no dropout (1e-6), and half the warm-up on Flowers, whose images it counts as 1,020.
"""

import dataclasses

from ml_collections import ConfigDict

from ev2.config import load_recipe, parse_argument

imagenet1k = load_recipe(__file__, "imagenet1k")
imagenet1k_ft = load_recipe(__file__, "imagenet1k_ft")

MODELS = ("s", "m", "l")
RECIPES = ("paper", "released")


@dataclasses.dataclass(frozen=True)
class TransferSet:
    """A dataset as TFDS has it; counts of Table 9."""

    name: str
    train_split: str
    num_train_images: int
    num_eval_images: int
    num_classes: int


SETS = {
    "cifar10": TransferSet("cifar10", "train", 50_000, 10_000, 10),
    "cifar100": TransferSet("cifar100", "train", 50_000, 10_000, 100),
    "flowers": TransferSet("oxford_flowers102", "train+validation", 2_040, 6_149, 102),
    "cars": TransferSet("cars196", "train", 8_144, 8_041, 196),
}


def get_config(arg: str = "cifar10,s") -> ConfigDict:
    """Returns the recipe of `arg`, "DATASET,MODEL[,recipe=...][,seed=...]", locked.

    Raises:
        ValueError: the dataset, the model or an option is not known.
    """
    names = {"dataset": tuple(SETS), "model": MODELS}
    options = {"recipe": list(RECIPES), "seed": []}
    values = parse_argument("transfer.py", arg, **names, **options)
    config = imagenet1k.get_config(f"{values['model']},recipe={values['recipe']}")
    config.seed = int(values["seed"])
    imagenet1k_ft.use_trained_weights(config)

    config.epochs = 0.0
    config.steps = 10_000
    config.eval.every_epochs = 0.0  # at the end alone, as the paper

    config.data.update(dataclasses.asdict(SETS[values["dataset"]]))
    config.data.eval_split = "test"

    config.data.augment = "none"
    config.data.crop_area = (1.0, 1.0)
    config.data.cutout = 0.5
    for key in ("randaugment", "mixup", "cutmix"):
        config.progressive[key] = (0.0, 0.0)

    if values["recipe"] == "released":
        imagenet1k_ft.use_released_settings(config)
        if values["dataset"] == "flowers":
            config.optimizer.warmup_epochs = 0.5
    else:
        config.optimizer.weight_decay = 0.0
    return config
