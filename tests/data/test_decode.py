"""Decoding against Pillow, all eight orientations, boxes and resizing by hand."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from ev2.config import default_config
from ev2.data import decode
from tests.helpers import image_files

TRANSPOSE = Image.Transpose
UPRIGHT = {
    2: TRANSPOSE.FLIP_LEFT_RIGHT,
    3: TRANSPOSE.ROTATE_180,
    4: TRANSPOSE.FLIP_TOP_BOTTOM,
    5: TRANSPOSE.TRANSPOSE,
    6: TRANSPOSE.ROTATE_270,
    7: TRANSPOSE.TRANSVERSE,
    8: TRANSPOSE.ROTATE_90,
}


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """37 x 50, smooth so that JPEG keeps it, without any symmetry."""
    y, x = np.mgrid[0:37, 0:50]
    channels = [5 * x, 6 * y, 3 * x + 2 * y]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


_encode = image_files.encode


def _decode(encoded: bytes) -> np.ndarray:
    orientation = tf.constant(decode.exif_orientation(encoded), tf.int32)
    return decode.decode(tf.constant(encoded), orientation).numpy()


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"),
    [
        ("RGB", "PNG", 0),
        ("L", "PNG", 0),
        ("P", "PNG", 0),
        ("RGBA", "PNG", 0),
        ("LA", "PNG", 0),
        ("RGB", "BMP", 0),
        ("RGB", "JPEG", 3),
        ("L", "JPEG", 1),
        ("CMYK", "JPEG", 3),
        ("P", "GIF", 0),
    ],
)
def test_kinds_of_images_as_pil(image, mode, kind, tolerance):
    encoded = _encode(image.convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), int)
    decoded = _decode(encoded)
    assert decoded.dtype == np.uint8 and decoded.shape == (37, 50, 3)
    assert np.abs(decoded - expected).max() <= tolerance


def test_sixteen_bits_keep_the_upper_eight():
    wide = np.array([[0, 255, 256, 511], [4096, 32768, 65280, 65535]], np.uint16)
    decoded = _decode(_encode(Image.fromarray(wide), "PNG"))
    np.testing.assert_array_equal(decoded[..., 0], wide >> 8)


def test_first_frame_of_a_gif(image):
    first = image.convert("P")
    frames = {"save_all": True, "append_images": [ImageOps.invert(image)]}
    expected = np.asarray(first.convert("RGB"))
    np.testing.assert_array_equal(_decode(_encode(first, "GIF", **frames)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["little", "big"])
def test_exif_orientation_turns_upright(image, orientation, order):
    exif = Image.Exif()
    exif.endian = {"little": "<", "big": ">"}[order]
    exif[0x010F] = "maker"  # an entry before the one that counts
    exif[0x0112] = orientation
    encoded = _encode(image, "JPEG", exif=exif)
    assert decode.exif_orientation(encoded) == orientation
    stored = Image.fromarray(
        decode.decode(tf.constant(encoded), tf.constant(1)).numpy()
    )
    if orientation in UPRIGHT:
        stored = stored.transpose(UPRIGHT[orientation])
    np.testing.assert_array_equal(_decode(encoded), np.asarray(stored))


def test_no_orientation_is_upright(image):
    jpeg = _encode(image, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _encode(image, "JPEG", exif=exif)
    start = turned.index(b"Exif\0\0")
    for encoded in (
        jpeg,
        _encode(image, "PNG"),
        b"",
        b"\xff\xd8",
        jpeg[:30],
        turned[: start + 20],  # cut inside the directory
        turned[: start + 6] + b"XX" + turned[start + 8 :],  # no byte order
    ):
        assert decode.exif_orientation(encoded) == 1


def test_corrupt_files_are_errors(image):
    jpeg, png = _encode(image, "JPEG"), _encode(image, "PNG")
    for encoded in (b"", b"no image", jpeg[:-200], png[: len(png) // 2], jpeg[:3]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            _decode(encoded)


def test_only_whole_jpegs_are_decoded_in_part(image):
    jpeg = _encode(image, "JPEG")
    assert decode.can_decode_part(jpeg)
    assert decode.can_decode_part(jpeg + b"\0" * 100)  # some cameras append bytes
    assert not decode.can_decode_part(jpeg[:-200])
    assert not decode.can_decode_part(_encode(image, "PNG"))
    assert not decode.can_decode_part(b"")


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:0"}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_part_of_a_jpeg_equals_the_cut_whole(image, mode, options):
    encoded = tf.constant(_encode(image.convert(mode), "JPEG", quality=60, **options))
    for box in ((0, 0, 37, 50), (3, 5, 20, 31), (30, 44, 7, 6), (17, 16, 1, 1)):
        part, cut = (
            decode.decode_part(
                encoded, tf.constant(1), tf.constant(whole), lambda _, box=box: box
            )
            for whole in (False, True)
        )
        assert part.shape == cut.shape == (box[2], box[3], 3)
        difference = np.abs(part.numpy().astype(int) - cut.numpy())
        if options == {"subsampling": "4:2:0"}:  # halved chroma, interpolated
            assert difference.max() <= 8
            difference = difference[:, 1:-1]
        assert difference.max(initial=0) == 0


def test_random_boxes_are_inside_and_keep_their_ranges():
    def random_box(position):
        ranges = {"area": (0.25, 0.5), "aspect": (0.75, 4 / 3)}
        shape = tf.constant([300, 400, 3])
        box = decode.random_box(shape, seed=[0, position], **ranges)
        return tuple(int(v) for v in box)

    boxes = set()
    for position in range(200):
        y, x, height, width = random_box(position)
        assert 0 <= y <= y + height <= 300 and 0 <= x <= x + width <= 400
        assert 0.24 <= height * width / 120_000 <= 0.51
        assert 0.73 <= width / height <= 1.36
        boxes.add((y, x, height, width))
    assert len(boxes) > 190 and random_box(7) in boxes


@pytest.mark.parametrize(
    ("shape", "size", "padding", "expected"),
    [
        # 375 * 128 / (128 + 32) = 300; (375 - 300 + 1) // 2 = 38; (500 - 300 + 1) // 2.
        ((375, 500), 128, 32, [38, 100, 300, 300]),
        ((1, 9), 28, 32, [0, 4, 1, 1]),
        ((375, 500), 128, 64, [63, 125, 250, 250]),
        ((375, 500), 128, 0, [0, 63, 375, 375]),
    ],
)
def test_center_box_by_hand(shape, size, padding, expected):
    shape = tf.constant([*shape, 3])
    box = decode.center_box(shape, image_size=size, padding=padding)
    assert [int(v) for v in box] == expected


def test_center_crop_takes_the_configured_padding():
    data = default_config().data
    data.eval_crop = "center"
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:30, 10:30] = 200  # the central 8 / (8 + 8) of the side
    encoded = _encode(Image.fromarray(pixels), "PNG")
    darkest = {}
    for padding in (0, 8, 32):
        data.eval_crop_padding = padding
        cropped = decode.eval_image(encoded, 1, True, image_size=8, data=data)
        darkest[padding] = int(cropped.numpy().min())
    assert darkest == {0: 0, 8: 200, 32: 200}


def test_resize_by_hand():
    row = np.array([[[0] * 3, [200] * 3]], np.uint8)  # 1 x 2
    grown = decode.resize(tf.constant(row), 4, "bilinear").numpy()
    assert grown.shape == (4, 4, 3)
    assert grown[0, :, 0].tolist() == [0, 50, 150, 200]
    flat = np.full((9, 5, 3), 77, np.uint8)
    for interpolation in decode.INTERPOLATIONS:
        assert np.unique(decode.resize(tf.constant(flat), 28, interpolation)) == [77]


def test_bicubic_overshoot_is_clipped():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    grown = decode.resize(tf.constant(edge), 32, "bicubic").numpy()
    assert grown[0, 0, 0] == 0 and grown[0, -1, 0] == 255
    assert (np.diff(grown[0, 12:20, 0].astype(int)) >= 0).all()  # no wrap-around


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("eval_crop", ["resize", "center"])
def test_eager_equals_graph(image, kind, eval_crop):
    data = default_config().data
    data.eval_crop = eval_crop
    encoded = _encode(image, kind)
    whole = tf.constant(not decode.can_decode_part(encoded))

    def both(encoded, orientation, whole):
        train = decode.train_image(
            encoded, orientation, whole, [1, 2], True, image_size=28, data=data
        )
        evaluation = decode.eval_image(
            encoded, orientation, whole, image_size=28, data=data
        )
        return train, evaluation

    arguments = (tf.constant(encoded), tf.constant(1), whole)
    for eager, graph in zip(
        both(*arguments), tf.function(both, autograph=False)(*arguments), strict=True
    ):
        assert eager.shape == (28, 28, 3) and eager.dtype == tf.uint8
        np.testing.assert_array_equal(eager, graph)


def test_mirroring(image):
    data = default_config().data
    plain, mirrored = (
        decode.train_image(
            _encode(image, "PNG"), 1, True, [1, 2], flip, image_size=16, data=data
        ).numpy()
        for flip in (False, True)
    )
    np.testing.assert_array_equal(plain[:, ::-1], mirrored)
