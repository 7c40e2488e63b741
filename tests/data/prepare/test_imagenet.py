"""ImageNet in miniature, from the archives to an exact evaluation."""

import json

import pytest

from ev2 import errors
from ev2.cli import main as cli
from ev2.train import loop as train
from tests.helpers import archives
from tests.helpers import tiny_run as tiny

pytest.importorskip("apache_beam", reason="pip install 'ev2[prepare]'")


def _config(out, train_split: str, counts: tuple[int, int], **changes):
    train_images, eval_images = counts
    data = {
        "source": "tfrecord",
        "path": str(out),
        "train_split": train_split,
        "num_train_images": train_images,
        "num_eval_images": eval_images,
        "num_classes": len(archives.CLASSES),
        **changes,
    }
    return tiny.make_config(steps=2, **{f"data.{k}": v for k, v in data.items()})


def test_imagenet1k_from_archives_to_accuracy(tmp_path, capsys):
    archives.make_imagenet1k(tmp_path / "archives")
    out, workdir = tmp_path / "shards", tmp_path / "run"
    assert archives.prepare_imagenet1k(tmp_path / "archives", out) == 0
    config = _config(out, "train+minival", (30, 8))
    config.eval.split = "minival"
    results = train.train_and_evaluate(config, str(workdir))
    assert "minival top-1" in capsys.readouterr().out  # during training
    assert results["ema"]["count"] == 8 and results["ema"]["skipped"] == 0  # at the end
    metadata = json.loads((workdir / "stages.json").read_text())
    assert metadata["class_names"] == list(archives.CLASSES)


@pytest.mark.slow
def test_imagenet21k_from_archives_to_accuracy(tmp_path, capsys):
    """Images of several classes train on all; any of them counts as correct."""
    archives.make_imagenet21k(tmp_path / "archives")
    out, workdir = tmp_path / "shards", tmp_path / "run"
    flags = archives.flags_imagenet21k(tmp_path / "archives")
    small = ["--validation_images=7", "--shard_mb=0.005", f"--out={out}"]
    assert cli.main(["prepare", "imagenet21k", *flags, *small]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    count = manifest["splits"]["train"]["images"]
    config = _config(out, "train", (count, 7), max_labels=manifest["max_labels"])
    results = train.train_and_evaluate(config, str(workdir))
    assert results["ema"]["count"] == 7 and results["ema"]["skipped"] == 0
    capsys.readouterr()
    assert cli.main(["evaluate", f"--checkpoint={workdir}"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["count"] == 7 and printed["top1"] == results["ema"]["top1"]
    too_few = _config(out, "train", (count, 7), max_labels=1)
    with pytest.raises(errors.InputError, match="data.max_labels: 1, but"):
        train.train_and_evaluate(too_few, str(tmp_path / "other"))
