"""Makes small images for tests of ev2.data, and the config of their source."""

import io

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from ev2.config import default_config


def make_config(**values) -> ConfigDict:
    """Returns the defaults with `values` of `data.*` keys."""
    config = default_config()
    config.data.update(values)
    return config


def encode(image, kind: str, **options) -> bytes:
    """An image (of Pillow, or an array) as the bytes of a file of `kind`."""
    stream = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(value: int) -> bytes:
    """A PNG of 4 x 4 px whose red is `value`."""
    return encode(Image.new("RGB", (4, 4), (value, 0, 0)), "PNG")


def record(encoded: bytes, *labels: int) -> bytes:
    """A record in ImageNet's layout, of labels counted from 1."""
    example = tf.train.Example()
    feature = example.features.feature
    feature["image/encoded"].bytes_list.value.append(encoded)
    feature["image/class/label"].int64_list.value.extend(labels)
    return example.SerializeToString()


def write_pngs(root, names) -> None:
    """Writes images 0, 1, 2... as the files `names` below `root`."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))


def red(encoded: bytes) -> int:
    """The red of the first pixel, which tells images of `png` apart."""
    return Image.open(io.BytesIO(encoded)).getpixel((0, 0))[0]


def ramps(side: int) -> np.ndarray:
    """Colours `[side, side, 3]` uint8 with noise, which every operation changes."""
    rng = np.random.RandomState(0)
    ramp = np.linspace(30, 200, side)
    channels = [ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], ramp[:, None] / 2]
    smooth = np.stack(np.broadcast_arrays(*channels), -1)
    return np.clip(smooth + rng.randint(-20, 20, smooth.shape), 0, 255).astype(np.uint8)


def difference(actual, expected) -> int:
    """The largest difference of two images, in grey levels."""
    return int(np.abs(np.asarray(actual, int) - np.asarray(expected, int)).max())


def one_line(raised) -> str:
    """The message of what `pytest.raises` caught, which must be one line."""
    text = str(raised.value)
    assert "\n" not in text
    return text
