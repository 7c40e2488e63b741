"""pytest tests/train/test_logger.py

Throughput, utilization and time left, on a clock that the test sets.
"""

import jax.numpy as jnp
import pytest

from ev2.train import logger, setup
from ev2.train.next_stage import ReadyStage
from ev2.train.workdir import Workdir
from tests.helpers import tiny_run


@pytest.mark.parametrize(("peak", "mfu"), [(1e3, 0.01), (None, None)])
def test_throughput(monkeypatch, peak, mfu):
    """Two steps of 16 images and 500 FLOPs in 100 s, 25 s of them waiting for data."""
    now = [0.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    meter = logger.ThroughputMeter(num_devices=4, peak_flops=peak)

    def batches():
        for _ in range(2):
            now[0] += 12.5
            yield "batch"

    for _ in meter.timed(batches()):
        now[0] += 37.5
    rates = meter.read(2, 16, 500.0)
    assert rates["images_per_second"] == pytest.approx(2 * 16 / 100)
    assert rates["images_per_second_per_device"] == pytest.approx(2 * 16 / 100 / 4)
    assert rates["data_wait_share"] == pytest.approx(0.25)
    assert rates.get("mfu") == (pytest.approx(mfu) if mfu else None)
    assert "mfu" not in meter.read(2, 16, 0.0)


def test_time_left_does_not_count_compiling(tmp_path):
    """A minute of compiling, then a step in two seconds."""
    config = tiny_run.make_config()
    run = setup.set_up(config, str(tmp_path))
    ready = ReadyStage(run.stages[0], 0, None, 0.0, 60.0, batches=())
    with Workdir(str(tmp_path), run.config) as folder:
        with logger.Logger(folder, run, start=0, num_params=1) as log:
            bar = log._bar
            now = bar.start_t
            for seconds, call in (
                (60.0, lambda: log.start_stage(ready)),
                (2.0, lambda: log.add(run.stages[0], {"loss": jnp.ones(())})),
            ):
                now += seconds
                bar._time = lambda now=now: now
                call()
            shown = bar.format_dict
    assert shown["elapsed"] == pytest.approx(2.0)
    assert shown["n"] == 16 * run.stages[0].image_size ** 2
