"""Ends a run when evaluations no longer improve, and picks the metric that decides."""

from collections.abc import Sequence
from typing import Any

METRICS = ("ema.top1", "ema.top5", "raw.top1", "raw.top5")


def score(results: dict[str, Any], metric: str) -> float:
    """Returns the value of a metric, one of `METRICS`; higher is better."""
    weights, measure = metric.split(".")
    return float(results[weights][measure])


def is_over(scores: Sequence[float], patience: int) -> bool:
    """Returns True if none of the last `patience` scores beats those before them.

    Args:
        scores: all evaluations of the run, in order.
        patience: 0 = a run is never over before its last step.
    """
    if patience == 0 or len(scores) <= patience:
        return False
    return max(scores[-patience:]) <= max(scores[:-patience])
