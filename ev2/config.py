"""Every key of a run, with its unit and meaning; the values are the paper's S recipe.

A recipe is a file with `get_config()`, which takes the ConfigDict below and assigns to
keys that exist; it is locked, so a misspelt key fails. Every key can be set on the
command line: `--config.optimizer.lr=0.01`,
`--config.progressive.image_size='(128, 224)'`.

Images are counted over all devices ("global"), image sizes are the side of a
square in pixels, and a pair is (first stage, last stage). Where the paper is
silent the value is the released code's; the comments say which.
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from types import ModuleType

from ml_collections import ConfigDict

from ev2 import progressive


def default_config() -> ConfigDict:
    """Returns the locked defaults: EfficientNetV2-S on ImageNet1k, the paper's way."""
    config = ConfigDict()

    config.seed = 0  # weights, data order, augmentation, random schedule
    # "paper" | "released": a label for the record. What the two do differently is
    # set in the values below by the recipe, never decided by this word.
    config.recipe = "paper"

    # Global images per step. The paper's 4096 fits 32 TPU v3 cores.
    config.batch_size = 4096
    # Length of the run: exactly one of the two is above 0. An epoch is
    # `data.num_train_images` images; a step is `batch_size` images.
    config.epochs = 350.0
    config.steps = 0

    config.model = _model()
    config.data = _data()
    config.progressive = _progressive()
    config.loss = _loss()
    config.optimizer = _optimizer()

    config.ema = ConfigDict()
    config.ema.decay = 0.9999  # per step, of weights and BN statistics; 0 = off
    # True: update n uses min(decay, (1 + n) / (10 + n)), as the released code.
    config.ema.warmup = True

    config.eval = ConfigDict()
    config.eval.image_size = 384  # px; larger than the last training size
    config.eval.batch_size = 1024  # global images; changes the speed, not the result
    # Epochs between evaluations; 0 = at the end of each stage only.
    config.eval.every_epochs = 0.0
    # Split to evaluate on while training, such as "minival", of "tfds" and "tfrecord"
    # data; "" = `data.eval_split`, on which the final evaluation always is.
    config.eval.split = ""
    # Metric of the best checkpoint: "ema.top1" | "ema.top5" | "raw.top1" | "raw.top5".
    config.eval.metric = "ema.top1"
    # Early stopping: evaluations without improvement that end the run. The result is
    # then the best checkpoint rather than the last. 0 = off.
    config.eval.patience = 0

    config.init = _init()

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000  # steps between saves; 0 = stage ends only
    config.checkpoint.keep = 2  # newest checkpoints kept, beside the best
    config.checkpoint.keep_best = 1  # best ones kept, by eval.metric

    config.log = ConfigDict()
    config.log.every_steps = 100  # steps between lines of metrics.jsonl

    # Seconds without a finished step, compiling and evaluating excepted, after which
    # the process prints its stacks and ends; 0 = never.
    config.stall_seconds = 1800.0

    return config.lock()


def _model() -> ConfigDict:
    model = ConfigDict()
    model.name = "efficientnetv2-s"  # one of ev2.list_models()
    # Compute type "bfloat16" | "float32"; weights, statistics, logits and loss are
    # float32 either way.
    model.dtype = "bfloat16"
    # Fraction of the running BN statistics kept per step: 0.99 in the paper, 0.9 in
    # the released code. Epsilon is 1e-3 in both.
    model.bn_momentum = 0.99
    # Images over which BN takes its mean and variance; 0 = the whole global batch.
    # Counted in images, so the result does not depend on the number of devices.
    model.bn_group_images = 0
    # Block strings such as "r2_k3_s2_e4_i24_o48_c1" in place of the stages of `name`;
    # () = its own.
    model.blocks = ()
    # "same" (TensorFlow's) | "symmetric" (PyTorch's) | "" = the network's own. Weights
    # work with the padding they were trained with.
    model.padding = ""
    # Compute the inside of each block anew for its gradient instead of keeping it:
    # same values, less memory, more time. For batches that do not fit otherwise.
    model.remat = False
    return model


