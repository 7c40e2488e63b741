"""Preprocessing of published weights, network by network."""

import pytest

from ev2.checkpoint.published import preprocessing
from ev2.models import arch

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF = ((127.5,) * 3, (127.5,) * 3)
RELEASED = ((128.0,) * 3, (128.0,) * 3)
LITE = ((127.0,) * 3, (128.0,) * 3)
CAFFE = ((123.68, 116.779, 103.939), (1.0,) * 3)


# Size, interpolation, and the margin around the central crop (None: whole images).
# From the released code, torchvision 0.29's `transforms` (resized minus cropped side),
# and Keras's `preprocess_input`.
@pytest.mark.parametrize(
    "scheme, name, levels, size, interpolation, padding",
    [
        ("released", "efficientnetv2-s", RELEASED, 384, "bilinear", None),
        ("keras", "efficientnetv2-l", RELEASED, 480, "bilinear", None),
        ("timm", "efficientnetv2-xl", RELEASED, 512, "bilinear", None),
        ("released", "efficientnetv2-b0", IMAGENET, 224, "bicubic", 32),
        ("keras", "efficientnet-b7", IMAGENET, 600, "bicubic", 32),
        ("efficientnet_pytorch", "efficientnet-lite0", LITE, 224, "bicubic", 32),
        ("efficientnet_pytorch", "efficientnet-lite3", LITE, 280, "bicubic", 32),
        ("torchvision", "efficientnet-b0", IMAGENET, 224, "bicubic", 32),
        ("torchvision", "efficientnet-b1", IMAGENET, 240, "bicubic", 16),
        ("torchvision", "efficientnet-b2", IMAGENET, 288, "bicubic", 0),
        ("torchvision", "efficientnet-b3", IMAGENET, 300, "bicubic", 20),
        ("torchvision", "efficientnet-b4", IMAGENET, 380, "bicubic", 4),
        ("torchvision", "efficientnet-b5", IMAGENET, 456, "bicubic", 0),
        ("torchvision", "efficientnet-b6", IMAGENET, 528, "bicubic", 0),
        ("torchvision", "efficientnet-b7", IMAGENET, 600, "bicubic", 0),
        ("torchvision", "efficientnetv2-s", IMAGENET, 384, "bilinear", 0),
        ("torchvision", "efficientnetv2-m", IMAGENET, 480, "bilinear", 0),
        ("torchvision", "efficientnetv2-l", HALF, 480, "bicubic", 0),
        ("torch_resnet", "resnet50", IMAGENET, 224, "bilinear", 32),
        ("keras_resnet", "resnet152", CAFFE, 224, "bilinear", 32),
    ],
)
def test_published(scheme, name, levels, size, interpolation, padding):
    found = preprocessing.of_published(scheme, arch.get(name))
    assert (found["mean"], found["std"]) == levels
    assert (found["image_size"], found["interpolation"]) == (size, interpolation)
    assert found["eval_crop"] == ("resize" if padding is None else "center")
    if padding is not None:
        assert found["eval_crop_padding"] == padding
    assert found["exif"] is False


def test_lite_of_symmetric_padding_is_trained_on_imagenets_levels():
    lite = arch.get("efficientnet-lite0", padding="symmetric")
    found = preprocessing.of_published("timm", lite)
    assert (found["mean"], found["std"]) == IMAGENET
