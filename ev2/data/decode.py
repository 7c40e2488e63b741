"""Decodes, turns upright, crops and resizes images: encoded bytes to `[S, S, 3] uint8`.

All functions on tensors take one image and give the same result eagerly and in a
graph. Random choices arrive as a seed, so an image is a function of its arguments.
"""

import functools
import io

from PIL import ExifTags, Image

from ev2.data.tensorflow import tf

INTERPOLATIONS = {
    "bilinear": tf.raw_ops.ResizeBilinear,
    "bicubic": tf.raw_ops.ResizeBicubic,
}
CROP_ATTEMPTS = 100  # draws of a box before the whole image is taken
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


def exif_orientation(encoded: bytes) -> int:
    """Returns the EXIF orientation of an encoded image, 1..8; 1 (upright) without."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            # The method of PNG images would decode all pixels to look behind them.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # the file is damaged, as decoding will report
        return 1
    return orientation if orientation in range(1, 9) else 1


def can_decode_part(encoded: bytes) -> bool:
    """Returns True for a JPEG of which a part can be decoded without the rest.

    The file must end with the end marker, so that a truncated file fails for any
    crop; a file with other bytes behind the marker is decoded whole.
    """
    ends = encoded.rstrip(b"\0").endswith(JPEG_END)
    return ends and encoded.startswith(JPEG_START)


def decode(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns the whole image, upright: `[H, W, 3] uint8` RGB.

    Decodes JPEG (also grey and CMYK), PNG (also 16-bit, palette and with alpha, which
    is dropped), BMP, WebP, and the first frame of a GIF.

    Args:
        encoded: scalar string.
        orientation: scalar int32, EXIF orientation 1..8.

    Raises:
        InvalidArgumentError: another format, or a truncated file.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, 3])
    return tf.cond(
        orientation == 1, lambda: image, lambda: _upright(image, orientation)
    )


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation: 5..8 swap the axes, then rows or columns reverse."""
    sideways = orientation >= 5
    image = tf.cond(sideways, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    columns = tf.constant([o in (2, 3, 6, 7) for o in range(9)])[orientation]
    rows = tf.constant([o in (3, 4, 7, 8) for o in range(9)])[orientation]
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([rows, columns, False]))


def decode_part(encoded, orientation, whole, choose_box) -> tf.Tensor:
    """Returns one box of the image: `[height, width, 3] uint8`.

    A box decoded alone may differ from the same box of the whole by a few levels in
    its outermost columns, where halved chroma is interpolated without its neighbour.

    Args:
        encoded: scalar string.
        orientation: scalar int32, EXIF orientation 1..8.
        whole: scalar bool; False if `can_decode_part` and the image is upright, so
            that only the rows and columns of the box need be decoded.
        choose_box: function of the image's shape `[3] int32` to (y, x, height,
            width), scalars int32, inside the image.
    """

    def crop_of_jpeg():
        box = tf.stack(choose_box(tf.image.extract_jpeg_shape(encoded)))
        return tf.image.decode_and_crop_jpeg(encoded, box, channels=3)

    def crop_of_whole():
        image = decode(encoded, orientation)
        y, x, height, width = choose_box(tf.shape(image))
        return image[y : y + height, x : x + width]

    return tf.cond(whole, crop_of_whole, crop_of_jpeg)


def random_box(shape, *, seed, area, aspect) -> list[tf.Tensor]:
    """Returns a box of random area, aspect and position.

    Args:
        shape: `[3] int32` of the image.
        seed: `[2] int64`.
        area: (low, high), fraction of the image's area.
        aspect: (low, high), width / height.

    Returns:
        (y, x, height, width), scalars int32.

    Source: the released code (area 5 % to 100 %, TensorFlow's aspects).
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
    """Returns the central square of size / (size + padding) of the short side.

    Args:
        shape: `[3] int32` of the image.
        image_size: side that the square will be resized to, px.
        padding: px around it at that size, 0 or more; 0 takes the whole short side.

    Returns:
        (y, x, height, width), scalars int32.

    Source: the released code, evaluation below 320 px, with a padding of 32.
    """
    height, width = shape[0], shape[1]
    short = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.cast(short * (image_size / (image_size + padding)), tf.int32)
    side = tf.maximum(side, 1)
    return [(height - side + 1) // 2, (width - side + 1) // 2, side, side]


def resize(image: tf.Tensor, image_size: int, interpolation: str) -> tf.Tensor:
    """Resizes to a square, aspect not kept: `[S, S, 3] uint8`, rounded and clipped.

    Pixel centres are at half integers; nothing is smoothed before shrinking.

    Source: the released code's resizing.
    """
    size = [image_size, image_size]
    resize_op = INTERPOLATIONS[interpolation]
    pixels = resize_op(images=image[tf.newaxis], size=size, half_pixel_centers=True)[0]
    pixels = tf.ensure_shape(pixels, [*size, 3])
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def train_image(encoded, orientation, whole, seed, mirrored, *, image_size, data):
    """Returns a random crop, resized and perhaps mirrored: `[S, S, 3] uint8`.

    Args:
        encoded, orientation, whole: see `decode_part`.
        seed: `[2] int64`, of the crop.
        mirrored: scalar bool.
        image_size: side of the result, px.
        data: `config.data`, for `crop_area`, `crop_aspect` and `interpolation`.
    """
    choose_box = functools.partial(
        random_box, seed=seed, area=data.crop_area, aspect=data.crop_aspect
    )
    part = decode_part(encoded, orientation, whole, choose_box)
    image = resize(part, image_size, data.interpolation)
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, mirrored, False]))


def eval_image(encoded, orientation, whole, *, image_size, data):
    """Returns the whole image or its centre, resized: `[S, S, 3] uint8`."""
    if data.eval_crop == "center":
        choose_box = functools.partial(
            center_box, image_size=image_size, padding=data.eval_crop_padding
        )
        image = decode_part(encoded, orientation, whole, choose_box)
    else:
        image = decode(encoded, orientation)
    return resize(image, image_size, data.interpolation)
