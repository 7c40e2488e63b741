"""python -m pytest tests/report/test_plots.py"""

import numpy as np
import pytest

from ev2.report import class_plots, plots
from ev2.train import workdir as workdirs
from tests.helpers import fake_run


def test_learning_curves_show_what_was_logged(tmp_path):
    run = workdirs.read_run(fake_run.make_run(tmp_path))
    loss, accuracy = plots.learning_curves(
        run.train, run.evals, run.stages, plots.LIGHT
    ).axes
    np.testing.assert_array_equal(
        loss.lines[0].get_ydata(), [r["loss"] for r in run.train]
    )
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    for weights in ("ema", "raw"):
        expected = [100 * e[weights]["top1"] for e in run.evals]
        key = {"ema": "test, EMA", "raw": "test, raw"}[weights]
        np.testing.assert_allclose(lines[key], expected)
    assert accuracy.get_xlim() == pytest.approx((0, 12), abs=0.01)


def test_many_points_are_smoothed_within_stages(tmp_path):
    run = workdirs.read_run(fake_run.make_run(tmp_path, log_every=2))
    loss, _ = plots.learning_curves(run.train, [], run.stages, plots.LIGHT).axes
    raw, *means = loss.lines
    assert [len(m.get_ydata()) for m in means] == [140, 140, 140, 141]
    values = raw.get_ydata()[:140]
    window = len(raw.get_ydata()) // 60
    middle = values[70 - window // 2 : 70 - window // 2 + window]
    assert means[0].get_ydata()[70] == pytest.approx(np.mean(middle), abs=0.01)


def test_stage_steps_show_every_strength(tmp_path):
    run = workdirs.read_run(
        fake_run.make_run(tmp_path, **{"progressive.mixup": (0.0, 0.3)})
    )
    panels = plots.stage_steps(run.stages, plots.LIGHT).axes
    titles = [axes.get_title("left") for axes in panels]
    assert titles[0] == "Image size (px)" and titles[4] == "Mixup (alpha)"
    steps = panels[4].patches[0].get_data()
    np.testing.assert_allclose(steps.values, [0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(steps.edges, [0, 3, 6, 9, 12], atol=0.02)
    assert [text.get_text() for text in panels[5].texts] == ["off"]


def test_many_classes_are_drawn_in_groups():
    confusion = 7 * np.eye(1000, dtype=np.int64)
    confusion[0, 999] = 35
    axes = class_plots.confusion_matrix(confusion, ["x"] * 1000, plots.DARK).axes[0]
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn.shape == (200, 200)
    assert (drawn[0, 0], drawn[0, 199]) == (50.0, 50.0) and drawn[9, 9] == 100.0
    assert axes.get_xlabel() == "Predicted class, in groups of 5"


def test_class_without_test_images_is_left_out():
    confusion = np.array([[3, 1], [0, 0]])
    assert np.isnan(class_plots.row_shares(confusion)[1]).all()
    axes = class_plots.class_accuracy(confusion, ["a", "b"], plots.LIGHT).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]


def test_confidence_interval_against_published_values():
    # Wilson score interval: 8 of 10, 0 of 10, 10 of 10.
    low, high = class_plots.confidence_interval(np.array([8, 0, 10]), np.array([10]))
    np.testing.assert_allclose(low, [0.4902, 0.0, 0.7225], atol=1e-4)
    np.testing.assert_allclose(high, [0.9433, 0.2775, 1.0], atol=1e-4)


@pytest.mark.parametrize(
    ("label", "drawn"),
    [(0, "T-shirt/top"), (4, "$x_{"), (6, "#6"), (8, "Bag with a very…")],
)
def test_names_that_can_be_drawn(label, drawn):
    assert class_plots.drawable(fake_run.CLASS_NAMES, label) == drawn


def test_brief_keeps_the_digits_that_matter():
    values = [0, 0.2 / 3, 25 / 3, 35 / 3, 128, 1024]
    drawn = ["0", "0.067", "8.3", "11.7", "128", "1024"]
    assert [plots.brief(value) for value in values] == drawn
