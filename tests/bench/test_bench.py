"""pytest tests/bench/test_bench.py

Latency and input: which calls count, and what is printed.
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ev2 import errors, progressive
from ev2.bench import input as pipelines
from ev2.bench import latency, transition
from ev2.cli import main as cli
from ev2.export import export
from ev2.train import timing
from tests.helpers import image_files
from tests.helpers import tiny_run as tiny


class Clock:
    """A clock that each call moves on by what the call is to take."""

    def __init__(self, durations):
        self.now, self.durations, self.calls = 0.0, durations, 0

    def call(self):
        self.now += self.durations(self.calls)
        self.calls += 1


@pytest.mark.parametrize(
    ("duration", "counted"),
    [(0.001, timing.MAX_CALLS), (1.0, 20), (100.0, timing.MIN_CALLS)],
)
def test_calls_until_enough(monkeypatch, duration, counted):
    clock = Clock(lambda call: duration)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    seconds = timing.time_calls(clock.call)
    assert len(seconds) == counted and clock.calls == counted + 3
    assert seconds == pytest.approx([duration] * counted)


def test_the_first_calls_do_not_count(monkeypatch):
    clock = Clock(lambda call: 50.0 if call < 3 else 0.5)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    assert timing.time_calls(clock.call) == pytest.approx([0.5] * 40)


def test_median_and_95th_percentile(monkeypatch):
    # 1 to 101 ms: the median is 51 ms, 95 % of the way is 96 ms.
    values = [(i + 1) / 1000 for i in range(101)]
    monkeypatch.setattr(timing, "time_calls", lambda call: values)
    row = latency.make_row("ev2", "cpu", None, range(16))
    assert row["median_ms"] == pytest.approx(51) and row["p95_ms"] == pytest.approx(96)
    assert row["images_per_second"] == pytest.approx(16 / 0.051, abs=0.1)


def test_the_verb_measures_the_live_network_and_exports(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "MAX_CALLS", 3)
    monkeypatch.setattr(timing, "MIN_CALLS", 2)
    argv = ["bench", "infer", "--model=efficientnetv2-tiny", "--image_size=12"]
    argv += ["--batch=2", "--formats=stablehlo,tflite"]
    assert cli.main(argv) == 0
    table = capsys.readouterr().out
    assert "efficientnetv2-tiny, 12 px, batches of 2" in table
    path = tmp_path / "infer.json"
    assert cli.main([*argv, f"--json={path}"]) == 0
    figures = json.loads(path.read_text())
    assert (figures["image_size"], figures["batch_size"]) == (12, 2)
    assert [row["name"] for row in figures["results"]] == ["ev2", "stablehlo", "tflite"]
    assert {"python", "jax", "tensorflow"} <= set(figures["versions"])
    for row in figures["results"]:
        assert row["name"] in table
        assert 0 < row["median_ms"] <= row["p95_ms"] and row["calls"] == 3


def test_formats_left_out_are_those_installed(monkeypatch):
    without = export.FORMATS["onnx"]._replace(packages=("no_such_package",))
    monkeypatch.setitem(export.FORMATS, "onnx", without)
    assert latency.installed_formats() == ["stablehlo", "saved_model", "tflite"]


@pytest.fixture
def in_this_process(monkeypatch):
    """A figure costs no process of its own: TensorFlow takes seconds to start."""

    def run(name, config, stage, images):
        return pipelines.time_own(name, config.to_dict(), stage, images)

    monkeypatch.setattr(pipelines, "measure_row", run)
    monkeypatch.setattr(pipelines, "installed_loaders", lambda config: [])


def test_input_measures_each_size_of_the_recipe(in_this_process):
    figures = pipelines.measure(tiny.make_config(), images=70)
    assert [stage["image_size"] for stage in figures["stages"]] == [8, 12]
    for stage in figures["stages"]:
        names = [row["name"] for row in stage["results"]]
        assert names == ["decode", "half", "crop", "ev2"]
        for row in stage["results"]:
            assert row["images_per_second"] > 0 and row["peak_mib"] > 100
    table = pipelines.format_table(figures)
    assert "8 px" in table and "12 px" in table and table.count("\n") == 5


@pytest.mark.slow
def test_memory_of_a_hundred_thousand_images(tmp_path):
    """An epoch of 100,000 JPEGs in 100 shards, RandAugment on, stays below 1.5 GB."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 48, 64, 3), np.uint8)
    encoded = [tf.io.encode_jpeg(image).numpy() for image in noise]
    for split, shards in (("train", 100), ("validation", 1)):
        for shard in range(shards):
            path = f"{tmp_path}/{split}-{shard:05d}-of-{shards:05d}"
            with tf.io.TFRecordWriter(path) as writer:
                for i in range(1000):
                    writer.write(image_files.record(encoded[i % 200], 1 + i % 10))
    changes = {"data.source": "tfrecord", "data.path": str(tmp_path)}
    changes |= {"data.num_train_images": 100_000, "data.num_eval_images": 1_000}
    config = tiny.make_config(**changes)
    stage = progressive.make_stages(config, 100_000)[-1]
    stage = dataclasses.replace(stage, image_size=64)
    row = pipelines.measure_row("ev2", config, stage, 100_000)
    assert row["images_per_second"] > 0
    assert row["peak_mib"] < 1_500 * 1e6 / 2**20


