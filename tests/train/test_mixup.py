"""pytest tests/train/test_mixup.py"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ev2.train import mixup as mix

N, GROUP, SIDE = 32, 8, 12


def _inputs():
    """Image i is i everywhere and has class i, so mixtures can be read off."""
    values = jnp.arange(N, dtype=jnp.float32)
    images = jnp.broadcast_to(values.reshape(N, 1, 1, 1), (N, SIDE, SIDE, 3))
    return images, jnp.eye(N, dtype=jnp.float32), jnp.ones(N)


def _mix(mixup, cutmix, mask=None, rng=0):
    images, targets, ones = _inputs()
    out = mix.mix(
        jax.random.key(rng),
        images,
        targets,
        ones if mask is None else mask,
        mixup=jnp.float32(mixup),
        cutmix=jnp.float32(cutmix),
        group_images=GROUP,
    )
    return tuple(np.asarray(x) for x in out)


def _partner_of(i):
    half = i // 4 * 4
    return half + 3 - (i - half)


def test_off_is_exact_identity():
    images, targets = _mix(0.0, 0.0)
    np.testing.assert_array_equal(images, _inputs()[0])
    np.testing.assert_array_equal(targets, _inputs()[1])


def test_mixup_blends_with_the_partner_of_the_half_group():
    images, targets = _mix(0.4, 0.0)
    for i in range(N):
        j = _partner_of(i)
        weight = targets[i, i]
        assert 0.5 <= weight <= 1.0  # the image itself weighs more
        assert targets[i, j] == pytest.approx(1 - weight, abs=1e-6)
        np.testing.assert_allclose(
            images[i], weight * i + (1 - weight) * j, rtol=1e-5, atol=1e-5
        )
    assert len({float(targets[i, i]) for i in range(N)}) > N // 2  # a draw per image


def test_cutmix_labels_weigh_the_pixels():
    images, targets = _mix(0.0, 1.0)
    for i in range(N):
        j = _partner_of(i)
        cut = images[i, :, :, 0] == j
        assert np.all(cut | (images[i, :, :, 0] == i))
        assert targets[i, j] == pytest.approx(cut.mean(), abs=1e-6)
        rows, columns = cut.any(1), cut.any(0)
        np.testing.assert_array_equal(cut, rows[:, None] & columns[None, :])  # a box


def test_both_split_the_group():
    images, _ = _mix(0.4, 1.0)
    for i in range(N):
        constant = np.ptp(images[i]) == 0
        if i % GROUP < GROUP // 2:
            assert constant  # mixup
        else:
            values = set(np.unique(images[i]))
            assert values <= {float(i), float(_partner_of(i))}  # CutMix


def test_an_undecoded_image_mixes_with_nobody():
    mask = jnp.ones(N).at[5].set(0.0)
    images, targets = _mix(0.4, 1.0, mask)
    for i in (5, _partner_of(5)):
        assert np.all(images[i] == i)
        assert targets[i, i] == 1.0


def test_mean_of_lambda_follows_alpha():
    # E max(l, 1 - l) for Beta(a, a): 0.75 for a = 1, towards 1 for small a.
    draws = [np.diagonal(_mix(1.0, 0.0, rng=r)[1]).mean() for r in range(40)]
    assert np.mean(draws) == pytest.approx(0.75, abs=0.02)
    draws = [np.diagonal(_mix(0.05, 0.0, rng=r)[1]).mean() for r in range(40)]
    assert np.mean(draws) > 0.95
