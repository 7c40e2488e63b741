"""python -m pytest tests/tpu/test_forecast.py

A fake compiler stands for libtpu: its figures follow from the request by simple sums.
"""

import json

import numpy as np
import pytest

from configs import imagenet1k
from ev2 import errors
from ev2.cli import main as cli
from ev2.tpu import cache as tpu_cache
from ev2.tpu import compile as tpu
from ev2.tpu import forecast, scaling, slices
from ev2.train import plan

KEYS = (  # design: the interface of `ev2 plan --tpu --json`
    ("fits", "hbm_bytes", "flops", "bytes_accessed", "step_seconds")
    + ("images_per_second_per_device", "compile_seconds")
)


class FakeCompiler:
    """A step takes 1 us per pixel row and image; more than `most` images do not fit."""

    def __init__(self, most=10**9, seconds_from="compiler"):
        self.most, self.seconds_from, self.requests = most, seconds_from, []

    def __call__(self, request: tpu.CompileRequest):
        self.requests.append(request)
        images = request.batch_size // slices.find(request.slice_name).devices
        available = {"hbm_available_bytes": 16 * 2**30, "compile_seconds": 60.0}
        if images > self.most:
            unknown = dict.fromkeys(
                (*KEYS, "temp_bytes", "step_seconds_from", "reduced_bytes")
            )
            wanted = {"wanted_bytes": 2**30 * images}
            return unknown | available | wanted | {"fits": False}
        seconds = 1e-6 * request.image_size * images
        return available | {
            "fits": True,
            "hbm_bytes": 2**20 * images,
            "temp_bytes": 2**19 * images,
            "flops": 1e9 * images,
            "bytes_accessed": 1e8 * images,
            "step_seconds": seconds,
            "step_seconds_from": self.seconds_from,
            "images_per_second_per_device": images / seconds,
            "reduced_bytes": 47_000_000,
        }


def test_the_figures_of_every_stage_and_the_hours():
    config, compiler = imagenet1k.get_config("s"), FakeCompiler()
    table = forecast.forecast(config, ["v3-32"], compile_one=compiler)
    assert table == json.loads(json.dumps(table))
    for stage, planned in zip(
        table["stages"], plan.make_plan(config)["stages"], strict=True
    ):
        assert set(KEYS) <= set(stage["tpu"])
        assert {k: v for k, v in stage.items() if k != "tpu"} == planned
    assert [s["tpu"]["step_seconds"] for s in table["stages"]] == pytest.approx(
        [128 * 128e-6, 185 * 128e-6, 243 * 128e-6, 300 * 128e-6]
    )
    # 27,368 or 27,369 steps a stage.
    seconds = 128e-6 * (27_368 * (128 + 243) + 27_369 * (185 + 300))
    total = table["tpu"]
    assert total["hours"] == pytest.approx(seconds / 3600)
    assert total["device_hours"] == pytest.approx(32 * seconds / 3600)
    assert (total["slice"], total["devices"]) == ("v3-32", 32)
    assert total["device_kind"] == "TPU v3" and total["fits"]
    assert "scaling" not in table
    assert total["versions"] == tpu_cache.get_versions()


def test_a_repeated_size_is_compiled_once():
    config, compiler = imagenet1k.get_config("s"), FakeCompiler()
    config.progressive.image_size = (128, 128)
    forecast.forecast(config, ["v3-32"], compile_one=compiler)
    assert [request.image_size for request in compiler.requests] == [128]


@pytest.mark.parametrize("most, expected", [(100, 96), (8, 8), (120, 120), (7, None)])
def test_the_largest_batch_that_fits(most, expected):
    config, compiler = imagenet1k.get_config("b0"), FakeCompiler(most)
    table = forecast.forecast(config, ["v3-32"], compile_one=compiler)
    assert not table["tpu"]["fits"] and table["tpu"]["hours"] is None
    largest = table["stages"][0]["tpu"]["largest"]
    if expected is None:
        assert largest is None
    else:
        assert largest["batch_per_device"] == expected
        assert largest["batch_size"] == 32 * expected
        speed = expected / (1e-6 * 192 * expected)
        assert largest["images_per_second_per_device"] == pytest.approx(speed)
    # 15 multiples of 8 below 128: four questions, and the one that did not fit.
    assert len(compiler.requests) <= 5
    text = scaling.format_stages(table)
    assert "does not fit" in text.splitlines()[-2]
    assert f"{expected} images" in text or "no batch" in text


def test_the_search_asks_only_for_batches_that_groups_divide():
    config, compiler = imagenet1k.get_config("b0"), FakeCompiler(100)
    config.model.bn_group_images = 1024  # of 32 devices: multiples of 32 images
    table = forecast.forecast(config, ["v3-32"], compile_one=compiler)
    assert table["stages"][0]["tpu"]["largest"]["batch_per_device"] == 96
    assert {r.batch_size % 1024 for r in compiler.requests} == {0}


