"""Pictures: decode, turn upright, crop, resize; encoded bytes to `[S, S, 3] uint8`.

All functions on tensors work on one picture and are the same eager and in a graph.
Random choices arrive as a seed, so a picture is a function of its arguments.
"""

import functools
from typing import Any

from ev2 import errors
from ev2.data.tensorflow import tf

INTERPOLATIONS = ("bilinear", "bicubic")
EVAL_CROPS = ("resize", "center")
CROP_ATTEMPTS = 100  # draws of a box before the whole picture is taken

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_APP1, JPEG_SCAN = 0xE1, 0xDA
EXIF_HEADER = b"Exif\0\0"
ORIENTATION_TAG = 0x0112


def check(config: Any) -> None:
    """Raises InputError for a value of `config.data` that no picture can satisfy."""
    data = config.data
    errors.check_choice("data.interpolation", data.interpolation, INTERPOLATIONS)
    errors.check_choice("data.eval_crop", data.eval_crop, EVAL_CROPS)
    for key, limit in (("crop_area", 1.0), ("crop_aspect", float("inf"))):
        pair = tuple(data[key])
        numbers = all(isinstance(value, int | float) for value in pair)
        if len(pair) != 2 or not numbers or not 0.0 < pair[0] <= pair[1] <= limit:
            raise errors.InputError(
                f"data.{key}: {pair}; allowed is (low, high) with"
                f" 0 < low <= high <= {limit}"
            )


