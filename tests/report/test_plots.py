"""Figures of the report against the logged values."""

import dataclasses

import numpy as np
import pytest

from ev2 import progressive
from ev2.report import class_plots, plots
from ev2.train import workdir
from tests.helpers import fake_run


def read_fake_run(path, **options) -> workdir.Run:
    return workdir.read_run(fake_run.make_run(path, **options))


def test_learning_curves_show_the_logged_values(tmp_path):
    run = read_fake_run(tmp_path)
    loss, accuracy = plots.learning_curves(run).axes
    losses = [record["loss"] for record in run.train]
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), losses)
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    for weights, label in (("ema", "test, EMA"), ("raw", "test, raw")):
        expected = [100 * record[weights]["top1"] for record in run.evals]
        np.testing.assert_allclose(lines[label], expected)
    assert accuracy.get_xlim() == pytest.approx((0, 12), abs=0.01)
    last = f"{100 * run.evals[-1]['ema']['top1']:.2f}"
    assert last in [text.get_text() for text in accuracy.texts]


def test_many_points_are_smoothed_within_stages(tmp_path):
    run = read_fake_run(tmp_path, log_every=2)
    raw, *means = plots.learning_curves(run).axes[0].lines
    assert [len(mean.get_ydata()) for mean in means] == [140, 140, 140, 141]
    values = raw.get_ydata()[:140]
    window = len(raw.get_ydata()) // 60
    middle = values[70 - window // 2 : 70 - window // 2 + window]
    assert means[0].get_ydata()[70] == pytest.approx(np.mean(middle), abs=0.01)


def test_stages_show_the_strengths_in_use(tmp_path):
    run = read_fake_run(tmp_path, **{"progressive.mixup": (0.0, 0.3)})
    panels = {axes.get_title("left"): axes for axes in plots.stages(run).axes}
    assert set(panels) == {
        *("Image size (px)", "Dropout (probability)", "RandAugment (magnitude)"),
        *("Mixup (alpha)", "Drop path (probability)"),  # CutMix is 0 throughout
    }
    steps = panels["Mixup (alpha)"].patches[0].get_data()
    np.testing.assert_allclose(steps.values, [0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(steps.edges, [0, 3, 6, 9, 12], atol=0.02)


def test_progressive_learning_aligns_sizes_strengths_and_accuracy(tmp_path):
    run = read_fake_run(tmp_path)
    sizes, strengths, accuracy = plots.progressive_learning(run).axes
    written = [text.get_text() for text in sizes.texts]
    assert written == ["16 px", "20 px", "24 px", "28 px"]
    rows = [label.get_text() for label in strengths.get_yticklabels()]
    assert rows == ["Dropout", "RandAugment", "Drop path"]
    cells = [text.get_text() for text in strengths.texts]
    assert cells[4:8] == ["1", "2", "3", "4"]
    assert sizes.get_xlim() == strengths.get_xlim() == accuracy.get_xlim()
    values = accuracy.lines[1].get_ydata()
    np.testing.assert_allclose(values, [100 * r["ema"]["top1"] for r in run.evals])
    weak = read_fake_run(
        tmp_path / "weak",
        **{f"progressive.{s.name}": (0.0, 0.0) for s in progressive.STRENGTHS},
    )
    assert len(plots.progressive_learning(weak).axes) == 2


def test_a_new_strength_is_drawn_without_a_change(tmp_path, monkeypatch):
    run = read_fake_run(tmp_path)
    new = dataclasses.replace(
        progressive.STRENGTHS[0], name="blur", label="blur", unit="px"
    )
    monkeypatch.setattr(progressive, "STRENGTHS", (*progressive.STRENGTHS, new))
    for stage in run.stages:
        stage["strengths"]["blur"] = 3.0
    titles = [axes.get_title("left") for axes in plots.stages(run).axes]
    assert titles[-1] == "Blur (px)"
    rows = plots.progressive_learning(run).axes[1].get_yticklabels()
    assert rows[-1].get_text() == "Blur"


def test_many_classes_are_drawn_in_groups():
    confusion = 7 * np.eye(1000, dtype=np.int64)
    confusion[0, 999] = 35
    axes = class_plots.confusion_matrix(confusion, ["x"] * 1000).axes[0]
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn.shape == (200, 200)
    assert (drawn[0, 0], drawn[0, 199]) == (50.0, 50.0) and drawn[9, 9] == 100.0
    assert axes.get_xlabel() == "Predicted class, in groups of 5"


def test_class_without_test_images_is_left_out():
    confusion = np.array([[3, 1], [0, 0]])
    assert np.isnan(class_plots.normalize_rows(confusion)[1]).all()
    axes = class_plots.class_accuracy(confusion, ["a", "b"]).axes[0]
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
