"""The checkpoints of a run that are kept: the newest and the best."""

import jax.numpy as jnp

from ev2.checkpoint import manager


def save(workdir, scores, **keep):
    """Saves a state per item of `scores`; returns the steps kept."""
    checkpoints = manager.Checkpoints(str(workdir), **keep)
    for step, score in scores.items():
        state = {"step": jnp.asarray(step)}
        checkpoints.save(state, step, {"model": {}}, score=score)
    latest = checkpoints.latest_step()
    checkpoints.close()
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    assert latest == kept[-1]
    return kept


def test_the_newest_and_the_best_are_kept(tmp_path, caplog):
    first = {10: 0.5, 20: None, 30: 0.9, 40: None, 50: 0.7, 60: None}
    assert save(tmp_path, first, keep=2) == [30, 50, 60]
    # After a restart the earlier best is kept until there is a better one.
    assert save(tmp_path, {70: 0.8, 80: None}, keep=2) == [30, 70, 80]
    assert save(tmp_path, {90: 0.95, 100: None}, keep=1) == [90, 100]
    assert not caplog.records, caplog.text


def test_several_of_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.9, 5: 0.1, 6: None}
    assert save(tmp_path, scores, keep=1, keep_best=3) == [2, 3, 4, 6]
    checkpoints = manager.Checkpoints(str(tmp_path), keep=1, keep_best=3)
    assert checkpoints.best_step() == 4  # of equal ones the latest
    assert checkpoints.read_metadata(4) == {"model": {}}
    checkpoints.close()


def test_without_an_evaluation_the_newest_are_kept(tmp_path):
    assert save(tmp_path, dict.fromkeys((1, 2, 3, 4)), keep=2) == [3, 4]
