"""What the job of a trial leaves: scores, its result, why it ended.

Texts may be of files that are not there (None), not whole yet, or damaged.
"""

import json
import math
import os
import pathlib
import re
from typing import Any

_TAIL_BYTES = 8192
_REASON_CHARS = 300


def read(path: pathlib.Path) -> str | None:
    """Returns the text of a file on this machine, None if there is none."""
    return path.read_text(errors="replace") if path.exists() else None


def read_scores(text: str | None, name: str) -> list[float]:
    """Returns `name` of every evaluation in the text of a metrics.jsonl.

    The list ends before a line that is not whole, or a score that is not finite.
    """
    found = []
    for line in (text or "").splitlines(keepends=True):
        try:
            document = json.loads(line) if line.endswith("\n") else {}
        except ValueError:
            break
        if not isinstance(document, dict) or document.get("split") != "eval":
            continue
        score = _look_up(document, name)
        if score is None:
            break
        found.append(score)
    return found


def is_over(stages: str | None, metrics: str | None) -> bool:
    """Whether the last step is done, and only the result is to be written."""
    try:
        last_step = json.loads(stages or "")["stages"][-1]["last_step"]
        lines = (metrics or "").splitlines()
        return json.loads(lines[-1])["step"] >= last_step
    except (ValueError, LookupError, TypeError):
        return False


def read_score(text: str | None, name: str) -> float | None:
    """Returns `name` in the text of an eval.json; None: there is no such number."""
    try:
        return _look_up(json.loads(text or ""), name)
    except ValueError:
        return None


def explain_no_score(text: str | None, name: str) -> str:
    """Returns why `read_score` gives None."""
    try:
        names = _names(json.loads(text or ""))
    except ValueError:
        return "it left no eval.json that can be read"
    if name in names:
        return f"its eval.json has no number as {name!r}"
    return f"its eval.json has no {name!r}; there: {', '.join(names) or 'nothing'}"


def lacks(text: str | None, name: str) -> bool:
    """Whether an eval.json that can be read has other values, but not `name`."""
    try:
        names = _names(json.loads(text or ""))
    except ValueError:
        return False
    return bool(names) and name not in names


def _names(document: Any) -> list[str]:
    """Names such as "ema.top1" of all values but sections."""
    if not isinstance(document, dict):
        return []
    names = []
    for key, value in document.items():
        if isinstance(value, dict):
            names += [f"{key}.{name}" for name in _names(value)]
        else:
            names.append(key)
    return names


def _look_up(document: Any, name: str) -> float | None:
    for part in name.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    if isinstance(document, bool) or not isinstance(document, int | float):
        return None
    return float(document) if math.isfinite(document) else None


def read_reason(log: str, first_byte: int) -> str:
    """The line of a job's log that says why it ended: ev2's own, or the last."""
    with open(log, "rb") as file:
        file.seek(max(os.path.getsize(log) - _TAIL_BYTES, first_byte))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    own = [line for line in lines if line.startswith(("ev2: ", "tpu: "))]
    line = (own or lines or [""])[-1]
    return re.sub(r"^(ev2|tpu): ", "", line)[:_REASON_CHARS]
