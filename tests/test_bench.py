"""pytest tests/test_bench.py

Latency and input: which calls count, and what is printed.
"""

import json
import pathlib

import pytest

from ev2 import cli, export
from ev2.bench import clock as clocks
from ev2.bench import infer
from ev2.bench import input as pipelines
from tests import tiny


class Clock:
    """A clock that each call moves on by what the call is to take."""

    def __init__(self, durations):
        self.now, self.durations, self.calls = 0.0, durations, 0

    def call(self):
        self.now += self.durations(self.calls)
        self.calls += 1


@pytest.mark.parametrize(
    ("duration", "counted"),
    [(0.001, clocks.MAX_CALLS), (1.0, 20), (100.0, clocks.MIN_CALLS)],
)
def test_calls_until_enough(monkeypatch, duration, counted):
    clock = Clock(lambda call: duration)
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: clock.now)
    seconds = clocks.time_calls(clock.call)
    assert len(seconds) == counted and clock.calls == counted + 3
    assert seconds == pytest.approx([duration] * counted)


def test_the_first_calls_do_not_count(monkeypatch):
    clock = Clock(lambda call: 50.0 if call < 3 else 0.5)
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: clock.now)
    assert clocks.time_calls(clock.call) == pytest.approx([0.5] * 40)


def test_median_and_95th_percentile(monkeypatch):
    # 1 to 101 ms: the median is 51 ms, 95 % of the way is 96 ms.
    values = [(i + 1) / 1000 for i in range(101)]
    monkeypatch.setattr(clocks, "time_calls", lambda call: values)
    row = infer._row("ev2", "cpu", None, range(16))
    assert row["median_ms"] == pytest.approx(51) and row["p95_ms"] == pytest.approx(96)
    assert row["images_per_second"] == pytest.approx(16 / 0.051, abs=0.1)


def test_the_verb_measures_the_live_network_and_exports(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clocks, "MAX_CALLS", 3)
    monkeypatch.setattr(clocks, "MIN_CALLS", 2)
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
    assert infer._installed() == ["stablehlo", "saved_model", "tflite"]


@pytest.fixture
def in_this_process(monkeypatch):
    """A figure costs no process of its own: TensorFlow takes seconds to start."""

    def run(name, config, stage, images):
        return pipelines.time_own(name, config.to_dict(), stage, images)

    monkeypatch.setattr(pipelines, "_measure", run)
    monkeypatch.setattr(pipelines, "_installed_peers", lambda config: [])


def test_input_measures_each_size_of_the_recipe(in_this_process):
    figures = pipelines.measure(tiny.make_config(), images=70)
    assert [stage["image_size"] for stage in figures["stages"]] == [8, 12]
    for stage in figures["stages"]:
        assert [row["name"] for row in stage["results"]] == ["decode", "crop", "ev2"]
        for row in stage["results"]:
            assert row["images_per_second"] > 0 and row["peak_mib"] > 100
    table = pipelines.format_table(figures)
    assert "8 px" in table and "12 px" in table and table.count("\n") == 4


@pytest.mark.parametrize("augment", ["randaugment", "autoaugment"])
def test_crop_is_without_any_augmentation(augment, monkeypatch):
    seen = []

    def record(config, stage, images):
        seen.append(config.data.augment)
        return iter([])

    monkeypatch.setattr(pipelines, "_batches", record)
    config = tiny.make_config(**{"data.augment": augment})
    pipelines._cropped(config, None, 1)
    assert seen == ["none"]


def test_input_takes_sizes_of_ones_own(in_this_process):
    figures = pipelines.measure(tiny.make_config(), images=1, sizes=[10])
    assert [stage["image_size"] for stage in figures["stages"]] == [10]


@pytest.mark.parametrize(
    "flag, message",
    [("--images=0", "images: 0"), ("--sizes=4", "sizes: 4"), ("--sizes=x", "sizes:")],
)
def test_input_refuses(flag, message, capsys):
    demo = pathlib.Path(__file__).parents[1] / "configs" / "demo.py"
    assert cli.main(["bench", "input", f"--config={demo}", flag]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