@pytest.mark.parametrize("augment", ["randaugment", "autoaugment"])
def test_crop_is_without_any_augmentation(augment, monkeypatch):
    augments = []

    def make_train_data(config, stage, first_step):
        augments.append(config.data.augment)
        return [{"image": range(pipelines.reference_loaders.BATCH)}] * 3

    monkeypatch.setattr(pipelines.pipeline, "make_train_data", make_train_data)
    config = tiny.make_config(**{"data.augment": augment})
    stage = progressive.make_stages(config, 64)[0]
    row = pipelines.time_own("crop", config.to_dict(), stage, 1)
    assert augments == ["none"] and row["images_per_second"] > 0


def test_input_takes_sizes_of_ones_own(in_this_process):
    figures = pipelines.measure(tiny.make_config(), images=1, sizes=[10])
    assert [stage["image_size"] for stage in figures["stages"]] == [10]


@pytest.mark.parametrize(
    "flag, message",
    [("--images=0", "images: 0"), ("--sizes=4", "sizes: 4"), ("--sizes=x", "sizes:")],
)
def test_input_refuses(flag, message, capsys):
    demo = pathlib.Path(__file__).parents[2] / "configs" / "demo.py"
    assert cli.main(["bench", "input", f"--config={demo}", flag]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_gaps_between_stages_by_hand():
    """Steps of 1 s, a gap of 3 s after the evaluation; then steps of 2 s, no gap."""

    def lines(stage, split, *times):
        return [{"stage": stage, "split": split, "time": time} for time in times]

    run = lines(0, "train", 1.0, 2.0, 3.0) + lines(0, "eval", 10.0)
    run += lines(1, "train", 14.0, 15.0, 16.0, 17.0) + lines(1, "eval", 20.0)
    run += lines(2, "train", 22.0, 24.0)
    assert transition.gaps(run) == {
        "median_step_seconds": [1.0, 2.0],
        "gap_steps": [3.0, 0.0],
        "gap_seconds": [3.0, 0.0],
    }


def test_a_checkpoint_costs_what_the_steps_after_it_take_longer():
    """Steps of 1 s; after the second and third save, half a second more in all."""

    def line(step, time):
        return {"stage": 0, "split": "train", "step": step, "time": time}

    late = {20: 0.5, 40: 1.0}  # after the saves, from then on
    run = [line(s, s + sum(v for k, v in late.items() if s > k)) for s in range(1, 60)]
    assert transition.save_steps(run, 20) == pytest.approx((0.5 + 1.0) / 2)
    assert transition.save_steps(run, 0) is None


def test_transition_trains_with_and_without_preparation(monkeypatch):
    seen = []

    def measure(config, *, early):
        seen.append(early)
        train = [(0, 1, 1.0), (0, 2, 2.0), (1, 3, 3.0 if early else 5.0), (1, 4, 6.0)]
        keys = ("stage", "step", "time")
        return [{**dict(zip(keys, t, strict=True)), "split": "train"} for t in train]

    monkeypatch.setattr(transition, "run", measure)
    figures = transition.measure(tiny.make_config())
    assert seen == [True, False] and figures["late"]["gap_steps"] == [2.0]
    assert figures["gap_steps"] == [0.0] and figures["save_steps"] is None
    assert "0 to 1" in transition.format_table(figures)
    one_stage = tiny.make_config(**{"progressive.stages": 1})
    with pytest.raises(errors.InputError, match="progressive.stages: 1; a transition"):
        transition.measure(one_stage)


@pytest.mark.slow
def test_transition_reads_a_line_for_each_step():
    lines = transition.train(tiny.make_config().to_dict(), early=True)
    assert [line["step"] for line in lines if line["split"] == "train"] == [
        *range(1, 9)
    ]
    assert len(transition.gaps(lines)["gap_steps"]) == 1
