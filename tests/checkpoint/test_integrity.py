"""python -m pytest tests/checkpoint/test_integrity.py

Damaged checkpoints of a run: found out, set aside, and the one before taken.
"""

import pathlib

import jax.numpy as jnp
import pytest

from ev2 import errors
from ev2.checkpoint import integrity as intact
from ev2.checkpoint import manager as checkpoint


@pytest.fixture
def run(tmp_path):
    """A run's folder with the checkpoints of steps 2, 4 and 6; more can be saved."""
    checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=3)
    for step in (2, 4, 6):
        state = {"step": jnp.asarray(step), "weights": jnp.full(5000, 0.1 * step)}
        checkpoints.save(state, step, {"model": {}})
    checkpoints.close()
    return tmp_path


def _largest(step: pathlib.Path) -> pathlib.Path:
    files = [path for path in (step / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def _cut(step):
    path = _largest(step)
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(step):
    path = _largest(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _remove_one(step):
    _largest(step).unlink()


def _half_move(step):
    (step / "meta" / "metadata").unlink()
    (step / intact._SUMS).unlink()


def _cut_sums(step):
    (step / intact._SUMS).write_text('{"state/_METADATA": [1')


def _empty_metrics(step):
    (step / "metrics" / "metrics").write_text("")


DAMAGES = (
    (_cut, "bytes of"),
    (_flip_a_bit, "is not what was written"),
    (_remove_one, "is missing"),
    (_half_move, "meta/metadata is missing"),
    (_cut_sums, "sums.json is cut"),
    (_empty_metrics, "0 bytes of"),
)


@pytest.mark.parametrize("damage, reason", DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_taken(run, damage, reason, caplog):
    step = run / "checkpoints" / "6"
    damage(step)
    files = {
        p.relative_to(step): p.read_bytes() for p in step.rglob("*") if p.is_file()
    }
    checkpoints = checkpoint.Checkpoints(str(run), keep=3)
    assert checkpoints.latest_step() == 4
    assert int(checkpoints.restore(4, _shapes())["step"]) == 4
    checkpoints.close()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "step 6 is damaged" in said and reason in said and "from step 4" in said
    aside = run / "damaged" / "6"
    assert not step.exists() and str(aside) in said
    assert files == {
        p.relative_to(aside): p.read_bytes() for p in aside.rglob("*") if p.is_file()
    }


def _shapes():
    return {"step": jnp.zeros((), jnp.int32), "weights": jnp.zeros(5000)}


def test_an_older_one_with_damaged_scores_is_set_aside_as_well(run, caplog):
    _empty_metrics(run / "checkpoints" / "2")
    _cut(run / "checkpoints" / "4")  # its scores can be read: not looked at
    checkpoints = checkpoint.Checkpoints(str(run), keep=3)
    assert checkpoints.latest_step() == 6
    checkpoints.close()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "step 2 is damaged" in said and "from step 6" in said
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"4", "6"}


def test_damaged_ones_do_not_replace_each_other(run):
    for _ in range(2):
        _cut(run / "checkpoints" / "6")
        checkpoints = checkpoint.Checkpoints(str(run), keep=3)
        checkpoints.save(_shapes(), 6, {"model": {}})
        checkpoints.close()
    assert {p.name for p in (run / "damaged").iterdir()} == {"6", "6-2"}


def test_without_an_intact_one_nothing_is_moved(run):
    for step in ("2", "4", "6"):
        _cut(run / "checkpoints" / step)
    with pytest.raises(
        errors.InputError, match="6' is damaged .* there is none before"
    ):
        checkpoint.Checkpoints(str(run), keep=3)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"2", "4", "6"}
    assert not (run / "damaged").exists()


def test_checkpoints_of_before_there_were_sums_are_taken(run):
    for step in ("2", "4", "6"):
        (run / "checkpoints" / step / intact._SUMS).unlink()
    checkpoints = checkpoint.Checkpoints(str(run), keep=3)
    assert int(checkpoints.restore(6, _shapes())["step"]) == 6
    checkpoints.close()


def test_what_cannot_be_read_is_one_line(run):
    checkpoints = checkpoint.Checkpoints(str(run), keep=3)
    with pytest.raises(errors.InputError, match="cannot be read") as error:
        checkpoints.restore(6, {**_shapes(), "more": jnp.zeros(3)})
    assert "\n" not in str(error.value)
    checkpoints.close()
