"""What the trials of a search have come to: a row for each candidate."""

from typing import Any

from ev2.sweeps import study as tries


def collect(trials: tries.Trials, retries: int) -> list[dict[str, Any]]:
    """A row for each candidate, as `outcome.write` takes them."""
    grouped = tries.group(trials.read())
    return [
        _row(point, grouped.get(point, []), retries) for point in range(trials.points)
    ]


def _row(point: int, own: list[Any], retries: int) -> dict[str, Any]:
    settled = tries.settled(own, retries)
    shown = settled or (own[-1] if own else None)
    notes = shown.user_attrs if shown else {}
    state = "waiting"
    if settled is not None:
        end = notes.get("end", tries.FAILED)
        state = end if end in (tries.DONE, tries.PRUNED) else tries.FAILED
        if state == tries.DONE and notes.get("reason"):  # it counts as 0
            state = tries.FAILED
    elif shown is not None and shown.state == tries.State.RUNNING:
        state = "running"
    kept = ("reward", "accuracy", "step_seconds", "params", "seconds", "host", "folder")
    if state == tries.FAILED:  # as one whose worker has died too often
        notes = {"reward": 0.0, **notes}
    return {
        "trial": point + 1,
        "arch": notes.get("arch", ""),
        "state": state,
        "reason": notes.get("reason", "") if settled else "",
        "tries": len(own),
        **{key: notes.get(key) for key in kept},
    }
