"""The files of a run beside its checkpoints: config, stages, metrics, results.

Only process 0 of a run writes them.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ev2 import errors, files

_VERSIONS_OF = "ev2 jax jaxlib flax optax orbax-checkpoint tensorflow".split()
# Keys that may change between a run and its continuation: they say what is kept and
# printed, not what is computed.
_FREE_KEYS = (
    *("log.", "checkpoint.", "data.workers", "eval.batch_size"),
    "progressive.prepare_ahead",
    "stall_seconds",
)


class RunFolder:
    """One run's folder, locked against a second process for as long as it is open.

    Attributes:
      path: the folder.
      writes: whether this process writes here.
    """

    def __init__(self, workdir: str, config: ConfigDict, *, writes: bool = True):
        """Opens `workdir` for a run of `config`, creating it if need be.

        Args:
          workdir: the folder.
          config: the run's config.
          writes: False on processes that only check, and leave the files alone.

        Raises:
          InputError: the folder cannot be written, another process is training in
            it, or it holds a run of another config (the keys are named).
        """
        self.path = pathlib.Path(workdir).absolute()
        self.writes = writes
        self._started = time.monotonic()
        self._seconds_before = 0.0
        refuse_other_run(workdir, config)
        if not writes:
            return
        self._lock = self._take_lock()
        if not (self.path / "config.json").exists():
            document = {"config": _plain(config), "versions": versions()}
            self.write_json("config.json", document)
        self._seconds_before = max(
            (line["wall_seconds"] for line in self.metrics()), default=0.0
        )

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
        with contextlib.suppress(OSError):  # a full disk; it is for people alone
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}\n")
            lock.flush()
        return lock

    def close(self) -> None:
        """Gives the folder free for other processes."""
        if self.writes:
            self._lock.close()

    def write_json(self, name: str, document: Any) -> None:
        """Writes `document` as the file `name`, replacing it in one move."""
        self.write_bytes(name, (json.dumps(document, indent=1) + "\n").encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes `content` as the file `name`, replacing it in one move."""
        if self.writes:
            with self._explained(name):
                files.write_atomically(self.path / name, content)

    def read_json(self, name: str) -> Any:
        """Returns the object in the file `name`, or None if it does not exist."""
        return read_object(self.path / name)

    @property
    def wall_seconds(self) -> float:
        """Seconds this run has been worked on, earlier starts included."""
        return self._seconds_before + time.monotonic() - self._started

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl, with the seconds so far."""
        if self.writes:
            line = {**line, "wall_seconds": round(self.wall_seconds, 3)}
            with self._explained("metrics.jsonl"):
                with open(self.path / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.StoppedError(
                f"workdir: {str(self.path / name)!r} cannot be written "
                f"({error.strerror}); what was saved stays, and the same command goes "
                "on from there"
            ) from error

    def drop_metrics_after(self, step: int) -> None:
        """Removes the lines of steps that will be taken again after a restart."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        self.write_bytes("metrics.jsonl", text.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl; a last line cut off by a kill is left out.

        None where this process does not write: the other may be writing just now.
        """
        if not self.writes:
            return []
        path = self.path / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        try:
            whole = text[: text.rfind("\n") + 1].splitlines()
            lines = [json.loads(line) for line in whole]
            _ = [(line["step"], line["wall_seconds"]) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path) from error
        return lines


def read_config(workdir: str) -> dict[str, Any] | None:
    """Returns the config of the run in `workdir`, or None if there is no run.

    Raises:
      InputError: its file is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    saved = read_object(path)
    if saved is None:
        return None
    if not isinstance(saved.get("config"), dict):
        raise _damaged(path)
    return saved["config"]


def read_result(workdir: str) -> dict[str, Any] | None:
    """Returns the eval.json of the run in `workdir`, or None if it is not finished.

    Raises:
      InputError: the file is damaged.
    """
    return read_object(pathlib.Path(workdir) / "eval.json")


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


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


def _plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def refuse_other_run(
    workdir: str, config: ConfigDict, data: Mapping[str, Any] | None = None
) -> None:
    """Raises InputError if `workdir` holds a run of another config or other data.

    Writes nothing.

    Args:
      workdir: a run folder, or one to be made.
      config: the run's config.
      data: counts and class names that stages.json must agree with, if given.
    """
    path = pathlib.Path(workdir)
    if "://" in str(workdir):
        raise errors.InputError(
            f"workdir: {str(workdir)!r} is not a local folder; runs are kept on a disk "
            "of their own machine"
        )
    saved, stages = read_config(workdir), read_object(path / "stages.json")
    if saved is None:
        if (path / "checkpoints").is_dir():
            raise errors.InputError(
                f"workdir: {str(path)!r} has checkpoints but no config.json to say "
                "of what run; choose another folder"
            )
        return
    before, now = (flatten(x, ".") for x in (saved, _plain(config)))
    _refuse_differing(path, before, now)
    if data is not None and stages is not None:
        now = {key: json.loads(json.dumps(value)) for key, value in data.items()}
        before = {key: stages.get(key) for key in now}
        _refuse_differing(path, before, now)


def _refuse_differing(path: pathlib.Path, old: dict, new: dict) -> None:
    differing = [
        f"{key}={new.get(key)!r} (there: {old.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE_KEYS)
    ]
    if differing:
        raise errors.InputError(
            f"workdir: {str(path)!r} holds a run of another config; it differs in "
            f"{', '.join(differing)}; choose another folder or the same config"
        )


def read_object(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, None if there is no file.

    Raises:
      InputError: it is damaged.
    """
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: pathlib.Path) -> errors.InputError:
    return errors.InputError(
        f"workdir: {str(path)!r} cannot be read or is damaged; restore it or choose "
        "another folder"
    )
