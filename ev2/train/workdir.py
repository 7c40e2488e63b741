"""Files of a run beside its checkpoints, with one writer and one reader.

    config.json    the config and the versions of the libraries, written first
    stages.json    the plan, the data's counts and classes, what each stage took
    metrics.jsonl  one line per log interval and per evaluation
    eval.json      the result, written last; confusion.npy beside it

Process 0 alone writes. A run may be killed at any moment, so that readers find files
missing or a last line cut.
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from ev2 import errors, files
from ev2.data import imagenet_classes

_PACKAGES = "ev2 jax jaxlib flax optax orbax-checkpoint tensorflow".split()
# Keys that may change when a run is resumed: they decide what is kept and printed, not
# what is computed.
_FREE_KEYS = (
    *("log.", "checkpoint.", "data.workers", "eval.batch_size"),
    "progressive.prepare_ahead",
    "stall_seconds",
)
Record = dict[str, Any]


class Workdir:
    """Writes a run's files; holds its folder against a second process while open.

    Attributes:
        path: the folder.
        writes: False on processes that leave the files to process 0.
    """

    def __init__(self, workdir: str, config: ConfigDict, *, writes: bool = True):
        """Takes the folder, creating it if need be; see `check_resumable`.

        Raises:
            InputError: the folder cannot be written, or another process trains in it.
        """
        self.path = pathlib.Path(workdir).absolute()
        self.writes = writes
        self._started = time.monotonic()
        self._seconds_before = 0.0
        if writes:
            self._lock = self._take_lock()
            if not (self.path / "config.json").exists():
                document = {"config": _jsonable(config), "versions": versions()}
                self.write_json("config.json", document)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *error: object) -> None:
        if self.writes:
            self._lock.close()

    def _take_lock(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a+")
        except OSError as error:
            raise errors.InputError(
                f"workdir: {str(self.path)!r} cannot be written ({error.strerror}); "
                "choose a folder you may write to"
            ) from error
        try:
            # The kernel drops this lock with the process, so it is never stale.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read(200).strip() or "unknown"
            lock.close()
            raise errors.InputError(
                f"workdir: another process is training in {str(self.path)!r} "
                f"({holder}); wait for it, stop it, or choose another folder"
            ) from error
        with contextlib.suppress(OSError):  # a full disk; the line is for people alone
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}\n")
            lock.flush()
        return lock

    @property
    def wall_seconds(self) -> float:
        """Seconds spent on this run, earlier starts included."""
        return self._seconds_before + time.monotonic() - self._started

    def resume_metrics(self, step: int) -> list[Record]:
        """Drops the lines of metrics.jsonl after `step`; returns the lines kept.

        Those steps are taken again. Returns no lines on a process that does not write.
        """
        if not self.writes:
            return []
        lines, damaged = read_metrics(self.path / "metrics.jsonl")
        if damaged:
            logging.warning("Dropped %d damaged line(s) of metrics.jsonl.", damaged)
        kept = [line for line in lines if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        self._write("metrics.jsonl", text.encode())
        seconds = (line.get("wall_seconds", 0.0) for line in lines)
        self._seconds_before = max(seconds, default=0.0)
        return kept

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl, with the seconds so far."""
        if self.writes:
            line = {**line, "wall_seconds": round(self.wall_seconds, 3)}
            with self._explained("metrics.jsonl"):
                with open(self.path / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")

    def write_json(self, name: str, document: Any) -> None:
        """Writes `document` as the file `name`, replacing it in one move."""
        self._write(name, (json.dumps(document, indent=1) + "\n").encode())

    def write_result(self, result: Record, confusion: np.ndarray | None) -> None:
        """Writes confusion.npy, if there is one, and then eval.json."""
        if confusion is not None:
            buffer = io.BytesIO()
            np.save(buffer, confusion)
            self._write("confusion.npy", buffer.getvalue())
        self.write_json("eval.json", result)

    def _write(self, name: str, content: bytes) -> None:
        if self.writes:
            with self._explained(name):
                files.write_atomically(self.path / name, content)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.StoppedError(
                f"workdir: {str(self.path / name)!r} cannot be written "
                f"({error.strerror}); checkpoints stay, and the same command resumes "
                "the run"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Contents of a run's files; what is not written yet is empty or None.

    Attributes:
        workdir: the folder.
        config: the nested config of the run, tuples as lists.
        versions: package name to version.
        plan: stages.json: model, counts, class names and the list "stages".
        train: training lines of metrics.jsonl in order of steps, one per step.
        evals: evaluation lines, likewise.
        final: eval.json.
        confusion: `[classes, classes] int64`, rows true, columns predicted.
        notes: sentences about files that could not be read.
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
        """Name of the data, or else the last part of its path."""
        data = self.config["data"]
        name = data["name"] or pathlib.PurePath(data["path"]).name
        return f"{name} ({data['source']})" if name else data["source"]

    @property
    def wall_seconds(self) -> float:
        """Seconds of training and evaluation, as far as they were recorded."""
        last = [self.final or {}, *self.train[-1:], *self.evals[-1:]]
        return max(line.get("wall_seconds", 0.0) for line in last)

    @property
    def class_names(self) -> list[str]:
        """One name for each class; numbers where the run has no names."""
        given = self.plan.get("class_names") or []
        names = [imagenet_classes.readable(name) for name in given]
        classes = self.plan.get("num_classes", 0)
        if self.confusion is not None:
            classes = max(classes, len(self.confusion))
        return [*names, *(str(i) for i in range(len(names), classes))]


def read_run(workdir: str | os.PathLike) -> Run:
    """Returns the run in `workdir`, finished or not.

    Raises:
        InputError: the folder or its config.json is missing or damaged.
    """
    path = pathlib.Path(workdir)
    config = read_config(path)
    if config is None:
        raise errors.InputError(
            f"workdir: '{path}' is not a run (it has no config.json); give the folder "
            "that `ev2 train --workdir` wrote"
        )
    notes: list[str] = []

    def read(name: str) -> Record | None:
        try:
            return read_json(path / name)
        except errors.InputError:
            notes.append(f"{name} is damaged and was left out.")
            return None

    lines, damaged = read_metrics(path / "metrics.jsonl")
    if damaged:
        notes.append(f"{damaged} damaged line(s) of metrics.jsonl were left out.")
    return Run(
        workdir=path,
        config=config,
        versions=(read("config.json") or {}).get("versions", {}),
        plan=read("stages.json") or {},
        train=[line for line in lines if line["split"] == "train"],
        evals=[line for line in lines if line["split"] == "eval"],
        final=read("eval.json"),
        confusion=_read_confusion(path / "confusion.npy", notes),
        notes=notes,
    )


def read_metrics(path: pathlib.Path) -> tuple[list[Record], int]:
    """Returns the lines of a metrics.jsonl, and the number of damaged ones.

    Lines are in order of steps. Of a step logged twice, as by a run that was killed and
    resumed, the later line counts. A kill can cut the last line.
    """
    lines: dict[tuple[int, str], Record] = {}
    damaged = 0
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            lines[line["step"], line["split"]] = line
        except (ValueError, KeyError, TypeError):
            damaged += 1
    # "train" before "eval" of the same step, as they are written.
    order = sorted(lines, key=lambda key: (key[0], key[1] == "eval"))
    return [lines[key] for key in order], damaged


def read_json(path: pathlib.Path) -> Record | None:
    """Returns the JSON object in a file, None if there is no file.

    Raises:
        InputError: it is damaged.
    """
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(document, dict):
        raise _damaged(path)
    return document


def _damaged(path: pathlib.Path) -> errors.InputError:
    return errors.InputError(
        f"workdir: {str(path)!r} cannot be read or is damaged; restore it or choose "
        "another folder"
    )


def read_config(workdir: str | os.PathLike) -> Record | None:
    """Returns the config of the run in `workdir`, None if there is no run.

    Raises:
        InputError: its file is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    document = read_json(path)
    if document is None:
        return None
    if not isinstance(document.get("config"), dict):
        raise _damaged(path)
    return document["config"]


def _read_confusion(path: pathlib.Path, notes: list[str]) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        confusion = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return None
    return confusion if confusion.any() else None


def check_resumable(workdir: str, config: ConfigDict, data: Mapping[str, Any]) -> None:
    """Raises InputError if `workdir` holds a run of another config or other data.

    Writes nothing.

    Args:
        workdir: the folder of a run, or one to be made.
        config: the run's config.
        data: counts and class names that stages.json must agree with.
    """
    path = pathlib.Path(workdir)
    if "://" in str(workdir):
        raise errors.InputError(
            f"workdir: {str(workdir)!r} is not a local folder; give a folder on a disk "
            "of this machine"
        )
    saved, stages = read_config(path), read_json(path / "stages.json")
    if saved is None:
        if (path / "checkpoints").is_dir():
            raise errors.InputError(
                f"workdir: {str(path)!r} has checkpoints but no config.json to say "
                "of what run; choose another folder"
            )
        return
    before, now = flatten(saved, "."), flatten(_jsonable(config), ".")
    if stages is not None:
        now |= _jsonable(dict(data))
        before |= {key: stages.get(key) for key in data}
    differing = [
        f"{key}={now.get(key)!r} (there: {before.get(key)!r})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_FREE_KEYS)
    ]
    if differing:
        raise errors.InputError(
            f"workdir: {str(path)!r} holds a run of another config; it differs in "
            f"{', '.join(differing)}; choose another folder or the same config"
        )


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def flatten(
    tree: Mapping[str, Any], separator: str, prefix: str = ""
) -> dict[str, Any]:
    """Returns the leaves of nested dicts by `prefix` and their keys, joined."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _jsonable(config: Any) -> dict[str, Any]:
    """The config as JSON gives it back: tuples are lists."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.loads(json.dumps(plain))
