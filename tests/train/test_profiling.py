"""pytest tests/train/test_profiling.py"""

import pytest

from ev2 import errors
from ev2.train import loop as train
from ev2.train import profiling
from tests.helpers import tiny_run as tiny


def test_steps_are_first_and_last():
    assert profiling.parse_steps("100:110") == range(100, 110)
    assert not profiling.parse_steps(None)


@pytest.mark.parametrize("text", ["", "5", "5:5", "7:5", "a:b", "-1:3", "1:2:3"])
def test_other_forms_are_refused(text):
    with pytest.raises(errors.InputError, match="profile: .*FIRST:LAST"):
        profiling.parse_steps(text)


@pytest.mark.parametrize(
    "steps, started, stopped",
    [(range(0), [], []), (range(3, 5), [3], [4]), (range(6, 99), [6], ["end"])],
)
def test_chosen_steps_are_recorded(tmp_path, monkeypatch, steps, started, stopped):
    seen = {"start": [], "stop": []}
    now = "end"
    monkeypatch.setattr(
        profiling.jax.profiler, "start_trace", lambda folder: seen["start"].append(now)
    )
    monkeypatch.setattr(
        profiling.jax.profiler, "stop_trace", lambda: seen["stop"].append(now)
    )
    profiler = profiling.Profiler(str(tmp_path), steps)
    for now in range(8):
        profiler.before(now)
        profiler.after(now, None)
    now = "end"
    profiler.close()
    assert seen == {"start": started, "stop": stopped}


@pytest.mark.slow
def test_a_run_writes_its_profile(tmp_path):
    train.train_and_evaluate(tiny.make_config(), str(tmp_path), profile=range(1, 3))
    assert list((tmp_path / profiling.FOLDER).rglob("*.xplane.pb"))
