"""Reads what a training run left in its folder: values in, nothing written.

A run may have been killed at any moment: only `config.json` must be there.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from ev2 import errors
from ev2.data import imagenet_classes

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All that is known of a run; what was not written yet is empty or None.

    Attributes:
        workdir: The folder.
        config: The nested config of the run, tuples as lists.
        versions: Package name to version.
        plan: `stages.json`: model, counts, class names and the rows "stages".
        train: Training records of `metrics.jsonl`, in order of steps, one per step.
        evals: Evaluation records, likewise.
        final: `eval.json`, the evaluation at the end.
        confusion: `[classes, classes] int64`, rows true, columns predicted.
        notes: Sentences about files that could not be read.
    """

    workdir: pathlib.Path
    config: Record
    versions: Record
    plan: Record
    train: list[Record]
    evals: list[Record]
    final: Record | None
    confusion: np.ndarray | None
    notes: list[str]

    @property
    def stages(self) -> list[Record]:
        return self.plan.get("stages", [])

    @property
    def model(self) -> str:
        return self.config["model"]["name"]

    @property
    def dataset(self) -> str:
        """The name of the data, or else the last part of its path."""
        data = self.config["data"]
        name = data["name"] or pathlib.PurePath(data["path"]).name
        return f"{name} ({data['source']})" if name else data["source"]

    @property
    def wall_seconds(self) -> float:
        """Seconds of training and evaluation, as far as they were recorded."""
        last = [self.final or {}, *self.train[-1:], *self.evals[-1:]]
        return max(record.get("wall_seconds", 0.0) for record in last)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes for people; numbers where the run has no names."""
        given = self.plan.get("class_names") or []
        names = [imagenet_classes.readable(name) for name in given]
        classes = self.plan.get("num_classes", 0)
        if self.confusion is not None:
            classes = max(classes, len(self.confusion))
        return [*names, *(str(i) for i in range(len(names), classes))]


def read(workdir: str | pathlib.Path) -> Run:
    """Returns the run in `workdir`.

    Raises:
        errors.InputError: The folder or its `config.json` is missing or unreadable.
    """
    workdir = pathlib.Path(workdir)
    notes: list[str] = []
    written = _read_config(workdir)
    plan = _read_json(workdir / "stages.json", notes) or {}
    train, evals = _read_metrics(workdir / "metrics.jsonl", notes)
    return Run(
        workdir=workdir,
        config=written["config"],
        versions=written.get("versions", {}),
        plan=plan,
        train=train,
        evals=evals,
        final=_read_json(workdir / "eval.json", notes),
        confusion=_read_confusion(workdir / "confusion.npy", notes),
        notes=notes,
    )


def _read_config(workdir: pathlib.Path) -> Record:
    hint = "give the folder that `ev2 train --workdir` wrote"
    path = workdir / "config.json"
    if not path.is_file():
        raise errors.InputError(
            f"workdir: '{workdir}' is not a run (it has no config.json); {hint}"
        )
    try:
        written = json.loads(path.read_text())
        if isinstance(written["config"], dict):
            return written
    except (ValueError, KeyError, TypeError):
        pass
    raise errors.InputError(
        f"workdir: '{path}' is not the config.json of a run; {hint}"
    )


def _read_json(path: pathlib.Path, notes: list[str]) -> Record | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        notes.append(f"{path.name} could not be read: {error}")
        return None


def _read_metrics(
    path: pathlib.Path, notes: list[str]
) -> tuple[list[Record], list[Record]]:
    """Training and evaluation records; of a step logged twice, the later one.

    A run that was killed and resumed repeats the steps since its last checkpoint,
    and may have left half a line.
    """
    records: dict[str, dict[int, Record]] = {"train": {}, "eval": {}}
    torn = 0
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            records[record["split"]][record["step"]] = record
        except (ValueError, KeyError, TypeError):
            torn += 1
    if torn:
        notes.append(f"{torn} incomplete line(s) of {path.name} were left out.")
    train, evals = ([rows[s] for s in sorted(rows)] for rows in records.values())
    return train, evals


def _read_confusion(path: pathlib.Path, notes: list[str]) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        confusion = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return None
    return confusion if confusion.any() else None
