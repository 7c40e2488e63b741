"""Writes folders as training runs leave them, for the tests of the report."""

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import demo
from ev2 import progressive

CLASS_NAMES = ["T-shirt/top", "Trouser", "<b>&", "Dress", "$x_{", "Sandal"]
CLASS_NAMES += ["靴", "Sneaker", "Bag with a very long name", "Ankle boot"]
NUM_TRAIN_IMAGES = 12_000


# What the figures expected in the tests belong to; the demo itself may be tuned.
_RUN = {
    "batch_size": 128,
    "epochs": 12.0,  # 1,125 steps
    "data.crop_area": (0.5, 1.0),
    "data.randaugment_layers": 2,
    "progressive.stages": 4,
    "progressive.image_size": (16, 28),
    "progressive.dropout": (0.0, 0.2),
    "progressive.randaugment": (1.0, 4.0),
    "progressive.drop_path": (0.0, 0.1),
    "optimizer.lr": 0.016,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 1.0,
    "ema.decay": 0.995,
    "log.every_steps": 25,
    "checkpoint.every_steps": 200,
}


def make_config(**overrides: Any) -> ConfigDict:
    """The recipe of the fake run."""
    config = demo.get_config()
    config.update_from_flattened_dict({**_RUN, **overrides})
    return config


def make_run(
    workdir: pathlib.Path,
    *,
    classes: int = 10,
    done: float = 1.0,
    log_every: int = 25,
    seed: int = 0,
    **overrides,
) -> pathlib.Path:
    """Writes a folder as a run of the demo leaves it after `done` of its steps.

    With `done` below one the run was killed there: no eval.json, no confusion.npy.
    """
    rng = np.random.default_rng(seed)
    config = make_config(**overrides)
    stages = progressive.make_stages(config, NUM_TRAIN_IMAGES)
    total = stages[-1].last_step
    last = int(done * total)
    rows, lines, wall = [], [], 0.0
    for stage in stages:
        rate = 2.0e6 / stage.image_size**1.6
        row = _stage_row(stage, total)
        rows.append(row)
        if stage.first_step >= last:
            continue
        wall += 6.0
        for step in range(stage.first_step + log_every, stage.last_step + 1, log_every):
            if step > last:
                break
            wall += log_every * stage.batch_size / rate
            lines.append(_train_line(stage, step, total, rate, wall, rng))
        if stage.last_step <= last:
            steps = stage.last_step - stage.first_step
            row["compile_seconds"] = 6.0
            row["train_seconds"] = steps * stage.batch_size / rate
            row["images_per_second"] = rate
            lines.append(_eval_line(stage, total, wall))
    names = [*CLASS_NAMES, *(f"class {i}" for i in range(10, classes))]
    plan = {"model": config.model.name, "num_train_images": NUM_TRAIN_IMAGES}
    plan |= {"num_eval_images": 2000, "num_classes": classes, "params": 1_234_567}
    plan |= {"class_names": names[:classes], "stages": rows}
    workdir.mkdir(parents=True, exist_ok=True)
    versions = {"jax": "0.10.2", "ev2": "0.1.0"}
    _dump(workdir / "config.json", {"config": config.to_dict(), "versions": versions})
    _dump(workdir / "stages.json", plan)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    if last == total:
        _write_results(workdir, classes, total, wall, rng)
    return workdir


def _stage_row(stage, total):
    steps = stage.last_step - stage.first_step
    rates = [0.016 * (1 - s / total) for s in (stage.first_step, stage.last_step - 1)]
    return {
        "index": stage.index,
        "first_step": stage.first_step,
        "last_step": stage.last_step,
        "epochs": steps * stage.batch_size / NUM_TRAIN_IMAGES,
        "image_size": stage.image_size,
        "batch_size": stage.batch_size,
        "strengths": stage.strengths,
        "learning_rate": rates,
    }


def _train_line(stage, step, total, rate, wall, rng):
    t = step / total
    rate *= rng.normal(1, 0.03)
    return {
        "split": "train",
        "step": step,
        "epoch": stage.images_seen(step) / NUM_TRAIN_IMAGES,
        "stage": stage.index,
        "image_size": stage.image_size,
        "batch_size": stage.batch_size,
        "loss": 0.75 + 1.7 * np.exp(-6 * t) + 0.03 * stage.index + rng.normal(0, 0.03),
        "top1": 0.86 - 0.7 * np.exp(-6 * t) + rng.normal(0, 0.015),
        "learning_rate": 0.016 * min(step / 90, 1) * (1 + np.cos(np.pi * t)) / 2,
        "images_per_second": rate,
        "images_per_second_per_device": rate,
        "data_wait_share": abs(rng.normal(0.03, 0.02)),
        "skipped": 1,
        "wall_seconds": wall,
    }


def _eval_line(stage, total, wall):
    t = stage.last_step / total
    return {
        "split": "eval",
        "step": stage.last_step,
        "epoch": stage.images_seen(stage.last_step) / NUM_TRAIN_IMAGES,
        "stage": stage.index,
        "image_size": 28,
        "ema": {"top1": 0.905 - 0.3 * np.exp(-4 * t), "top5": 0.99},
        "raw": {"top1": 0.900 - 0.5 * np.exp(-5 * t), "top5": 0.98},
        "wall_seconds": wall,
    }


def _write_results(workdir, classes, step, wall, rng):
    per_class = 2000 // classes
    confusion = np.zeros((classes, classes), np.int64)
    for true in range(classes):
        share = np.full(classes, 0.2) ** np.abs(np.arange(classes) - true)
        share[true] += 3 * (1 + true % 4)
        confusion[true] = rng.multinomial(per_class, share / share.sum())
    np.save(workdir / "confusion.npy", confusion)
    top1 = confusion.trace() / confusion.sum()
    counts = {"count": 1999, "skipped": 1}
    ema = {"top1": top1, "top5": 0.9925, **counts}
    raw = {"top1": 0.8765, "top5": 0.9815, **counts}
    result = {"ema": ema, "raw": raw, "step": step, "image_size": 28}
    _dump(workdir / "eval.json", {**result, "wall_seconds": wall + 1})


def _dump(path, value):
    path.write_text(json.dumps(value))
