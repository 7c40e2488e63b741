"""A job on a node: shipped, installed, checked, started, followed, tried again."""

import dataclasses
import json
import secrets
import sys
import time
from collections.abc import Mapping, Sequence

from ev2 import errors
from launch import checks, gcloud, meeting, nodes, workers

PREEMPTED = 75  # what a job that was told to stop and has saved leaves with
_MAX_WAIT_S = 600.0
# A new node may take a while to let ssh in, and a package index to answer.
_SETUP_TRIES = 3
_DROPS = 30  # of the connection, one after another and without a byte between them
_SSH_S = 60.0  # for a worker to say its state


class Preempted(RuntimeError):
    """The node, or a machine of it, is gone; what was saved is in the bucket."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Time limits, in seconds.

    Attributes:
      preflight_s: for all workers to meet.
      poll_s: between two looks at the queue, and at workers that are still running.
      queue_s: for a queued resource.
      retry_s: before the first new try; doubles each time, up to 10 minutes.
      grace_s: for the other workers to end after worker 0 has.
    """

    preflight_s: float
    poll_s: float
    queue_s: float
    retry_s: float
    grace_s: float = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The run that workers start, and its place in the bucket.

    Attributes:
      bucket: "gs://NAME".
      folder: the run's folder in the bucket.
      words: what follows `ev2`, without --workdir.
      commit: what was shipped.
      spec: the node to make again when it is lost.
    """

    place: nodes.Place
    bucket: str
    folder: str
    words: Sequence[str]
    commit: str
    spec: nodes.Spec

    @property
    def workdir(self) -> str:
        return f"{self.bucket}/{self.folder}"

    @property
    def archive(self) -> str:
        return f"{self.folder}/source-{self.commit[:12]}.tar.gz"


def ship(cloud: gcloud.Gcloud, job: Job, source: str) -> None:
    """Puts the commit and the record of the launch into the run's folder."""
    cloud.note(f"git archive of {job.commit[:12]}, on standard input")
    content = b"" if cloud.dry_run else checks.archive(source, job.commit)
    project = f"--project={job.place.project}"
    target = f"{job.bucket}/{job.archive}"
    cloud.ask("storage", "cp", "-", target, project, stdin=content)
    record = {
        "commit": job.commit,
        "words": list(job.words),
        "spec": dataclasses.asdict(job.spec),
    }
    cloud.note("record of the launch, on standard input")
    content = (json.dumps(record, indent=1) + "\n").encode()
    target = f"{job.workdir}/launch.json"
    cloud.ask("storage", "cp", "-", target, project, stdin=content)


def read_record(
    cloud: gcloud.Gcloud, place: nodes.Place, bucket: str, folder: str, *, assume: Job
) -> Job:
    """Returns the job that `ship` recorded in `folder`.

    Raises:
      InputError: there is no record, or it cannot be read.
    """
    path = f"{bucket}/{folder}/launch.json"
    assumed = {
        "commit": assume.commit,
        "words": list(assume.words),
        "spec": dataclasses.asdict(assume.spec),
    }
    try:
        text = cloud.ask(
            *("storage", "cat", path, f"--project={place.project}"),
            assume=json.dumps(assumed),
        )
        record = json.loads(text)
        return Job(
            place=place,
            bucket=bucket,
            folder=folder,
            words=record["words"],
            commit=record["commit"],
            spec=nodes.Spec(**record["spec"]),
        )
    except (gcloud.GcloudError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"workdir: {path} cannot be read ({error}); nothing was launched into this "
            "folder, so there is nothing to resume: use run"
        ) from error


def find_node(cloud: gcloud.Gcloud, job: Job, *, assume: str) -> nodes.Node | None:
    """Describes the job's node; a dry run assumes the state `assume`."""
    assumed = nodes.Node(state=assume, workers=1, spec=job.spec)
    return nodes.describe(cloud, job.place, assume=assumed)


