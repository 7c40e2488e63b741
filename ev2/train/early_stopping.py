"""What the evaluations of a run say: how good each was, and when to stop."""

from collections.abc import Sequence
from typing import Any

WEIGHTS = ("ema", "raw")
MEASURES = ("top1", "top5", "map")
METRICS = tuple(f"{name}.{measure}" for name in WEIGHTS for measure in MEASURES)


def score(results: dict[str, Any], metric: str) -> float:
    """Returns the value of a metric, one of `METRICS`; higher is better."""
    name, measure = metric.split(".")
    return float(results[name][measure])


def is_over(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations brought nothing better than before.

    Args:
      scores: of all evaluations of the run, in order.
      patience: 0 = a run is never over before its last step.
    """
    if patience == 0 or len(scores) <= patience:
        return False
    return max(scores[-patience:]) <= max(scores[:-patience])
