"""The released code's RandAugment in NumPy, from its rules; knows nothing of ev2.

Pictures are `[H, W, 3] uint8`, numbers float32 as there. A direction is -1 or 1, the
centre is that of cutout. Source: tables.md, "RandAugment layers" and "magnitudes above
10", and the arithmetic of google/automl, efficientnetv2/autoaugment.py.
"""

import math

import numpy as np

FLOAT = np.float32


def apply(name, picture, magnitude, direction, center) -> np.ndarray:
    """The picture after operation `name`."""
    share = magnitude / 10.0
    factor = FLOAT(share * 1.8 + 0.1)
    enhance = {
        "Color": grey(picture)[..., None],
        "Contrast": min(picture.shape[0] * picture.shape[1] // 256, 255),
        "Brightness": 0,
        "Sharpness": smooth(picture),
    }
    move = {
        "Rotate": turning(picture, FLOAT(direction * share * 30.0)),
        "ShearX": (1, direction * share * 0.3, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, direction * share * 0.3, 1, 0),
        "TranslateX": (1, 0, direction * share * 100.0, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, direction * share * 100.0),
    }
    if name in enhance:
        return blend(enhance[name], picture, factor)
    if name in move:
        return transform(picture, move[name])
    return {
        "AutoContrast": lambda: per_channel(stretch, picture),
        "Equalize": lambda: per_channel(flatten, picture),
        "Invert": lambda: 255 - picture,
        "Posterize": lambda: posterize(picture, int(share * 4)),
        "Solarize": lambda: solarize(picture, int(share * 256)),
        "SolarizeAdd": lambda: solarize_add(picture, int(share * 110)),
        "Cutout": lambda: cutout(picture, int(share * 40), *center),
    }[name]()


def posterize(picture, bits):
    # Above 8 bits it would be negative: undefined. TensorFlow ends it at 7 on CPU.
    shift = min(max(8 - bits, 0), 7)
    return (picture.astype(int) >> shift) << shift


def solarize(picture, threshold):
    wrapped = np.array(threshold).astype(np.uint8)  # 256 becomes 0
    return np.where(picture < wrapped, picture, 255 - picture)


def solarize_add(picture, addition):
    brighter = np.minimum(picture.astype(int) + addition, 255)
    return np.where(picture < 128, brighter, picture)


def cutout(picture, half, y, x):
    result = picture.copy()
    result[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 128
    return result


def blend(start, end, factor):
    start, end = np.asarray(start, FLOAT), np.asarray(end, FLOAT)
    return np.clip(start + factor * (end - start), 0, 255).astype(np.uint8)


def grey(picture):
    """As an image of 0..1 and back, by 255.5 and truncation."""
    unit = picture.astype(FLOAT) / FLOAT(255)
    weights = (FLOAT(0.2989), FLOAT(0.587), FLOAT(0.114))
    return np.floor(sum(unit[..., i] * weights[i] for i in range(3)) * FLOAT(255.5))


def smooth(picture):
    """Exact 13ths, truncated; the border is the picture's."""
    result = picture.astype(int)
    for y in range(1, picture.shape[0] - 1):
        for x in range(1, picture.shape[1] - 1):
            square = picture[y - 1 : y + 2, x - 1 : x + 2].astype(int)
            result[y, x] = (square.sum((0, 1)) + 4 * square[1, 1]) // 13
    return result


def per_channel(operation, picture):
    return np.stack([operation(picture[..., c]) for c in range(3)], -1)


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


def turning(picture, degrees):
    """The transform that turns about the middle of the pixels' centres."""
    radians = degrees * FLOAT(math.pi / 180.0)
    cos, sin = np.cos(radians), np.sin(radians)
    height, width = FLOAT(picture.shape[0] - 1), FLOAT(picture.shape[1] - 1)
    across = (width - (cos * width - sin * height)) / FLOAT(2)
    down = (height - (sin * width + cos * height)) / FLOAT(2)
    return cos, -sin, across, sin, cos, down


def transform(picture, matrix):
    """Pixel (x, y) is the nearest to (a x + b y + c, d x + e y + f), else grey 128."""
    a, b, c, d, e, f = map(FLOAT, matrix)
    height, width = picture.shape[:2]
    result = np.full_like(picture, 128)
    for y in range(height):
        for x in range(width):
            from_x = away_from_0(a * FLOAT(x) + b * FLOAT(y) + c)
            from_y = away_from_0(d * FLOAT(x) + e * FLOAT(y) + f)
            if 0 <= from_x < width and 0 <= from_y < height:
                result[y, x] = picture[from_y, from_x]
    return result


def away_from_0(value):
    return int(math.copysign(math.floor(abs(value) + FLOAT(0.5)), value))
