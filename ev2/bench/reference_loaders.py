"""Times PyTorch's image loaders, and any other loader in the same way.

Runs in a process without TensorFlow, beside which PyTorch crashes.
"""

import dataclasses
import os
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

LOADERS = ("torchvision", "timm")
BATCH = 64  # images; warming up by batches of 4,096 would take minutes
_WARM_UP_BATCHES = 2


def count_batches(images: int) -> int:
    """Returns the largest number of batches that `images_per_second` reads."""
    return -(-images // BATCH) + _WARM_UP_BATCHES


def images_per_second(batches: Iterator[int], images: int) -> float:
    """Returns the speed over `images` or more images, given the sizes of batches."""
    for _ in range(_WARM_UP_BATCHES):
        next(batches)
    start, count = time.perf_counter(), 0
    while count < images:
        count += next(batches)
    return round(count / (time.perf_counter() - start), 1)


def time_loader(
    name: str,
    paths: Sequence[str],
    *,
    image_size: int,
    magnitude: int,
    crop_area: tuple[float, float],
    images: int,
) -> dict[str, Any]:
    """Returns the figures of PyTorch's loader with the transforms of `name`.

    Random crop, flip and RandAugment of two operations on PIL images, by one worker
    process per core. The memory is the largest worker's.
    """
    from torchvision import transforms

    operations = [transforms.RandomResizedCrop(image_size, crop_area)]
    operations += [transforms.RandomHorizontalFlip(), _randaugment(name, magnitude)]
    transform = transforms.Compose([*operations, transforms.PILToTensor()])
    speed = images_per_second(_load(paths, transform, images), images)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return {"name": name, "images_per_second": speed, "peak_mib": memory}


def _randaugment(name: str, magnitude: int):
    if name == "torchvision":
        from torchvision import transforms

        return transforms.RandAugment(2, magnitude)
    from timm.data import auto_augment

    options = {"translate_const": 40, "img_mean": (128, 128, 128)}
    return auto_augment.rand_augment_transform(f"rand-m{magnitude}-n2", options)


def _load(paths: Sequence[str], transform: Any, images: int) -> Iterator[int]:
    from torch.utils import data

    files = _ImageFiles(paths, transform, BATCH * count_batches(images))
    workers = os.cpu_count() or 1
    loader = data.DataLoader(files, BATCH, num_workers=workers, prefetch_factor=4)
    for batch in loader:
        yield len(batch)


@dataclasses.dataclass
class _ImageFiles:
    """Dataset for PyTorch's loader: files in their order, repeated."""

    paths: Sequence[str]
    transform: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        from PIL import Image

        with Image.open(self.paths[index % len(self.paths)]) as image:
            return self.transform(image.convert("RGB"))