def run(
    cloud: gcloud.Gcloud, job: Job, *, retries: int, pace: Pace, lost: bool = False
) -> int:
    """Runs the job to its end and returns its exit code.

    Preempted, it is started again, `retries` times at most, on a new node if the old
    one is lost.

    Args:
      lost: whether the node has to be made first.

    Raises:
      CloudError: Cloud refuses, or a worker fails before the job.
    """
    tries = 0
    while True:
        patient = lost and 0 < tries < retries
        code = _try(cloud, job, pace, lost=lost, patient=patient)
        if cloud.dry_run and retries:
            _show_retry(cloud, job, retries, pace)
            return 0
        if code != PREEMPTED or tries == retries:
            return code
        tries += 1
        wait_s = min(pace.retry_s * 2 ** (tries - 1), _MAX_WAIT_S)
        cloud.pause(wait_s, f"preempted; try {tries} of {retries}")
        lost = _becomes_lost(cloud, job, pace)


def _try(
    cloud: gcloud.Gcloud, job: Job, pace: Pace, *, lost: bool, patient: bool
) -> int:
    """One run, on a new node if it is `lost`; if `patient`, without capacity is 75."""
    try:
        if lost:
            _make_again(cloud, job, pace)
        return _run_once(cloud, job, pace)
    except Preempted:
        return PREEMPTED
    except gcloud.CloudError as error:
        if not patient:
            raise
        gcloud.say(str(error))
        return PREEMPTED


def _becomes_lost(cloud: gcloud.Gcloud, job: Job, pace: Pace) -> bool:
    """True if the node is gone, or stays neither gone nor ready."""
    end = time.monotonic() + _MAX_WAIT_S
    while True:
        node = find_node(cloud, job, assume=nodes.READY)
        if nodes.is_lost(node) or time.monotonic() > end:
            return True
        if node is not None and node.state == nodes.READY:
            return False
        time.sleep(pace.poll_s)


def _show_retry(cloud: gcloud.Gcloud, job: Job, retries: int, pace: Pace) -> None:
    cloud.note(f"if it is preempted (exit 75), up to {retries} times:")
    cloud.pause(pace.retry_s, f"preempted; try 1 of {retries}")
    find_node(cloud, job, assume="PREEMPTED")
    _make_again(cloud, job, pace)
    cloud.note("and as above from the setup on")


def _make_again(cloud: gcloud.Gcloud, job: Job, pace: Pace) -> None:
    nodes.delete(cloud, job.place, assume_queued=job.spec.queued)
    nodes.create(cloud, job.place, job.spec, poll_s=pace.poll_s, wait_s=pace.queue_s)


def _run_once(cloud: gcloud.Gcloud, job: Job, pace: Pace) -> int:
    node = find_node(cloud, job, assume=nodes.READY)
    if nodes.is_lost(node):
        raise Preempted
    assert node is not None
    bucket = job.bucket.removeprefix("gs://")
    cloud.note("installing on all workers")
    script = workers.setup(bucket, job.archive)
    _on_all(cloud, job, "setup", script, tries=_SETUP_TRIES, wait_s=pace.poll_s)
    _let_meet(cloud, job, node.workers, pace.preflight_s)
    cloud.note("starting the job on all workers")
    _on_all(cloud, job, "start", workers.start(job.words, job.folder))
    return follow(cloud, job, pace)


def _on_all(
    cloud: gcloud.Gcloud,
    job: Job,
    what: str,
    script: str,
    *,
    tries: int = 1,
    wait_s: float = 0.0,
) -> None:
    for left in reversed(range(tries)):
        code = cloud.watch(*job.place.ssh("all", script), on_bytes=pass_on)
        if code == 0:
            return
        if nodes.is_lost(find_node(cloud, job, assume=nodes.READY)):
            raise Preempted
        if left:
            cloud.pause(wait_s, f"{what}: failed on a worker (exit {code})")
    raise gcloud.CloudError(
        f"{what}: failed on a worker of {job.place.name}; what it said is above"
    )


