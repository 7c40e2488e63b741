"""Trials on TPU nodes: launch/tpu.py runs them, one at a time on a node."""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from ev2 import errors
from ev2.sweeps import runner as trial
from launch import checks, gcloud, jobs, nodes, tpu, workers

_DEATHS = (1, 75, 130)  # of tpu.py: Cloud failed, preempted too often, interrupted
_PREEMPTIONS = 20  # that a trial may have on its node
_TRIES = 3  # to read a file of the bucket
_WAIT_S = 10.0
_STOP_S = 300.0  # for a job to save and leave
_SCORE_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpus:
    """Nodes that exist; trials lie in `folder` of the bucket "gs://NAME"."""

    places: Sequence[nodes.Place]
    bucket: str
    folder: str
    source: str


def check(tpus: Tpus, *, dry_run: bool = False) -> None:
    """Raises InputError if a node, the login, the bucket or the checkout is missing."""
    cloud = gcloud.Gcloud(dry_run=dry_run)
    checks.find_folder(tpus.bucket, f"{tpus.bucket}/{tpus.folder}")
    for place in tpus.places:
        checks.check_name(place.name)
    checks.find_commit(cloud, tpus.source, allow_dirty=False)
    checks.check_login(cloud)
    spec = nodes.Spec(accelerator_type="AS_CREATED", runtime_version="AS_CREATED")
    assumed = nodes.Node(state=nodes.READY, workers=1, spec=spec)
    for place in tpus.places:
        node = nodes.describe(cloud, place, assume=assumed)
        if node is None or node.state != nodes.READY:
            state = "does not exist" if node is None else f"is {node.state}"
            raise errors.InputError(
                f"tpus: node {place.name!r} {state} in {place.zone}; create it first"
            )
        if jobs.read_states(cloud, place, "0").get(0) == "running":
            raise errors.InputError(
                f"tpus: node {place.name!r} runs a job; wait for it, or leave it out"
            )
    checks.check_bucket(cloud, tpus.places[0].project, f"{tpus.bucket}/{tpus.folder}")


def make_machine(tpus: Tpus, out: pathlib.Path, words: Sequence[str]) -> trial.Machine:
    """Returns the first of the nodes, for trials with the config flags `words`."""
    place, cloud = tpus.places[0], gcloud.Gcloud()

    def command(values: Sequence[str], folder: str, again: bool) -> list[str]:
        script = [sys.executable, str(trial.ROOT / "launch/tpu.py")]
        return [*script, *_words(tpus, place, [*words, *values], folder, again)]

    return trial.Machine(
        out=out,
        name=place.name,
        command=command,
        read=lambda folder, name: _read(cloud, tpus, place, folder, name),
        stop=lambda process, wait: _stop(cloud, place, process, wait),
        deaths=(*_DEATHS, *trial.SIGNALLED),
        score_s=_SCORE_S,
    )


def show(tpus: Tpus, words: Sequence[str], values: Sequence[str]) -> None:
    """Prints the commands of a first trial on every node."""
    check(tpus, dry_run=True)
    cloud = gcloud.Gcloud(dry_run=True)
    for point, place in enumerate(tpus.places):
        folder = f"{point:04d}"
        cloud.note(f"a trial on {place.name}")
        tpu.main([*_words(tpus, place, [*words, *values], folder, False, "--dry_run")])
        _read(cloud, tpus, place, folder, "eval.json")


def _words(tpus, place, flags, folder: str, again: bool, *more: str) -> list[str]:
    """What follows launch/tpu.py."""
    common = [
        f"--name={place.name}",
        *place.flags,
        f"--bucket={tpus.bucket}",
        f"--workdir={_path(tpus, folder)}",
        f"--retries={_PREEMPTIONS}",
        *more,
    ]
    if again:
        return ["resume", *common]
    source = f"--source={tpus.source}"
    return ["run", *common, source, "--nocheck_config", "--", *flags]


def _path(tpus: Tpus, folder: str) -> str:
    return f"{tpus.bucket}/{tpus.folder}/{folder}"


def _read(cloud, tpus: Tpus, place, folder: str, name: str) -> str | None:
    """A file of a trial, None if there is none; CloudError if Cloud does not say."""
    path = f"{_path(tpus, folder)}/{name}"
    for left in reversed(range(_TRIES)):
        try:
            project = f"--project={place.project}"
            return cloud.ask("storage", "cat", path, project)
        except gcloud.GcloudError as error:
            if error.not_found:
                return None
            if not left:
                raise
            cloud.pause(_WAIT_S, str(error))
    return None


def _stop(
    cloud: gcloud.Gcloud,
    place: nodes.Place,
    process: subprocess.Popen,
    wait: Callable[[float], object],
) -> None:
    """Ends tpu.py, then tells the job to save and leave, and waits until it has."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_WAIT_S)
    process.kill()
    process.wait()
    cloud.watch(*place.ssh("all", workers.STOP), on_bytes=jobs.pass_on)
    end = time.monotonic() + _STOP_S
    while "running" in jobs.read_states(cloud, place, "all").values():
        if time.monotonic() > end:
            raise gcloud.CloudError(f"{place.name}: its job was told to stop, and runs")
        wait(_WAIT_S)
