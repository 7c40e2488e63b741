"""ImageNet21k from random weights: S, M, L and XL, two recipes.

    ev2 train --config=configs/imagenet21k.py:s --workdir=DIR --config.data.path=SHARDS
    ev2 plan  --config=configs/imagenet21k.py:xl,recipe=released

Argument: MODEL[,recipe=paper|released][,epochs=60|30]. Models: s m l xl. Data: shards
of `ev2 prepare imagenet21k`, of the edition of 21,841 classes (fall11). Its images
in several classes are one record with all labels, which share the target equally.

The paper does not count its training images. `paper` declares the released code's
12,845,721 in all, less the 100,000 that are held out; shards that hold another number
are refused with theirs, and `--config.data.num_train_images=0` counts them. The edition
winter21 has other classes: `--config.data.num_classes=0` too.

Hardware: 32 TPU v3 cores, l and xl with `model.remat` as in `configs/imagenet1k.py`
(xl was not compiled). The paper's results on them (Table 7;
not ours: nothing here has been measured yet), after `configs/imagenet1k_ft.py`, top-1
on ImageNet1k's 50,000 validation images:

    model  top-1   hours (whether with the fine-tuning, the paper does not say)
    s      84.9 %   9.0
    m      86.2 %  15
    l      86.8 %  26
    xl     87.3 %  45

`paper` is Algorithm 1 with the settings of ImageNet1k, 60 or 30 epochs (which network
had which, it does not say) and cosine. Its peak of learning rate, warm-up and label
smoothing are not in the paper: the released code's. XL is not in Table 6: L's row,
ours. `released` trains at 224 px throughout, on crops and flips alone, with 21,843
classes and 100,357 images held out of shards of its own.
"""

from ml_collections import ConfigDict

from ev2.config import load_recipe, parse_argument

imagenet1k = load_recipe(__file__, "imagenet1k")

MODELS = ("s", "m", "l", "xl")
RECIPES = ("paper", "released")
_ALL_IMAGES = 12_845_721  # released code: 12,720,275 + 25,089 + 100,357


def get_config(arg: str = "s") -> ConfigDict:
    """Returns the recipe of `arg`, "MODEL[,recipe=...][,epochs=60|30]", locked.

    Raises:
        ValueError: the model or an option is not known.
    """
    options = {"recipe": list(RECIPES), "epochs": ["60", "30"]}
    values = parse_argument("imagenet21k.py", arg, model=MODELS, **options)
    config = imagenet1k.get_config(f"{values['model']},recipe={values['recipe']}")

    config.epochs = float(values["epochs"])
    config.optimizer.schedule = "cosine"
    config.optimizer.lr = 0.008  # 0.128 at 4096; paper silent, released
    config.optimizer.warmup_epochs = 1.0  # paper silent, released
    config.loss.label_smoothing = 0.0  # paper silent, released
    config.eval.every_epochs = 1.0

    config.data.source = "tfrecord"
    config.data.name = ""
    config.data.train_split = "train"
    config.data.num_train_images = _ALL_IMAGES - 100_000
    config.data.num_eval_images = 100_000
    config.data.num_classes = 21_841
    # Ours: room for more than any image has. manifest.json says the most.
    config.data.max_labels = 32

    if values["recipe"] == "released":
        _use_released_settings(config)
    return config


def _use_released_settings(config: ConfigDict) -> None:
    """One size, no regularization to speak of, and the counts of its own shards."""
    config.progressive.schedule = "fixed"
    config.progressive.image_size = (224, 224)
    config.progressive.dropout = (1e-6, 1e-6)
    for key in ("randaugment", "mixup", "cutmix", "drop_path"):
        config.progressive[key] = (0.0, 0.0)
    config.data.augment = "none"
    config.eval.image_size = 224
    config.data.num_train_images = 12_720_275
    config.data.num_eval_images = 100_357
    config.data.num_classes = 21_843
