"""Runs the trials of a sweep on TPU nodes with launch/tpu.py, one per node."""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from ev2 import errors, files
from ev2.sweeps import runner
from launch import checks, gcloud, jobs, nodes, tpu, workers

_DEATHS = (1, 75, 130)  # of tpu.py: Cloud failed, preempted too often, interrupted
_PREEMPTIONS = 20  # of a trial on its node
_TRIES = 3  # attempts to read a file of the bucket
_WAIT_S = 10.0
_STOP_S = 300.0  # for a run to save and end
_LOOK_S = 60.0
_FILES = ("metrics.jsonl", "stages.json", "eval.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpus:
    """Existing nodes; trials are in `folder` of the bucket "gs://NAME"."""

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


def make_machine(
    tpus: Tpus, out: pathlib.Path, arguments: Sequence[str]
) -> runner.Machine:
    """Returns the first of the nodes, for trials with these config arguments."""
    place, cloud = tpus.places[0], gcloud.Gcloud()

    def command(words: Sequence[str], folder: str, resumes: bool) -> list[str]:
        script = [sys.executable, str(pathlib.Path(tpu.__file__).resolve())]
        return [*script, *_words(tpus, place, [*arguments, *words], folder, resumes)]

    def refresh(folder: str) -> None:
        for name in _FILES:
            text = _read(cloud, tpus, place, folder, name)
            if text is not None:
                path = out / "trials" / folder / name
                path.parent.mkdir(exist_ok=True)
                files.write_atomically(path, text.encode())

    return runner.Machine(
        out=out,
        name=place.name,
        command=command,
        refresh=refresh,
        stop=lambda process: _stop(cloud, place, process),
        deaths=(*_DEATHS, *runner.SIGNALLED),
        look_s=_LOOK_S,
    )


def show(tpus: Tpus, arguments: Sequence[str], words: Sequence[str]) -> None:
    """Prints the commands of a first trial on every node."""
    check(tpus, dry_run=True)
    cloud = gcloud.Gcloud(dry_run=True)
    for index, place in enumerate(tpus.places):
        folder, flags = f"{index:04d}", [*arguments, *words]
        cloud.note(f"a trial on {place.name}")
        tpu.main([*_words(tpus, place, flags, folder, False, "--dry_run")])
        _read(cloud, tpus, place, folder, "eval.json")


def _words(tpus, place, flags, folder: str, resumes: bool, *more: str) -> list[str]:
    """Returns the arguments of launch/tpu.py."""
    common = [
        f"--name={place.name}",
        *place.flags,
        f"--bucket={tpus.bucket}",
        f"--workdir={tpus.bucket}/{tpus.folder}/{folder}",
        f"--retries={_PREEMPTIONS}",
        *more,
    ]
    if resumes:
        return ["resume", *common]
    source = f"--source={tpus.source}"
    return ["run", *common, source, "--nocheck_config", "--", *flags]


def _read(cloud, tpus: Tpus, place, folder: str, name: str) -> str | None:
    """Returns a file of a trial, None if it is missing.

    Raises:
        CloudError: the bucket cannot be read.
    """
    path = f"{tpus.bucket}/{tpus.folder}/{folder}/{name}"
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


def _stop(cloud: gcloud.Gcloud, place: nodes.Place, process: subprocess.Popen) -> None:
    """Ends tpu.py, then signals the run to save and end, and waits for its end."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_WAIT_S)
    process.kill()
    process.wait()
    cloud.watch(*place.ssh("all", workers.STOP), on_bytes=jobs.pass_on)
    end = time.monotonic() + _STOP_S
    while "running" in jobs.read_states(cloud, place, "all").values():
        if time.monotonic() > end:
            raise gcloud.CloudError(f"{place.name}: its run was told to stop, and runs")
        time.sleep(_WAIT_S)