def test_scaling_is_strong_and_weak():
    config = imagenet1k.get_config("s")
    names = ["v3-32", "v3-8", "v3-128"]
    table = forecast.forecast(config, names, compile_one=FakeCompiler(500))
    strong, weak = table["scaling"]["strong"], table["scaling"]["weak"]
    assert [row["slice"] for row in strong] == names
    assert [row["slice"] for row in weak] == names
    assert [row["batch_size"] for row in strong] == [4096] * 3
    assert [row["batch_size"] for row in weak] == [4096, 1024, 16384]
    assert [row["fits"] for row in strong] == [True, False, True]
    assert strong[1]["hours"] is None
    # A quarter of the images per device; and four times the images a step.
    hours = table["tpu"]["hours"]
    assert strong[2]["hours"] == pytest.approx(hours / 4)
    assert weak[1]["hours"] == pytest.approx(hours * 4, rel=1e-3)
    assert weak[2]["device_hours"] == pytest.approx(hours * 32, rel=1e-3)
    text = scaling.format_scaling(table)
    assert text.count("does not fit") == 1 and text.count("v3-128") == 2

    panels = scaling.draw(table).axes
    assert [len(panel.lines) for panel in panels] == [2] * 4
    hours_lines = panels[2].lines
    assert [*np.asarray(hours_lines[0].get_xdata())] == [32, 128]
    assert [*np.asarray(hours_lines[1].get_xdata())] == [8, 32, 128]
    assert [*np.asarray(hours_lines[1].get_ydata())] == pytest.approx(
        [weak[1]["hours"], weak[0]["hours"], weak[2]["hours"]]
    )


def test_the_printed_table():
    table = forecast.forecast(
        imagenet1k.get_config("s"), ["v4-8"], compile_one=FakeCompiler()
    )
    heading, *rows, total = scaling.format_stages(table).splitlines()
    assert {len(row) for row in rows} == {len(heading)}
    # 1,024 images a chip at 300 px: 307.2 ms, 27,369 steps, 2.336 hours.
    assert rows[-1].split() == (
        ["3", "300", "1,024", "1.00", "16.00", "1.02", "102.4", "307.2", "3,333"]
        + ["47.0", "2.34", "60", "s"]
    )
    assert total.startswith("v4-8, 4 x TPU v4: fits; 6.66 hours of training steps")


def test_a_time_that_is_not_the_compilers_is_marked():
    table = forecast.forecast(
        imagenet1k.get_config("b0"),
        ["v3-32"],
        compile_one=FakeCompiler(seconds_from="lower bound"),
    )
    text = scaling.format_stages(table)
    assert ">24.6" in text and "192 px: the compiler's time is not a positive" in text


@pytest.mark.parametrize(
    "names, changes, message",
    [
        (["v3-33"], {}, "tpu: there is no slice 'v3-33'"),
        (["v3-32", "x"], {}, "tpu: 'x' is not a slice"),
        (["v3-32"], {"batch_size": 100}, "batch_size: a global batch of 100 images"),
        (["v3-32", "v3-2048"], {"batch_size": 1024}, "does not divide by 2048 devices"),
        (["v3-32"], {"model.bn_group_images": 96}, "model.bn_group_images: "),
        (
            ["v3-32"],
            {"progressive.mixup": (0.0, 0.2), "loss.mix_group_images": 48},
            "loss.mix_group_images: ",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_compiled(
    names, changes, message
):
    config, compiler = imagenet1k.get_config("s"), FakeCompiler()
    config.update_from_flattened_dict(changes)
    with pytest.raises(errors.InputError) as error:
        forecast.forecast(config, names, compile_one=compiler)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not compiler.requests


def test_processes_follow_memory_and_cores(monkeypatch):
    monkeypatch.setattr(forecast.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    kib = {"now": 24 * 2**20}
    monkeypatch.setattr(
        forecast.pathlib.Path,
        "read_text",
        lambda path: f"MemTotal: 1 kB\nMemAvailable:   {kib['now']} kB\n",
    )
    assert forecast.count_processes() == 3  # 8 GiB each
    kib["now"] = 2**20
    assert forecast.count_processes() == 1
    kib["now"] = 2**30
    assert forecast.count_processes() == 4


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tpu, "check_installed", lambda: None)
    compiler = FakeCompiler()
    monkeypatch.setattr(tpu, "compile_apart", compiler)
    path = tmp_path / "plan.json"
    argv = ["plan", "--config=configs/imagenet1k.py:b0", "--tpu=v3-32,v3-64"]
    argv += ["--batch_size=2048", f"--json={path}"]
    assert cli.main(argv) == 0
    table = json.loads(path.read_text())
    assert table["stages"][0]["batch_size"] == 2048
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert "weak scaling" in out and f"plot: {tmp_path / 'plan.png'}" in out
    # 64 and 32 images per device, and 4,096 images on 64.
    assert "3 programs to compile" in err and "3 of 3" in err
    assert cli.main(argv) == 0
    assert (
        len(compiler.requests) == 3 and capsys.readouterr().err.count(": cached") == 3
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tpu=v3-32", "--plot=x.png"], "plot: 'x.png'"),
        (["--tpu=v3-32", "--batch_size=0"], "batch_size: 0"),
        (["--tpu="], "tpu: '' is not allowed; give slices, each once"),
        (["--tpu=v3-8,v3-8"], "tpu: 'v3-8,v3-8' is not allowed"),
        (["--plot=x.png"], "plot: 'x.png' is of TPU slices"),
        (["--tpu=v3-32"], "tpu: libtpu, the compiler, is not installed"),
    ],
)
def test_the_command_refuses(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", "--config=configs/imagenet1k.py:s", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "hours, text",
    [(0.0123, "44.3 s"), (0.1, "0.10 h"), (6.663, "6.66 h"), (8192, "8,192 h")],
)
def test_times_under_six_minutes_are_in_seconds(hours, text):
    assert scaling.format_hours(hours, " h") == text
