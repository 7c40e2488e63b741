"""pytest tests/train/test_workdir.py

Files of a run: who may write them, what a resume keeps, what a reader makes of damage.
"""

import json
import os

import pytest

from ev2 import errors
from ev2.config import default_config
from ev2.train import workdir
from ev2.train.workdir import Workdir

DATA = {"num_classes": 10, "class_names": ("a", "b")}


def test_another_config_or_other_data_is_named(tmp_path):
    config = default_config()
    workdir.check_resumable(str(tmp_path), config, DATA)
    with Workdir(str(tmp_path), config) as folder:
        folder.write_json("stages.json", {"num_classes": 10, "class_names": ["a", "b"]})
    before = (tmp_path / "config.json").read_text()
    config.log.every_steps = 7  # changes no result
    config.checkpoint.every_steps = 9
    workdir.check_resumable(str(tmp_path), config, DATA)
    config.optimizer.lr = 0.5
    config.progressive.image_size = (64, 96)
    with pytest.raises(errors.InputError) as caught:
        workdir.check_resumable(str(tmp_path), config, {**DATA, "num_classes": 11})
    message = str(caught.value)
    assert "num_classes=11 (there: 10)" in message
    assert "optimizer.lr=0.5 (there: 0.016)" in message
    assert "progressive.image_size=[64, 96]" in message
    assert "seed" not in message
    assert (tmp_path / "config.json").read_text() == before


def test_a_second_process_is_refused(tmp_path):
    config = default_config()
    with Workdir(str(tmp_path), config):
        holder = rf"another process is training in .* \(process {os.getpid()} on "
        with pytest.raises(errors.InputError, match=holder):
            Workdir(str(tmp_path), config)
    with Workdir(str(tmp_path), config):
        pass


def test_unwritable_remote_and_damaged_folders_are_refused(tmp_path):
    config = default_config()
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="workdir: .* cannot be written"):
        Workdir(str(tmp_path / "file" / "run"), config)
    with pytest.raises(errors.InputError, match="not a local folder"):
        workdir.check_resumable("gs://bucket/run", config, {})
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(errors.InputError, match=r"no config\.json"):
        workdir.check_resumable(str(tmp_path), config, {})
    for content in ("{", "[]", '{"config": 1}'):
        (tmp_path / "config.json").write_text(content)
        for read in (workdir.read_run, workdir.read_config):
            with pytest.raises(errors.InputError, match=r"config\.json"):
                read(str(tmp_path))


def test_metrics_after_a_resume_have_no_step_twice(tmp_path, caplog):
    with Workdir(str(tmp_path), default_config()) as folder:
        for step in (10, 20, 30):
            folder.append_metrics({"split": "train", "step": step})
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 40, "lo')  # cut off by a kill
        kept = folder.resume_metrics(20)
        assert [line["step"] for line in kept] == [10, 20]
        assert "Dropped 1 damaged line" in caplog.text
        folder.append_metrics({"split": "train", "step": 30})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]
    run = workdir.read_run(tmp_path)
    assert [line["step"] for line in run.train] == [10, 20, 30] and not run.notes


def test_a_reader_names_damaged_files(tmp_path):
    with Workdir(str(tmp_path), default_config()):
        pass
    for name in ("stages.json", "eval.json", "metrics.jsonl", "confusion.npy"):
        (tmp_path / name).write_text("{")
    run = workdir.read_run(tmp_path)
    assert (run.plan, run.train, run.final, run.confusion) == ({}, [], None, None)
    assert len(run.notes) == 4
