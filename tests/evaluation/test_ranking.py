"""pytest tests/evaluation/test_ranking.py

Mean average precision against its definition, written out picture by picture.
"""

import jax
import numpy as np
import pytest

from ev2 import sharding
from ev2.evaluation import ranking
from tests.helpers import tiny_run as tiny


def _by_definition(scores, labels):
    """Precision at each distinct score, weighted by the gain in recall."""
    values = []
    for c in range(scores.shape[1]):
        has = np.array([c in row for row in labels])
        if not has.any():
            continue
        average, recall_before = 0.0, 0.0
        for threshold in sorted(set(scores[:, c]), reverse=True):
            chosen = scores[:, c] >= threshold
            recall = (has & chosen).sum() / has.sum()
            average += (recall - recall_before) * (has & chosen).sum() / chosen.sum()
            recall_before = recall
        values.append(average)
    return float(np.mean(values))


def _pairs(scores, labels, mask=None):
    mask = np.ones(len(scores), np.float32) if mask is None else mask
    pairs = [
        (c, scores[i, c]) for i, row in enumerate(labels) for c in row if mask[i] > 0
    ]
    classes = np.array([c for c, _ in pairs], np.int32)
    own = np.array([value for _, value in pairs], np.float32)
    count = ranking.count_at_least(scores, mask, classes, own)
    return classes, own, np.asarray(count)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [6, 1])  # with 1, many scores are equal
def test_as_defined(seed, decimals):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(40, 7)).round(decimals).astype(np.float32)
    labels = [sorted(random.choice(6, random.integers(1, 4), replace=False))
              for _ in range(40)]  # fmt: skip
    found = ranking.average_over_classes(*_pairs(scores, labels))
    assert found == pytest.approx(_by_definition(scores, labels), abs=1e-12)


def test_by_hand():
    # Class 0 is right at places 1 and 3, class 1 at places 2 and 3 of three.
    scores = np.array([[3, 1], [2, 3], [1, 2]], np.float32)
    found = ranking.average_over_classes(*_pairs(scores, [[0, 1], [], [0, 1]]))
    assert found == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    # Equal scores: nothing is known of the order, one of three is right.
    equal = ranking.average_over_classes(*_pairs(np.zeros((3, 1), np.float32), [[0]]))
    assert equal == pytest.approx(1 / 3)


def test_masked_pictures_do_not_count():
    scores = np.array([[3.0], [9.0], [1.0]], np.float32)
    mask = np.array([1, 0, 1], np.float32)
    assert ranking.average_over_classes(*_pairs(scores, [[0], [0], []], mask)) == 1.0


@pytest.mark.parametrize("devices", [1, 8])
def test_of_a_network_over_batches(devices):
    config = tiny.make_config(**{"data.num_classes": 5})
    model = tiny.create_model(config, 5)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    variables = {
        name: jax.device_put(
            model.init(jax.random.key(seed), 8), sharding.replicated(mesh)
        )
        for name, seed in (("ema", 0), ("raw", 1))
    }
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (32, 8, 8, 3), np.uint8)
    labels = np.full((32, 3), -1, np.int32)
    for row in labels:
        chosen = np.sort(random.choice(5, random.integers(1, 4), replace=False))
        row[: len(chosen)] = chosen
    mask = np.ones(32, np.float32)
    mask[[3, 31]] = 0.0  # one that cannot be decoded, and padding
    labels[[3, 31], 0] = 0

    def batches():
        for first in range(0, 32, 16):
            rows = slice(first, first + 16)
            batch = {"image": images[rows], "label": labels[rows], "mask": mask[rows]}
            yield sharding.to_global(mesh, batch)

    found = ranking.mean_average_precision(model, variables, config, mesh, batches)
    kept = mask > 0
    for name, values in variables.items():
        normal = (images.astype(np.float32) - 128) / 128
        logits = model.apply(jax.device_get(values), normal, train=False)
        scores = np.asarray(jax.nn.log_softmax(logits))[kept]
        rows = [[c for c in row if c >= 0] for row in labels[kept].tolist()]
        assert found[name] == pytest.approx(_by_definition(scores, rows), abs=1e-6)
    assert found["ema"] != found["raw"]
