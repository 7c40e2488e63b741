"""pytest tests/train/test_early_stopping.py

Runs that end when evaluations bring nothing better, and what is kept of them.
"""

import json

import pytest

from ev2 import errors
from ev2.checkpoint import pretrained
from ev2.evaluation import evaluate
from ev2.train import early_stopping as watch
from ev2.train import logger as logbook
from ev2.train import loop as train
from tests.helpers import tiny_run as tiny


@pytest.mark.parametrize(
    ("scores", "patience", "over"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.5], 1, True),  # as good is not better
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.6], 2, False),
        ([0.6, 0.4, 0.5], 2, True),
        ([0.6, 0.4, 0.5], 0, False),
    ],
)
def test_when_a_run_is_over(scores, patience, over):
    assert watch.is_over(scores, patience) == over


SCORES = (0.2, 0.6, 0.4, 0.3, 0.9)  # of the evaluations, in order: over after four


def _config(**changes):
    # An evaluation every second step.
    changes = {"eval.patience": 2, "eval.every_epochs": 2 / 3, **changes}
    changes |= {"steps": 12, "progressive.schedule": "fixed", "checkpoint.keep": 1}
    return tiny.make_config(**changes)


@pytest.fixture
def scored(monkeypatch):
    """Evaluations take those scores in place of their own."""
    left, really = list(SCORES), evaluate.evaluate

    def scripted(*args, **kwargs):
        results = really(*args, **kwargs)
        if raw := results.get("raw"):
            raw["top1"] = left.pop(0) if left else -1.0
        return results

    monkeypatch.setattr(evaluate, "evaluate", scripted)
    return left


@pytest.mark.slow
def test_a_stopped_run_gives_its_best_after_a_kill_too(tmp_path, scored, monkeypatch):
    config = _config(**{"eval.metric": "raw.top1", "data.num_eval_images": 19})
    add = logbook.Logger.add
    added = []

    def add_or_stop(self, stage, sums):
        add(self, stage, sums)
        added.append(1)
        if len(added) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(logbook.Logger, "add", add_or_stop)
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(config, str(tmp_path))
    assert len(scored) == 2  # three are done, at steps 2, 4 and 6
    results = train.train_and_evaluate(config, str(tmp_path))
    assert (results["step"], results["trained_steps"]) == (4, 8)
    assert results == json.loads((tmp_path / "eval.json").read_text())
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert kept == [4, 8]
    assert pretrained.find(str(tmp_path)) == tmp_path / "checkpoints/4"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [x["step"] for x in lines if x["split"] == "eval"] == [2, 4, 6, 8]
    # Again: nothing is trained, and the same is found.
    scored[:] = []
    again = train.train_and_evaluate(config, str(tmp_path))
    assert (again["step"], again["ema"]) == (4, results["ema"])
    exact = evaluate.evaluate_checkpoint(str(tmp_path))
    assert exact["top1"] == again["ema"]["top1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.patience": -1}, "eval.patience: -1"),
        ({"eval.metric": "ema.loss"}, "eval.metric: 'ema.loss' is not allowed"),
        ({"eval.metric": "ema.map"}, "eval.metric: 'ema.map' is not allowed"),
        ({"eval.split": "minival"}, "eval.split: 'minival' is not allowed"),
        ({"checkpoint.keep_best": 0}, "checkpoint.keep_best: 0"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, changes, message):
    with pytest.raises(errors.InputError, match=f"^{message}"):
        train.train_and_evaluate(tiny.make_config(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
