"""The released code's RandAugment in NumPy, from its rules; independent of ev2.

Images are `[H, W, 3] uint8`, numbers float32 as there. A direction is -1 or 1, the
centre is that of cutout. Source: the arithmetic of google/automl,
efficientnetv2/autoaugment.py.
"""

import math

import numpy as np

FLOAT = np.float32


def apply(name, image, magnitude, direction, center) -> np.ndarray:
    """The image after operation `name`."""
    share = magnitude / 10.0
    factor = FLOAT(share * 1.8 + 0.1)
    enhance = {
        "Color": grey(image)[..., None],
        "Contrast": min(image.shape[0] * image.shape[1] // 256, 255),
        "Brightness": 0,
        "Sharpness": smooth(image),
    }
    move = {
        "Rotate": turning(image, FLOAT(direction * share * 30.0)),
        "ShearX": (1, direction * share * 0.3, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, direction * share * 0.3, 1, 0),
        "TranslateX": (1, 0, direction * share * 100.0, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, direction * share * 100.0),
    }
    if name in enhance:
        return blend(enhance[name], image, factor)
    if name in move:
        return transform(image, move[name])
    return {
        "AutoContrast": lambda: per_channel(stretch, image),
        "Equalize": lambda: per_channel(flatten, image),
        "Invert": lambda: 255 - image,
        "Posterize": lambda: posterize(image, int(share * 4)),
        "Solarize": lambda: solarize(image, int(share * 256)),
        "SolarizeAdd": lambda: solarize_add(image, int(share * 110)),
        "Cutout": lambda: cutout(image, int(share * 40), *center),
    }[name]()


def posterize(image, bits):
    # Above 8 bits it would be negative: undefined. TensorFlow ends it at 7 on CPU.
    shift = min(max(8 - bits, 0), 7)
    return (image.astype(int) >> shift) << shift


def solarize(image, threshold):
    wrapped = np.array(threshold).astype(np.uint8)  # 256 becomes 0
    return np.where(image < wrapped, image, 255 - image)


def solarize_add(image, addition):
    brighter = np.minimum(image.astype(int) + addition, 255)
    return np.where(image < 128, brighter, image)


def cutout(image, half, y, x):
    result = image.copy()
    result[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 128
    return result


def blend(start, end, factor):
    start, end = np.asarray(start, FLOAT), np.asarray(end, FLOAT)
    return np.clip(start + factor * (end - start), 0, 255).astype(np.uint8)


def grey(image):
    """As an image of 0..1 and back, by 255.5 and truncation."""
    unit = image.astype(FLOAT) / FLOAT(255)
    weights = (FLOAT(0.2989), FLOAT(0.587), FLOAT(0.114))
    return np.floor(sum(unit[..., i] * weights[i] for i in range(3)) * FLOAT(255.5))


def smooth(image):
    """Exact 13ths, truncated; the border is the image's."""
    result = image.astype(int)
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            square = image[y - 1 : y + 2, x - 1 : x + 2].astype(int)
            result[y, x] = (square.sum((0, 1)) + 4 * square[1, 1]) // 13
    return result


def per_channel(operation, image):
    return np.stack([operation(image[..., c]) for c in range(3)], -1)


def stretch(channel):
    low, high = FLOAT(channel.min()), FLOAT(channel.max())
    if high <= low:
        return channel
    scale = FLOAT(255) / (high - low)
    stretched = channel.astype(FLOAT) * scale + -low * scale
    return np.clip(stretched, 0, 255).astype(np.uint8)


def flatten(channel):
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    if step == 0:
        return channel
    table = (np.cumsum(counts) + step // 2) // step
    return np.clip(np.concatenate([[0], table[:-1]]), 0, 255)[channel]


def turning(image, degrees):
    """The transform that turns about the middle of the pixels' centres."""
    radians = degrees * FLOAT(math.pi / 180.0)
    cos, sin = np.cos(radians), np.sin(radians)
    height, width = FLOAT(image.shape[0] - 1), FLOAT(image.shape[1] - 1)
    across = (width - (cos * width - sin * height)) / FLOAT(2)
    down = (height - (sin * width + cos * height)) / FLOAT(2)
    return cos, -sin, across, sin, cos, down


def transform(image, matrix):
    """Pixel (x, y) is the nearest to (a x + b y + c, d x + e y + f), else grey 128."""
    a, b, c, d, e, f = map(FLOAT, matrix)
    height, width = image.shape[:2]
    result = np.full_like(image, 128)
    for y in range(height):
        for x in range(width):
            from_x = away_from_0(a * FLOAT(x) + b * FLOAT(y) + c)
            from_y = away_from_0(d * FLOAT(x) + e * FLOAT(y) + f)
            if 0 <= from_x < width and 0 <= from_y < height:
                result[y, x] = image[from_y, from_x]
    return result


def away_from_0(value):
    return int(math.copysign(math.floor(abs(value) + FLOAT(0.5)), value))