def _init() -> ConfigDict:
    init = ConfigDict()
    # Weights to start from: a run, weights that `ev2 convert` wrote, or a published
    # file. "" = random weights; "required" = the command line must give one. The
    # optimizer, step and schedule start fresh, and so does a classifier of other
    # classes.
    init.checkpoint = ""
    init.weights = "ema"  # "ema" (the running averages) | "raw", where there are both
    # "" (all learn) | "backbone" (the classifier alone learns): what is frozen takes no
    # update and no weight decay, and its BN statistics stay.
    init.freeze = ""
    # True: BN normalizes by the checkpoint's statistics in training too, and they stay.
    init.freeze_bn = False
    # Learning rate of the last stage as a fraction of the head's and classifier's, and
    # of every stage as a fraction of the next one's, down to the stem; 1 = one rate.
    init.layer_decay = 1.0
    return init


def _data() -> ConfigDict:
    data = ConfigDict()
    # "embedded" (the small set inside the package) | "tfds" | "folder" (one folder
    # per class) | "csv" (columns path and label) | "tar" (uncompressed, of class
    # folders) | "tfrecord" (ImageNet's layout) | "synthetic".
    data.source = "tfds"
    data.name = "imagenet2012"  # TFDS name, with ":version" if wanted
    data.path = ""  # folder or file of the data; "" = TFDS's own default
    # Split to train on: TFDS slicing allowed; "train+minival" joins two, of shards too.
    data.train_split = "train"
    data.eval_split = "validation"  # split to evaluate on
    # Counts; 0 = taken from the source. A declared count lets `ev2 plan` work
    # without the data, and a source that disagrees with it is refused.
    data.num_train_images = 0
    data.num_eval_images = 0
    data.num_classes = 0
    # Most labels of one image. Above 1, as in ImageNet21k, its labels
    # share the target equally, and a prediction is right if it is one of them.
    data.max_labels = 1

    # Per RGB channel, in 0..255: the network sees (pixel - mean) / std. () = those of
    # init.checkpoint.
    data.mean = (128.0, 128.0, 128.0)
    data.std = (128.0, 128.0, 128.0)
    # "bilinear" | "bicubic" | "" = init.checkpoint's; for every resize.
    data.interpolation = "bilinear"

    # Training crop: fraction of the image's area, then width / height; (low, high).
    data.crop_area = (0.05, 1.0)
    data.crop_aspect = (3 / 4, 4 / 3)
    data.flip = True  # mirror left and right with probability 1/2
    # "randaugment" (its magnitude is progressive.randaugment) | "autoaugment" (the
    # released code's policy v0, of fixed magnitudes) | "none".
    data.augment = "randaugment"
    # What a magnitude means, also to AutoAugment. "standard": clamped, sizes relative
    # to the image; "released": the released code's arithmetic, wrap-around included.
    data.randaugment_variant = "standard"
    data.randaugment_layers = 2  # operations per image; 0 = no RandAugment
    # Side of a square of noise put over each image, last of all, as a fraction of the
    # image's; 0 = off. The released code fine-tunes with 0.5.
    data.cutout = 0.0
    # "resize": the whole image to a square, aspect not kept; "center": the central
    # size / (size + eval_crop_padding) of the short side, then resize.
    data.eval_crop = "resize"
    data.eval_crop_padding = 32  # px, for "center" alone; 0 = the whole short side

    data.exif = False  # turn the image by its EXIF orientation
    # Folder without train/ and val/: fraction of each class held out for evaluation,
    # chosen by a hash of the file name.
    data.eval_fraction = 0.1
    data.workers = 0  # parallel decode calls per process; 0 = number of cores
    return data


def _progressive() -> ConfigDict:
    """Table 6, column S."""
    progressive = ConfigDict()
    # "progressive" (Algorithm 1) | "random" (a size drawn anew every
    # `random_epochs`, Table 13) | "fixed" (one stage at the last values).
    progressive.schedule = "progressive"
    progressive.stages = 4  # stages of equal length
    # False: the size moves, the strengths stay at their last value.
    progressive.adaptive = True
    progressive.image_size = (128, 300)  # px
    progressive.update(_strengths())
    # Size of stage i of M: "paper" first + (last - first) * i / (M - 1), nearest
    # pixel, half up; "released" int(first + (last - first) * (i + 1) / M).
    progressive.size_rule = "paper"
    # Global batch of each stage in place of `batch_size`, e.g. (8192, 6144, 4096,
    # 4096); () = the same for all. Each stage then sees the same number of images,
    # and the learning rate follows the batch.
    progressive.batch_size = ()
    # Compile the next stage's step and open its data while a stage runs; at the change
    # nothing then waits. Two programs and two pipelines need memory at the same time.
    progressive.prepare_ahead = True
    progressive.random_epochs = 8.0  # epochs between draws of schedule "random"
    return progressive


