"""ImageNet1k (ILSVRC2012) from random weights: every network, two recipes.

    ev2 train --config=configs/imagenet1k.py:s --workdir=DIR
    ev2 plan  --config=configs/imagenet1k.py:m,recipe=released

Argument: MODEL[,recipe=paper|released]. Models: s m l xl b0..b3 (EfficientNetV2),
v1-b0..v1-b7 (EfficientNet), resnet50 resnet101 resnet152; `released` exists for
EfficientNetV2 only. Data: TFDS `imagenet2012`, prepared by hand as TFDS says;
`--config.data.path` is its data_dir. Or shards by `ev2 prepare imagenet1k --out=DIR`:
`--config.data.source=tfrecord --config.data.path=DIR`, and for all training images
`--config.data.train_split=train+minival`.

Hardware: 32 TPU v3 cores, by what their compiler says of S, M and L; l and xl set
`model.remat` for that, which other hardware may not need. v1-b7 has room for 16 images
a core at 600 px. `ev2 plan --tpu=v3-32` says what fits. The paper's results on them
(not ours: no network has been trained here yet), top-1 on the 50,000 validation images:

    model     top-1    hours  source
    s         83.9 %     7.1  Table 7
    m         85.1 %    13    Table 7
    l         85.7 %    24    Table 7
    xl        -          -    paper: only after ImageNet21k
    b0 b1 b3  78.7 79.8 82.1  Table 11, hours not given; b2 80.5, released README
    v1-b4     82.9 %    21    Tables 7 and 12 (20.8 h)
    v1-b5     83.7 %    43    Tables 7 and 12 (42.9 h)
    resnet50  78.1 %     4.9  Table 12, at 224 px
    v1-b1 79.0, v1-b2 79.8 (Table 11); v1-b3 81.5 in 10 h, v1-b6 84.3 in 75 h,
    v1-b7 84.7 in 139 h (Table 7); v1-b0, resnet101, resnet152 at 224 px: none

`paper` is Algorithm 1 with Table 6. `released` is what google/automl's defaults do:
sizes a quarter of the way ahead, weaker RandAugment with its arithmetic, CutMix
beside mixup, constant dropout, BN momentum 0.9 over 8 of 32 cores, and 98 % of the
training images (107,336 steps rather than 109,474). B0-B3 are trained with
AutoAugment v0 and EfficientNet's preprocessing in both. With a smaller `batch_size`
set `model.bn_group_images` and `loss.mix_group_images` to fit it.

Table 12 (progressive learning for other networks) prints no first sizes or
strengths; the pairs of V1 and ResNets below are ours. They come into play with
`--config.progressive.schedule=progressive`.
"""

import dataclasses

from ml_collections import ConfigDict

from ev2.config import default_config, parse_argument

# ImageNet's channel means and deviations, in 0..255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class NetworkRow:
    """Settings that differ between networks; a pair is (first stage, last stage)."""

    name: str
    image_size: tuple[int, int]  # px
    eval_size: int  # px
    dropout: tuple[float, float]
    randaugment: tuple[float, float]
    mixup: tuple[float, float] = (0.0, 0.0)
    cutmix: tuple[float, float] = (0.0, 0.0)
    drop_path: tuple[float, float] = (0.2, 0.2)


# Table 6; eval sizes from the released code. XL is not in Table 6: L's row, ours.
_V2_PAPER = {
    "s": NetworkRow("efficientnetv2-s", (128, 300), 384, (0.1, 0.3), (5, 15)),
    "m": NetworkRow("efficientnetv2-m", (128, 380), 480, (0.1, 0.4), (5, 20), (0, 0.2)),
    "l": NetworkRow("efficientnetv2-l", (128, 380), 480, (0.1, 0.5), (5, 25), (0, 0.4)),
    "xl": NetworkRow(
        "efficientnetv2-xl", (128, 380), 512, (0.1, 0.5), (5, 25), (0, 0.4)
    ),
}

# google/automl, effnetv2_configs.py and main.py: cutmix has mixup's alpha.
_V2_RELEASED = {
    "s": NetworkRow("efficientnetv2-s", (128, 300), 384, (0.2, 0.2), (5, 10)),
    "m": NetworkRow(
        "efficientnetv2-m", (128, 384), 480, (0.3, 0.3), (5, 15), (0, 0.2), (0, 0.2)
    ),
    "l": NetworkRow(
        "efficientnetv2-l", (128, 384), 480, (0.4, 0.4), (5, 20), (0, 0.5), (0, 0.5)
    ),
    "xl": NetworkRow(
        "efficientnetv2-xl", (128, 384), 512, (0.4, 0.4), (5, 20), (0, 0.5), (0, 0.5)
    ),
}