def exif_orientation(encoded: bytes) -> int:
    """Orientation of a JPEG from its EXIF block, 1..8; 1 (upright) if it has none.

    Source: EXIF 2.3, section 4.6 (TIFF header, IFD, tag 0x0112).
    Differs: only the JPEG container is searched, not PNG's eXIf chunk.
    """
    place = 2
    while encoded[place : place + 1] == b"\xff" and len(encoded) > place + 4:
        marker = encoded[place + 1]
        length = int.from_bytes(encoded[place + 2 : place + 4], "big")
        if marker == JPEG_SCAN:
            break
        body = place + 4
        if marker == JPEG_APP1 and encoded.startswith(EXIF_HEADER, body):
            return _tiff_orientation(encoded[body + 6 : place + 2 + length])
        place += 2 + length
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    if tiff[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, size: int) -> int:
        order = "little" if tiff.startswith(b"II") else "big"
        return int.from_bytes(tiff[at : at + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def can_decode_part(encoded: bytes) -> bool:
    """True for a JPEG of which a part can be decoded without the rest.

    The file must end with the end marker, so that a truncated one fails whatever its
    crop; one with other bytes behind it is decoded whole.
    """
    ends = encoded.rstrip(b"\0").endswith(JPEG_END)
    return ends and encoded.startswith(JPEG_START)


def decode(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The whole picture, upright: `[H, W, 3] uint8` RGB.

    JPEG (also grey and CMYK), PNG (also 16-bit, palette and with alpha, which is
    dropped), BMP, WebP, and the first frame of a GIF. Anything else, or a file that
    is cut, is an InvalidArgumentError.

    Args:
        encoded: scalar string.
        orientation: scalar int32, EXIF orientation 1..8.
    """
    picture = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    picture = tf.ensure_shape(picture, [None, None, 3])
    return tf.cond(
        orientation == 1, lambda: picture, lambda: _upright(picture, orientation)
    )


def _upright(picture: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation: 5..8 swap the axes, then rows or columns reverse."""
    sideways = orientation >= 5
    picture = tf.cond(
        sideways, lambda: tf.transpose(picture, [1, 0, 2]), lambda: picture
    )
    columns = tf.constant([o in (2, 3, 6, 7) for o in range(9)])[orientation]
    rows = tf.constant([o in (3, 4, 7, 8) for o in range(9)])[orientation]
    return tf.raw_ops.Reverse(tensor=picture, dims=tf.stack([rows, columns, False]))


def decode_part(encoded, orientation, whole, choose_box) -> tf.Tensor:
    """The box of the picture that `choose_box(shape [3] int32)` names.

    Args:
        encoded: scalar string.
        orientation: scalar int32, EXIF orientation 1..8.
        whole: scalar bool; False if `can_decode_part` and the picture is upright, so
            that only the rows and columns of the box need be decoded.
        choose_box: returns (y, x, height, width) scalars int32 inside the picture.

    A box decoded alone may differ from the same box of the whole by a few levels in
    its outermost columns, where halved chroma is interpolated without its neighbour.
    """

    def crop_of_jpeg():
        box = tf.stack(choose_box(tf.image.extract_jpeg_shape(encoded)))
        return tf.image.decode_and_crop_jpeg(encoded, box, channels=3)

    def crop_of_whole():
        picture = decode(encoded, orientation)
        y, x, height, width = choose_box(tf.shape(picture))
        return picture[y : y + height, x : x + width]

    return tf.cond(whole, crop_of_whole, crop_of_jpeg)


def random_box(shape, *, seed, area, aspect) -> list[tf.Tensor]:
    """A box of random area, aspect and place: (y, x, height, width) scalars int32.

    Args:
        shape: `[3] int32` of the picture.
        seed: `[2] int64`.
        area: range of the box's share of the picture's area.
        aspect: range of width / height.

    Source: tables.md, input pipeline (area 5 % to 100 %, TensorFlow's aspects).
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=aspect,
        area_range=area,
        max_attempts=CROP_ATTEMPTS,
        use_image_if_no_bounding_boxes=True,
    )
    return [*tf.unstack(begin)[:2], *tf.unstack(size)[:2]]


def center_box(shape: tf.Tensor, *, image_size: int, padding: int) -> list[tf.Tensor]:
    """The central square of size / (size + padding) of the short side.

    Args:
        shape: `[3] int32` of the picture.
        image_size: side that the square will be resized to, px.
        padding: px around it at that size, 0 or more; 0 takes the whole short side.

    Source: tables.md, input pipeline, evaluation below 320 px, with a padding of 32.
    """
    height, width = shape[0], shape[1]
    short = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.cast(short * (image_size / (image_size + padding)), tf.int32)
    side = tf.maximum(side, 1)
    return [(height - side + 1) // 2, (width - side + 1) // 2, side, side]


def resize(picture: tf.Tensor, image_size: int, interpolation: str) -> tf.Tensor:
    """Resizes to a square, aspect not kept: `[S, S, 3] uint8`, rounded and clipped.

    Pixel centres at half integers, no smoothing before shrinking, as the released
    code resizes.
    """
    resize_op = {
        "bilinear": tf.raw_ops.ResizeBilinear,
        "bicubic": tf.raw_ops.ResizeBicubic,
    }[interpolation]
    pixels = resize_op(
        images=picture[tf.newaxis],
        size=[image_size, image_size],
        half_pixel_centers=True,
    )[0]
    pixels = tf.ensure_shape(pixels, [image_size, image_size, 3])
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def train_picture(encoded, orientation, whole, seed, mirrored, *, image_size, data):
    """A random crop, resized and perhaps mirrored: `[S, S, 3] uint8`.

    Args:
        encoded, orientation, whole: as `decode_part`.
        seed: `[2] int64`, of the crop.
        mirrored: scalar bool.
        image_size: side of the result, px.
        data: `config.data`, for `crop_area`, `crop_aspect` and `interpolation`.
    """
    choose_box = functools.partial(
        random_box, seed=seed, area=data.crop_area, aspect=data.crop_aspect
    )
    part = decode_part(encoded, orientation, whole, choose_box)
    picture = resize(part, image_size, data.interpolation)
    return tf.raw_ops.Reverse(tensor=picture, dims=tf.stack([False, mirrored, False]))


def eval_picture(encoded, orientation, whole, *, image_size, data):
    """The whole picture or its centre, resized: `[S, S, 3] uint8`."""
    if data.eval_crop == "center":
        choose_box = functools.partial(
            center_box, image_size=image_size, padding=data.eval_crop_padding
        )
        picture = decode_part(encoded, orientation, whole, choose_box)
    else:
        picture = decode(encoded, orientation)
    return resize(picture, image_size, data.interpolation)
