"""ImageNet's archives in miniature, in the layout of the real ones."""

import gzip
import io
import pathlib
import tarfile

import numpy as np
import scipy.io
import tensorflow as tf
from PIL import Image

from ev2.cli import main as cli
from ev2.data import tfrecord
from tests.helpers import image_files

CLASSES = ("n01440764", "n01443537", "n02099601")
# Number of a class in the development kit, which is not its index.
KIT_NUMBERS = {"n02099601": 1, "n01440764": 2, "n01443537": 3}


def jpeg(rng: np.random.RandomState, side: int = 24) -> bytes:
    """A JPEG of random colours."""
    colours = Image.fromarray(rng.randint(0, 256, (4, 4, 3)).astype(np.uint8))
    return image_files.encode(colours.resize((side, side)), "JPEG")


def tar(members: dict[str, bytes]) -> bytes:
    """An uncompressed archive of the members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def devkit(numbers: dict[str, int], truth: list[str]) -> bytes:
    """`ILSVRC2012_devkit_t12.tar.gz`: numbers of classes; class of each image."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    parent = (len(numbers) + 1, "n00001740", "entity", len(numbers))
    rows = [(number, name, name, 0) for name, number in numbers.items()] + [parent]
    synsets = np.array([[row] for row in rows], [(field, object) for field in fields])
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": synsets})
    folder = "ILSVRC2012_devkit_t12/data"
    members = {
        f"{folder}/meta.mat": stream.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{numbers[name]}\n" for name in truth
        ).encode(),
    }
    return gzip.compress(tar(members))


def make_imagenet1k(
    folder: pathlib.Path, *, per_class: int = 10, validation: int = 8
) -> dict[str, dict[str, tuple[bytes, str]]]:
    """Writes the three archives of ILSVRC2012 into `folder`, with three classes.

    Returns:
        For "train" and "validation": file name to bytes and class of each image.
    """
    rng = np.random.RandomState(0)
    train = {
        name: {f"{name}_{i}.JPEG": jpeg(rng) for i in range(per_class)}
        for name in CLASSES
    }
    archives = {f"{name}.tar": tar(members) for name, members in train.items()}
    images = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(rng) for i in range(validation)}
    truth = [CLASSES[i] for i in rng.randint(0, len(CLASSES), validation)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(archives))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(images))
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit(KIT_NUMBERS, truth))
    return {
        "train": {f: (b, c) for c, found in train.items() for f, b in found.items()},
        "validation": dict(
            zip(images, zip(images.values(), truth, strict=True), strict=True)
        ),
    }


def make_imagenet21k(
    folder: pathlib.Path, *, per_class: int = 10
) -> dict[bytes, set[str]]:
    """Writes `winter21_whole.tar` into `folder`: three classes that share images.

    The first image is in all three classes, the second in the first two, and the
    third twice in the first.

    Returns:
        The bytes of each image, and its classes.
    """
    rng = np.random.RandomState(1)
    shared = [jpeg(rng) for _ in range(3)]
    copies = [shared + shared[2:], shared[:2], shared[:1]]
    images: dict[bytes, set[str]] = {}
    archives = {}
    for name, first in zip(CLASSES, copies, strict=True):
        contents = first + [jpeg(rng) for _ in range(per_class - len(first))]
        members = {f"{name}_{i}.JPEG": content for i, content in enumerate(contents)}
        archives[f"winter21_whole/{name}.tar"] = tar(members)
        for content in contents:
            images.setdefault(content, set()).add(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "winter21_whole.tar").write_bytes(tar(archives))
    return images


def flags_imagenet1k(folder: pathlib.Path) -> list[str]:
    """Flags of `ev2 prepare imagenet1k` for what `make_imagenet1k` wrote."""
    return [
        f"--train={folder}/ILSVRC2012_img_train.tar",
        f"--validation={folder}/ILSVRC2012_img_val.tar",
        f"--devkit={folder}/ILSVRC2012_devkit_t12.tar.gz",
    ]


def flags_imagenet21k(folder: pathlib.Path) -> list[str]:
    """Flags of `ev2 prepare imagenet21k` for what `make_imagenet21k` wrote."""
    return [f"--source={folder}/winter21_whole.tar"]


def prepare_imagenet1k(folder, out, *options: str) -> int:
    """Prepares what `make_imagenet1k` wrote, as shards of a few images.

    Returns:
        The exit code.
    """
    small = ["--minival_images=6", "--shard_mb=0.005"]
    flags = [*flags_imagenet1k(folder), *small, f"--out={out}", *options]
    return cli.main(["prepare", "imagenet1k", *flags])


def contents(folder) -> dict[str, bytes]:
    """All files but the index that reading the shards leaves."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".npz"}


def read_records(out, split: str) -> list:
    """Name, bytes, labels and WordNet ids of the split's records, in order."""
    found = []
    for path in tfrecord.find_shards(str(out), split):
        for record in tf.data.TFRecordDataset(path):
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            name, encoded = (
                feature[key].bytes_list.value[0]
                for key in ("image/filename", "image/encoded")
            )
            synsets = feature["image/class/synset"].bytes_list.value
            labels = list(feature["image/class/label"].int64_list.value)
            found.append(
                (name.decode(), encoded, labels, [s.decode() for s in synsets])
            )
    return found
