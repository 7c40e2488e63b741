"""Corrupt checkpoints of a run are quarantined and the previous one is used."""

import pathlib

import jax.numpy as jnp
import pytest

from ev2 import errors
from ev2.checkpoint import integrity, manager

STATE = {"step": jnp.zeros((), jnp.int32), "weights": jnp.zeros(5000)}


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoints of steps 2, 4 and 6."""
    checkpoints = manager.Checkpoints(str(tmp_path), keep=3)
    for step in (2, 4, 6):
        state = {"step": jnp.asarray(step), "weights": jnp.full(5000, 0.1 * step)}
        checkpoints.save(state, step, {"model": {}})
    checkpoints.close()
    return tmp_path


def open_checkpoints(run):
    integrity.quarantine(str(run))
    return manager.Checkpoints(str(run), keep=3)


def largest_file(step: pathlib.Path) -> pathlib.Path:
    files = [path for path in (step / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(step):
    path = largest_file(step)
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(step):
    path = largest_file(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty_metrics(step):
    (step / "metrics" / "metrics").write_text("")


def read_files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    "damage, reason",
    [
        (truncate, "has changed"),
        (flip_a_bit, "has changed"),
        (lambda step: largest_file(step).unlink(), "No such file"),
        (lambda step: (step / "meta/metadata").unlink(), "meta/metadata: No such file"),
        (lambda step: (step / "sums.json").unlink(), "sums.json: No such file"),
        (lambda step: (step / "sums.json").write_text('{"state/_M": [1'), "truncated"),
        (lambda step: (step / "sums.json").write_text("[1]"), "truncated"),
        (empty_metrics, "metrics/metrics has changed"),
    ],
)
def test_a_corrupt_newest_checkpoint_is_quarantined(run, damage, reason, caplog):
    step = run / "checkpoints" / "6"
    damage(step)
    content = read_files(step)
    checkpoints = open_checkpoints(run)
    assert checkpoints.latest_step() == 4
    assert int(checkpoints.restore(4, STATE)["step"]) == 4
    checkpoints.close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "step 6 is corrupt" in line and reason in line and "from step 4" in line
    quarantined = run / "damaged" / "6"
    assert not step.exists() and str(quarantined) in line
    assert read_files(quarantined) == content


def test_an_older_checkpoint_is_quarantined_for_corrupt_scores_alone(run, caplog):
    empty_metrics(run / "checkpoints" / "2")
    truncate(run / "checkpoints" / "4")  # its scores can be read
    checkpoints = open_checkpoints(run)
    assert checkpoints.latest_step() == 6
    (line,) = [record.getMessage() for record in caplog.records]
    assert "step 2 is corrupt" in line and "from step 6" in line
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"4", "6"}
    # A checkpoint that was not verified at the start is verified when it is restored.
    with pytest.raises(errors.InputError, match="4' is corrupt .*has changed"):
        checkpoints.restore(4, STATE)
    checkpoints.close()


def test_quarantined_checkpoints_do_not_replace_each_other(run):
    for _ in range(2):
        truncate(run / "checkpoints" / "6")
        checkpoints = open_checkpoints(run)
        checkpoints.save(STATE, 6, {"model": {}})
        checkpoints.close()
    assert {p.name for p in (run / "damaged").iterdir()} == {"6", "6-2"}


def test_without_an_intact_checkpoint_nothing_is_moved(run):
    for step in ("2", "4", "6"):
        truncate(run / "checkpoints" / step)
    with pytest.raises(errors.InputError, match="6' is corrupt .* and so is every"):
        integrity.quarantine(str(run))
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"2", "4", "6"}
    assert not (run / "damaged").exists()


def test_a_state_of_another_shape_is_refused_in_one_line(run):
    checkpoints = open_checkpoints(run)
    with pytest.raises(errors.InputError, match="cannot be read") as error:
        checkpoints.restore(6, {**STATE, "more": jnp.zeros(3)})
    assert "\n" not in str(error.value)
    checkpoints.close()
