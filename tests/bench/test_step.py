"""python -m pytest tests/bench/test_step.py"""

import json

import pytest

from configs import imagenet1k
from ev2.bench import reference_steps, step
from ev2.cli import main as cli
from ev2.tpu import compile as tpu
from ev2.train import timing

FIGURES = {
    "fits": True,
    "step_seconds": 0.1,
    "bytes_accessed": 66.2e9,
    "flops": 4.24e12,
    "temp_bytes": 7 * 2**30,
    "hbm_bytes": 8 * 2**30,
    "images_per_second_per_device": 1280.0,
}


@pytest.mark.parametrize(
    "short, name",
    [
        ("s", "efficientnetv2-s"),
        ("b0", "efficientnetv2-b0"),
        ("v1-b0", "efficientnet-b0"),
        ("resnet50", "resnet50"),
        ("efficientnet-b7", "efficientnet-b7"),
    ],
)
def test_names_may_be_short(short, name):
    assert step.full_name(short) == name


def test_the_step_is_that_of_the_recipe():
    recipe = tpu.step_config(imagenet1k.get_config("s"))
    assert step.make_config("efficientnetv2-s", "bfloat16") == recipe


def test_a_row_has_medians_and_quartiles():
    # Medians of 0.5 and 0.1 s; quartiles 0.4 and 0.6, and 0.1 twice.
    row = reference_steps.make_row(16, [0.3, 0.4, 0.5, 0.6, 0.7], [0.1, 0.1, 0.1])
    assert row == {
        "train_images_per_second": 32.0,
        "train_ms": 500.0,
        "train_spread": 0.4,
        "train_calls": 5,
        "infer_images_per_second": 160.0,
        "infer_ms": 100.0,
        "infer_spread": 0.0,
        "infer_calls": 3,
    }


def test_the_command_measures_our_step_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "run_in_process", lambda function, case: function(case))
    monkeypatch.setattr(timing, "MAX_CALLS", 3)
    monkeypatch.setattr(timing, "MIN_CALLS", 2)
    path = tmp_path / "step.json"
    argv = ["bench", "step", "--model=tiny", "--size=16", "--batch=4"]
    assert cli.main([*argv, f"--json={path}"]) == 0
    figures = json.loads(path.read_text())
    assert figures["model"] == "efficientnetv2-tiny"
    assert (figures["image_size"], figures["batch_size"]) == (16, 4)
    assert {"python", "jax"} <= set(figures["versions"]) and figures["platform"]
    (row,) = figures["results"]
    assert row["name"] == "ev2" and row["train_calls"] == row["infer_calls"] == 3
    assert row["infer_images_per_second"] > row["train_images_per_second"] > 0
    assert "train images/s" in capsys.readouterr().out


def test_on_a_slice_the_batch_is_per_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tpu, "check_installed", lambda: None)
    monkeypatch.setattr(step, "installed_libraries", lambda *about: ["keras-jax"])
    asked = []

    def compile_own(job):
        asked.append((job.image_size, job.batch_size, job.slice_name))
        return FIGURES

    def compile_peer(module, task, what):
        asked.append((task[0]["network"], task[0]["batch_size"], task[1]))
        return {**FIGURES, "step_seconds": 0.2}

    monkeypatch.setattr(tpu, "compile_apart", compile_own)
    monkeypatch.setattr(tpu, "run_apart", compile_peer)
    path = tmp_path / "step.json"
    argv = ["bench", "step", "--model=s", "--size=128,300", "--batch=128", "--peers"]
    assert cli.main([*argv, "--tpu=v3-32", f"--json={path}"]) == 0
    assert asked == [
        (128, 4096, "v3-32"),
        ("EfficientNetV2S", 128, "v3-32"),
        (300, 4096, "v3-32"),
        ("EfficientNetV2S", 128, "v3-32"),
    ]
    figures = json.loads(path.read_text())
    assert figures["dtype"] == "bfloat16" and figures["platform"] == "v3-32"
    names = [(row["name"], row["image_size"]) for row in figures["results"]]
    assert names == [(n, s) for s in (128, 300) for n in ("ev2", "keras-jax")]
    assert figures["results"][0]["train_images_per_second"] == 1280.0 * 32
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == (
        ["ev2", "128", "100.0", "66.2", "4.24", "7.00", "8.00", "1,280"]
    )
    assert lines[3].split()[:3] == ["keras-jax", "128", "200.0"]


def test_libraries_are_installed_and_have_the_network(monkeypatch):
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: True)
    found = step.installed_libraries
    assert found("efficientnetv2-s", "") == ["keras-jax", "torchvision", "timm"]
    assert found("efficientnetv2-b0", "") == ["keras-jax", "timm"]
    assert found("efficientnetv2-s", "v3-32") == ["keras-jax"]
    assert found("efficientnetv2-tiny", "") == []
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    assert found("efficientnetv2-s", "") == []


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model=x", "--size=128"], "model: 'x' is not known"),
        (["--model=s", "--size=4"], "size: 4 is not allowed"),
        (["--model=s", "--size=big"], "size: invalid literal"),
        (["--model=s", "--size=128", "--batch=0"], "batch: 0 is not allowed"),
        (["--model=s", "--size=128", "--tpu=v3-33"], "there is no slice 'v3-33'"),
        (["--size=128"], "model: missing"),
    ],
)
def test_the_command_refuses(flags, message, capsys):
    assert cli.main(["bench", "step", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
