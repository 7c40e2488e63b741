"""pytest tests/train/test_workdir.py"""

import json
import os

import pytest

from ev2 import config as defaults
from ev2 import errors
from ev2.train import workdir as run_folder


def test_same_config_again_is_welcome_and_another_is_named(tmp_path):
    config = defaults.get_config()
    run_folder.RunFolder(tmp_path, config).close()
    run_folder.RunFolder(tmp_path, config).close()
    before = (tmp_path / "config.json").read_text()
    config.optimizer.lr = 0.5
    config.progressive.image_size = (64, 96)
    with pytest.raises(errors.InputError) as caught:
        run_folder.RunFolder(tmp_path, config)
    message = str(caught.value)
    assert "optimizer.lr=0.5 (there: 0.016)" in message
    assert "progressive.image_size=[64, 96]" in message
    assert "seed" not in message
    assert (tmp_path / "config.json").read_text() == before


def test_cadence_may_change(tmp_path):
    config = defaults.get_config()
    run_folder.RunFolder(tmp_path, config).close()
    config.log.every_steps = 7
    config.checkpoint.every_steps = 9
    run_folder.RunFolder(tmp_path, config).close()


def test_two_at_once_are_refused(tmp_path):
    first = run_folder.RunFolder(tmp_path, defaults.get_config())
    holder = rf"another process is training in .* \(process {os.getpid()} on "
    with pytest.raises(errors.InputError, match=holder):
        run_folder.RunFolder(tmp_path, defaults.get_config())
    first.close()
    run_folder.RunFolder(tmp_path, defaults.get_config()).close()


def test_unwritable_and_unreadable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="workdir"):
        run_folder.RunFolder(tmp_path / "file" / "run", defaults.get_config())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.InputError, match=r"config\.json"):
        run_folder.RunFolder(tmp_path, defaults.get_config())


def test_metrics_after_a_restart_have_no_step_twice(tmp_path):
    folder = run_folder.RunFolder(tmp_path, defaults.get_config())
    for step in (10, 20, 30):
        folder.append_metrics({"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')  # cut off by a kill
    folder.drop_metrics_after(20)
    folder.append_metrics({"step": 30})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]
    folder.close()