# Sizes and last dropout from the released code, which trains these with AutoAugment
# v0; the paper does not say with what, so both recipes do. Whoever sets data.augment to
# "randaugment" has a magnitude to choose: 10 is the best of Table 5 at 192 px.
_V2_SMALL = {
    "b0": NetworkRow("efficientnetv2-b0", (128, 192), 224, (0.2, 0.2), (0, 0)),
    "b1": NetworkRow("efficientnetv2-b1", (128, 192), 240, (0.2, 0.2), (0, 0)),
    "b2": NetworkRow("efficientnetv2-b2", (128, 208), 260, (0.3, 0.3), (0, 0)),
    "b3": NetworkRow("efficientnetv2-b3", (128, 240), 300, (0.3, 0.3), (0, 0)),
}

# Last sizes and dropout are EfficientNet's own; first values and RandAugment ours.
_V1 = {
    "v1-b0": NetworkRow("efficientnet-b0", (128, 224), 224, (0.1, 0.2), (5, 10)),
    "v1-b1": NetworkRow("efficientnet-b1", (128, 240), 240, (0.1, 0.2), (5, 10)),
    "v1-b2": NetworkRow("efficientnet-b2", (128, 260), 260, (0.1, 0.3), (5, 10)),
    "v1-b3": NetworkRow("efficientnet-b3", (128, 300), 300, (0.1, 0.3), (5, 15)),
    "v1-b4": NetworkRow("efficientnet-b4", (128, 380), 380, (0.1, 0.4), (5, 15)),
    "v1-b5": NetworkRow("efficientnet-b5", (128, 456), 456, (0.1, 0.4), (5, 15)),
    "v1-b6": NetworkRow("efficientnet-b6", (128, 528), 528, (0.1, 0.5), (5, 15)),
    "v1-b7": NetworkRow("efficientnet-b7", (128, 600), 600, (0.1, 0.5), (5, 15)),
}

# Table 12 gives 224 (and 380) px and nothing more; the strengths are ours.
_RESNETS = {
    name: NetworkRow(name, (128, 224), 224, (0.0, 0.0), (5, 10), drop_path=(0.0, 0.0))
    for name in ("resnet50", "resnet101", "resnet152")
}

ROWS = {
    "paper": _V2_PAPER | _V2_SMALL | _V1 | _RESNETS,
    "released": _V2_RELEASED | _V2_SMALL,
}


def get_config(arg: str = "s") -> ConfigDict:
    """Returns the recipe of `arg`, "MODEL[,recipe=paper|released]", locked.

    Raises:
        ValueError: the model, the recipe or an option is not known.
    """
    model, recipe = _parse(arg)
    row = ROWS[recipe][model]
    config = default_config()
    config.recipe = recipe

    config.model.name = row.name
    config.progressive.image_size = row.image_size
    config.eval.image_size = row.eval_size
    config.model.remat = model in ("l", "xl")  # 128 images a core do not fit otherwise
    for key in ("dropout", "randaugment", "mixup", "cutmix", "drop_path"):
        first, last = getattr(row, key)
        config.progressive[key] = (float(first), float(last))

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.num_train_images = 1_281_167
    config.data.num_eval_images = 50_000
    config.data.num_classes = 1000
    config.eval.every_epochs = 5.0

    if model not in _V2_PAPER:
        _use_v1_preprocessing(config)
        config.progressive.schedule = "fixed"  # Table 11: no progressive learning
    if model in _V2_SMALL:
        config.data.augment = "autoaugment"
    if recipe == "released":
        _use_released_settings(config)
    return config


def _use_v1_preprocessing(config: ConfigDict) -> None:
    """EfficientNet's preprocessing, which the released code keeps for V2-B0..B3."""
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.data.interpolation = "bicubic"
    config.data.crop_area = (0.08, 1.0)
    config.data.eval_crop = "center"


def _use_released_settings(config: ConfigDict) -> None:
    """Settings that the released code uses for every network."""
    config.progressive.schedule = "progressive"  # there B0..B3 as well
    config.progressive.size_rule = "released"
    config.model.bn_momentum = 0.9
    config.model.bn_group_images = 1024  # 8 of 32 cores, 128 images each
    config.loss.mix_group_images = 128  # partners within one core
    config.data.randaugment_variant = "released"
    # 20 of its 1,024 shards are held out. The same number here, not the same images:
    # a TFDS percentage would give 1,255,544.
    config.data.train_split = "train[:1256144]"
    config.data.num_train_images = 1_256_144


def _parse(arg: str) -> tuple[str, str]:
    """Model and recipe of "MODEL[,recipe=...]"."""
    models = tuple(ROWS["paper"])
    values = parse_argument("imagenet1k.py", arg, model=models, recipe=list(ROWS))
    model, recipe = values["model"], values["recipe"]
    if model not in ROWS[recipe]:
        raise ValueError(
            f"imagenet1k.py: there is no model {model!r} with recipe={recipe}; choose "
            f"one of {', '.join(ROWS[recipe])}"
        )
    return model, recipe
