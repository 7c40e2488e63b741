"""pytest tests/train/test_logger.py"""

import json

import jax.numpy as jnp
import pytest

from ev2 import progressive
from ev2.train import device_peaks
from ev2.train import logger as logbook
from ev2.train import workdir as run_folder
from tests.helpers import tiny_run as tiny


@pytest.mark.parametrize("peak, share", [(1e3, True), (None, False)])
def test_utilization_is_written_where_the_peak_is_known(
    tmp_path, monkeypatch, peak, share
):
    """Two steps of 500 operations: 1,000 over the seconds, of a peak of 1,000."""
    monkeypatch.setattr(device_peaks, "peak_flops_per_second", lambda kind: peak)
    config = tiny.make_config()
    stages = progressive.make_stages(config, 48)
    folder = run_folder.RunFolder(str(tmp_path), config)
    log = logbook.Logbook(folder, stages, 48, first_step=0)
    sums = {k: jnp.ones(()) for k in ("loss", "l2", "top1", "count", "finite")}
    log.start_stage(stages[0], 0, 500.0)
    log._window_started = 0.0
    monkeypatch.setattr(logbook.time, "monotonic", lambda: 100.0)
    for _ in range(2):
        log.add(stages[0], sums)
    log.write_train(stages[0], 2, 0.1, 0, saved=None)
    log.close()
    folder.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line["images_per_second"] == pytest.approx(2 * 16 / 100)
    assert line.get("mfu") == (pytest.approx(0.01) if share else None)


def test_time_left_does_not_count_compiling(tmp_path):
    """A minute of compiling, then a step in two seconds."""
    config = tiny.make_config()
    stages = progressive.make_stages(config, 48)
    folder = run_folder.RunFolder(str(tmp_path), config)
    log = logbook.Logbook(folder, stages, 48, first_step=0)
    now = log._bar.start_t
    for seconds, call in (
        (60.0, lambda: log.start_stage(stages[0], 0, 0.0)),
        (2.0, lambda: log.add(stages[0], {"loss": jnp.ones(())})),
    ):
        now += seconds
        log._bar._time = lambda now=now: now
        call()
    shown = log._bar.format_dict
    assert shown["elapsed"] == pytest.approx(2.0)
    assert shown["n"] == 16 * stages[0].image_size ** 2
    log.close()
    folder.close()
