"""Layers against NumPy and against XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ev2.models import layers
from ev2.models.model import draw_kernels
from tests.helpers.arrays import normal

OPTIONS = layers.LayerOptions()


def padded_conv(x, kernel, stride, padding):
    """The convolution by its definition, one output pixel at a time, float64."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    side, size = kernel.shape[0], x.shape[1]
    out = -(-size // stride)
    total = max((out - 1) * stride + side - size, 0)
    before, after = total // 2, total - total // 2  # the odd pixel comes after
    if padding == "symmetric":  # PyTorch's padding=side // 2
        before = after = side // 2
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    y = np.zeros((len(x), out, out, kernel.shape[-1]))
    for row in range(out):
        for column in range(out):
            top, left = row * stride, column * stride
            window = x[:, top : top + side, left : left + side]
            y[:, row, column] = np.einsum("nijc,ijcf->nf", window, kernel)
    return y


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_conv_pads_as_its_options_ask(padding, kernel, stride, size):
    x, weights = normal(2, size, size, 3), normal(kernel, kernel, 3, 4, seed=1)
    options = layers.LayerOptions(padding=padding)
    conv = layers.Conv(options, 4, kernel, stride)
    y = conv.apply({"params": {"kernel": weights}}, x)
    want = padded_conv(x, weights, stride, padding)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_the_odd_pixel_of_padding_is_at_the_end():
    # 4 px, kernel 3, stride 2: one pixel of padding in all, so windows 0-2 and 2-4.
    x = np.arange(1, 5, dtype=np.float32)[None, None, :, None] * np.ones((1, 4, 1, 1))
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0] = 1  # sums the upper row of each window
    y = layers.Conv(OPTIONS, 1, 3, 2).apply({"params": {"kernel": kernel}}, x)
    assert y[0, 0, :, 0].tolist() == [1 + 2 + 3, 3 + 4 + 0]


def test_squeeze_excite_is_the_formula():
    x = normal(2, 3, 3, 4)
    excite = layers.SqueezeExcite(OPTIONS, 2)
    params = excite.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, params) == {
        "reduce": {"kernel": (1, 1, 4, 2), "bias": (2,)},
        "expand": {"kernel": (1, 1, 2, 4), "bias": (4,)},
    }
    params = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size), params)

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    pooled = x.mean((1, 2)).astype(np.float64)
    hidden = pooled @ params["reduce"]["kernel"][0, 0] + params["reduce"]["bias"]
    hidden = hidden * sigmoid(hidden)
    gate = sigmoid(hidden @ params["expand"]["kernel"][0, 0] + params["expand"]["bias"])
    y = excite.apply({"params": params}, x)
    np.testing.assert_allclose(y, x * gate[:, None, None], rtol=1e-5, atol=1e-6)


def test_no_rate_or_key_drops_nothing():
    x = normal(8, 3, 3, 5)
    drop = jax.jit(
        lambda rate: layers.drop(x, rate, jax.random.key(0), mask_shape=x.shape)
    )
    np.testing.assert_array_equal(drop(jnp.float32(0)), x)
    assert layers.drop_path_at(3, 4, rate=0.9, rng=None)(x) is x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.004, 0.3])
def test_drop_has_its_rate_and_keeps_the_mean(rate, dtype):
    # 0.004 is below the 2^-7 steps of a draw in bfloat16.
    x = jnp.ones((200_000, 1), dtype)
    y = np.asarray(
        layers.drop(x, rate, jax.random.key(1), mask_shape=x.shape), np.float64
    )
    deviation = np.sqrt(rate * (1 - rate) / len(x))
    assert abs(np.mean(y == 0) - rate) < 4 * deviation
    kept = y[y != 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=5e-3)


def test_drop_path_drops_whole_images_on_a_linear_ramp():
    x = jnp.ones((20_000, 1, 2, 2))
    fractions = []
    for index in range(4):
        path = layers.drop_path_at(index, 4, rate=0.4, rng=jax.random.key(2))
        y = np.asarray(path(x))
        per_image = y.reshape(len(y), -1)
        assert (per_image == per_image[:, :1]).all()
        fractions.append(np.mean(per_image == 0))
    assert fractions[0] == 0
    np.testing.assert_allclose(fractions, [0, 0.1, 0.2, 0.3], atol=0.01)


@pytest.mark.parametrize(
    "layer, shape, deviation",
    [
        # sqrt(2 / fan_out), fan_out = kh * kw * last axis of TensorFlow's kernel.
        (layers.Conv(OPTIONS, 64, 3), (8, 8, 32), (2 / (9 * 64)) ** 0.5),
        (layers.Conv(OPTIONS, 2048, 3, depthwise=True), (8, 8, 2048), 2**0.5 / 3),
        # Uniform on +-1/sqrt(classes).
        (layers.Classifier(100), (1, 1, 512), 0.1 / 3**0.5),
    ],
)
def test_initialization(layer, shape, deviation):
    inputs = jnp.zeros((1, *shape))
    options = dict(dropout=0, rng=None) if isinstance(layer, layers.Classifier) else {}
    params = layer.init(jax.random.key(0), inputs, **options)["params"]
    params = draw_kernels(jax.random.key(1), params)
    assert np.std(params["kernel"]) == pytest.approx(deviation, rel=0.03)
    assert np.mean(params["kernel"]) == pytest.approx(0, abs=deviation * 0.03)
    assert not np.any(params.get("bias", 0))
    if isinstance(layer, layers.Classifier):
        assert np.abs(params["kernel"]).max() <= 0.1
