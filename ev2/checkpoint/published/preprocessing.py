"""Preprocessing of images that published weights were trained with.

The values are kept in a checkpoint's metadata, so that evaluation and prediction use
them. mean and std are per RGB channel, in 0..255.
"""

from typing import Any

from ev2 import errors
from ev2.models import arch as architectures

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Keras's ResNets have Caffe's weights: the means alone, and BGR, which `convert` turns.
_CAFFE_MEAN = (123.68, 116.779, 103.939)
_CHOICES = {"interpolation": ("bilinear", "bicubic"), "eval_crop": ("resize", "center")}
# Lowest and highest: pixels, or levels in 0..255. A standard deviation below 1 was
# meant for images in 0..1.
_RANGES = {"image_size": (8, 4096), "mean": (0, 255), "std": (1, 255)}

# Evaluation size, interpolation, and how much larger the short side is resized than
# the central crop, px. Source: torchvision 0.29, the `transforms` of its IMAGENET1K_V1.
_TORCHVISION = {
    **{
        f"efficientnet-b{i}": (size, "bicubic", padding)
        for i, (size, padding) in enumerate(
            ((224, 32), (240, 16), (288, 0), (300, 20), (380, 4), (456, 0))
            + ((528, 0), (600, 0))
        )
    },
    "efficientnetv2-s": (384, "bilinear", 0),
    "efficientnetv2-m": (480, "bilinear", 0),
    "efficientnetv2-l": (480, "bicubic", 0),
}


def of_published(scheme: str, arch: architectures.ArchSpec) -> dict[str, Any]:
    """Returns the preprocessing of the weights published under a naming scheme.

    Args:
        scheme: a key of `tensor_names.SCHEMES`.
        arch: the network.

    Source: released code (preprocessing.py; of V1 and EfficientNet-Lite, the code of
    their own releases); the code of torchvision and Keras.
    """
    values = {
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bicubic",
        "eval_crop": "center",
        "eval_crop_padding": 32,
        "exif": False,
        "image_size": arch.eval_image_size,
    }
    if scheme in ("torch_resnet", "keras_resnet"):
        values |= {"interpolation": "bilinear"}
        if scheme == "keras_resnet":
            values |= {"mean": _CAFFE_MEAN, "std": (1.0,) * 3}
    elif scheme == "torchvision" and arch.name in _TORCHVISION:
        size, interpolation, padding = _TORCHVISION[arch.name]
        values |= {"image_size": size, "interpolation": interpolation}
        values |= {"eval_crop_padding": padding}
        if arch.name == "efficientnetv2-l":
            values |= {"mean": (127.5,) * 3, "std": (127.5,) * 3}
    elif arch.activation == "relu6" and arch.padding == "same":
        values |= {"mean": (127.0,) * 3, "std": (128.0,) * 3}
    elif arch.name.startswith("efficientnetv2-") and "-b" not in arch.name:
        values |= {"mean": (128.0,) * 3, "std": (128.0,) * 3}
        values |= {"interpolation": "bilinear", "eval_crop": "resize"}
    return values


def parse(values: dict[str, Any]) -> dict[str, Any]:
    """Returns preprocessing values from the command line as the metadata holds them.

    Args:
        values: "image_size" (px), "interpolation", "eval_crop", "mean" and "std" (lists
            of one or three numbers or strings, in 0..255); any of them.

    Raises:
        InputError: a value is not allowed.
    """
    return {key: _parse(key, value) for key, value in values.items()}


def _parse(key: str, value: Any) -> Any:
    if key in _CHOICES:
        errors.check_choice(key, value, _CHOICES[key])
        return value
    given = value if isinstance(value, list | tuple) else [value]
    low, high = _RANGES[key]
    counts = (1,) if key == "image_size" else (1, 3)
    try:
        numbers = [float(number) for number in given]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(low <= n <= high for n in numbers):
        raise errors.InputError(
            f"{key}: {','.join(map(str, given))} is not allowed; give "
            f"{' or '.join(map(str, counts))} number(s) from {low} to {high}"
        )
    return value if key == "image_size" else tuple(numbers * (3 // len(numbers)))
