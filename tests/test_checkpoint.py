"""pytest tests/test_checkpoint.py

Which checkpoints are kept, and what is said of them.
"""

import jax.numpy as jnp

from ev2 import checkpoint


def _save(workdir, scores, *, keep):
    """Saves a state per item of `scores`, its EMA top-1; returns the steps kept."""
    checkpoints = checkpoint.Checkpoints(str(workdir), keep=keep)
    for step, top1 in scores.items():
        state = {"step": jnp.asarray(step)}
        checkpoints.save(state, step, {"model": {}}, ema_top1=top1)
    latest = checkpoints.latest_step()
    checkpoints.close()
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    assert latest == kept[-1]
    return kept


def test_the_newest_and_the_best_are_kept(tmp_path, caplog):
    first = {10: 0.5, 20: None, 30: 0.9, 40: None, 50: 0.7, 60: None}
    assert _save(tmp_path, first, keep=2) == [30, 50, 60]
    # After a restart the best of before is still known, until there is a better one.
    assert _save(tmp_path, {70: 0.8, 80: None}, keep=2) == [30, 70, 80]
    assert _save(tmp_path, {90: 0.95, 100: None}, keep=1) == [90, 100]
    assert not caplog.records, caplog.text


def test_without_an_evaluation_the_newest_are_kept(tmp_path):
    assert _save(tmp_path, dict.fromkeys((1, 2, 3, 4)), keep=2) == [3, 4]