def _let_meet(cloud: gcloud.Gcloud, job: Job, count: int, limit_s: float) -> None:
    wrong = meeting.check(cloud, job.place, count, limit_s)
    if wrong:
        if nodes.is_lost(find_node(cloud, job, assume=nodes.READY)):
            raise Preempted
        raise gcloud.CloudError(f"preflight: {wrong}; nothing was started")


def follow(cloud: gcloud.Gcloud, job: Job, pace: Pace) -> int:
    """Passes on worker 0's log until the job ends, and returns its exit code.

    A dropped connection is made again where it broke off, also when Cloud itself
    cannot be asked.

    Raises:
      Preempted: the node is gone.
      CloudError: it is there and cannot be reached.
    """
    position, drops = 1, 0
    while True:
        before = position

        def take(chunk: bytes) -> None:
            nonlocal position
            position += len(chunk)
            pass_on(chunk)

        session = "session" if cloud.dry_run else f"session-{secrets.token_hex(4)}"
        script = workers.follow(position, session)
        code = cloud.watch(*job.place.ssh("0", script), on_bytes=take)
        drops = 1 if position > before else drops + 1
        try:
            if code == 0:
                return _collect(cloud, job, pace)
            if nodes.is_lost(find_node(cloud, job, assume=nodes.READY)):
                raise Preempted
        except gcloud.GcloudError as error:
            gcloud.say(str(error))
        if drops > _DROPS:
            raise gcloud.CloudError(
                f"worker 0 of {job.place.name} cannot be reached; the job may go on: "
                "look with status, go on watching with resume"
            )
        wait_s = min(pace.poll_s * 2 ** (drops - 1), 60)
        cloud.pause(wait_s, "connection to worker 0 lost, the job goes on")


def _collect(cloud: gcloud.Gcloud, job: Job, pace: Pace) -> int:
    """The job's exit code from all workers', once worker 0 has ended."""
    end = time.monotonic() + pace.grace_s
    while True:
        node = find_node(cloud, job, assume=nodes.READY)
        if nodes.is_lost(node):
            raise Preempted
        assert node is not None
        states = read_states(cloud, job.place, "all")
        silent = [w for w in range(node.workers) if w not in states]
        running = [w for w, state in sorted(states.items()) if state == "running"]
        if not silent and not running:
            return judge_states(states)
        if time.monotonic() > end:
            cloud.watch(*job.place.ssh("all", workers.STOP), on_bytes=pass_on)
            raise gcloud.CloudError(
                f"worker 0 ended {pace.grace_s:g} s ago; still running: "
                f"{running or 'none'}, no answer: {silent or 'none'}; the job was "
                "told to stop"
            )
        time.sleep(min(pace.poll_s, 5))


def read_states(
    cloud: gcloud.Gcloud, place: nodes.Place, worker: str
) -> dict[int, str]:
    """Returns "running", "exit N", "killed" or "none" of the workers that answer."""
    said = bytearray(b"worker 0: exit 0\n" if cloud.dry_run else b"")
    cloud.watch(*place.ssh(worker, workers.STATE), on_bytes=said.extend, limit_s=_SSH_S)
    states = {}
    for line in said.decode(errors="replace").splitlines():
        name, colon, state = line.partition(": ")
        number = name.removeprefix("worker ")
        if colon and number.isdigit():
            states[int(number)] = state
    return states


def judge_states(states: Mapping[int, str]) -> int:
    """Returns one exit code for what the workers ended with.

    75 if any was preempted, or its machine restarted under it; else the first that is
    not 0, by worker.
    """
    codes = {}
    for worker, state in sorted(states.items()):
        number = state.removeprefix("exit ")
        codes[worker] = int(number) if number.isdigit() else PREEMPTED
        if codes[worker]:
            gcloud.say(f"worker {worker}: {state}")
    if PREEMPTED in codes.values():
        return PREEMPTED
    return next((code for code in codes.values() if code), 0)


def pass_on(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