def _strengths() -> dict[str, tuple[float, float]]:
    """Pairs (first stage, last stage); `progressive.STRENGTHS` has their meanings."""
    return {strength.name: strength.default for strength in progressive.STRENGTHS}


def _loss() -> ConfigDict:
    loss = ConfigDict()
    # Fraction of the target spread evenly over all classes. Paper silent; released.
    loss.label_smoothing = 0.1
    # Mixup and cutmix partners are taken within consecutive groups of this many
    # images of the global batch, so the device count changes nothing.
    loss.mix_group_images = 16
    return loss


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.name = "rmsprop"  # RMSProp as TensorFlow 1 defines it
    optimizer.lr = 0.016  # peak learning rate per 256 images: 0.256 at 4096
    # After warm-up: "exponential" (staircase) | "cosine" (to 0 at the end) |
    # "constant".
    optimizer.schedule = "exponential"
    optimizer.warmup_epochs = 5.0  # linear from 0; the length is the released code's
    optimizer.decay_rate = 0.97  # of "exponential": factor per `decay_epochs`
    optimizer.decay_epochs = 2.4  # counted from step 0, not from the end of warm-up
    optimizer.decay = 0.9  # fraction of the mean square kept per step
    optimizer.momentum = 0.9  # fraction of the last update kept per step
    optimizer.epsilon = 1e-3  # added inside the root; the released code's
    # L2 in the loss, weight_decay * sum(w^2) / 2 over kernels; no bias, no BN.
    optimizer.weight_decay = 1e-5
    optimizer.clip_norm = 0.0  # largest global gradient norm; 0 = no clipping
    return optimizer


def load_recipe(beside: str, name: str) -> ModuleType:
    """Returns the recipe `name` from the folder of the file `beside`, as a module.

    One recipe takes another's rows or settings this way, from any working directory.
    """
    path = pathlib.Path(beside).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"ev2_recipe_{name}", path)
    assert spec is not None and spec.loader is not None, path
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def parse_argument(
    file: str, argument: str, **choices: Sequence[str]
) -> dict[str, str]:
    """Returns the values of a recipe's argument, "NAME,NAME,key=value".

    Args:
        file: name of the recipe, for errors.
        argument: names in the order of `choices`, and `key=value` in any order.
        **choices: allowed values by key. A tuple is a name, which must be given; a
            list is an option, whose first value is the default; [] is an option of any
            whole number, by default 0.

    Raises:
        ValueError: a name is missing, or a word is not allowed.
    """
    names = [key for key, allowed in choices.items() if isinstance(allowed, tuple)]
    options = {k: allowed for k, allowed in choices.items() if k not in names}
    values = {key: allowed[0] if allowed else "0" for key, allowed in options.items()}
    words = argument.split(",")
    given = [word for word in words if "=" not in word]
    for i, name in enumerate(names):
        value = given[i] if i < len(given) else ""
        if value not in choices[name]:
            raise ValueError(
                f"{file}: there is no {name} {value!r}; choose one of "
                f"{', '.join(choices[name])}"
            )
        values[name] = value
    for word in [*given[len(names) :], *(w for w in words if "=" in w)]:
        key, _, value = word.partition("=")
        allowed = options.get(key)
        if allowed is None or not (value in allowed if allowed else value.isdigit()):
            known = [
                f"{key}={choice}"
                for key, allowed in options.items()
                for choice in allowed or ("NUMBER",)
            ]
            raise ValueError(
                f"{file}: {word!r} is not known; choose one of {', '.join(known)}"
            )
        values[key] = value
    return values
