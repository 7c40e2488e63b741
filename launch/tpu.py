"""Trains on TPU slices of Google Cloud, through the gcloud executable.

    python launch/tpu.py create|run|status|logs|resume|fetch|delete --name=NAME ...

docs/tpu-pods.md goes from an empty project to a fetched checkpoint. With --dry_run a
command prints what it would run, and runs nothing.

Exit codes: 0 done, 2 bad input (one line; nothing was created), 1 Cloud or a worker
failed, 75 preempted and saved (resume continues it), 130 Ctrl-C (the job keeps
running); otherwise the job's own exit code.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ev2 import errors, files  # noqa: E402
from launch import checks, gcloud, jobs, nodes, workers  # noqa: E402

# What a dry run cannot know.
_CREATED, _RECORDED = "AS_CREATED", "AS_RECORDED"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    values = _define_flags()
    try:
        if not argv or argv[0] in ("help", "-h") or "--help" in argv:
            print(f"{__doc__}\n{values.get_help()}", flush=True)
            return 0
        errors.check_choice("verb", argv[0], VERBS)
        try:
            words = values([f"tpu.py {argv[0]}", *argv[1:]])[1:]
        except flags.Error as error:
            raise errors.InputError(f"flags: {error}") from error
        return _dispatch(argv[0], values, words)
    except errors.InputError as error:
        return _say_error(error, 2)
    except gcloud.CloudError as error:
        return _say_error(error, 1)
    except BrokenPipeError:  # whoever read stdout has enough, as "| head" does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        gcloud.say("stopped watching; what runs in the cloud goes on running")
        return 130


def _say_error(error: Exception, code: int) -> int:
    gcloud.say(" ".join(str(error).split()))
    return code


_TEXTS = (
    ("name", "Node; a queued resource has the same name."),
    ("zone", "As in europe-west4-a."),
    ("project", "Project of Google Cloud."),
    ("accelerator_type", "As in v3-32."),
    ("runtime_version", "Image of the workers, as in tpu-ubuntu2204-base."),
    ("service_account", "E-mail of the workers' account; the project's default."),
    ("bucket", "gs://NAME, in the zone's region."),
    ("workdir", "gs:// folder of the run; BUCKET/runs/NAME if not given."),
    ("out", "fetch: local folder to write, new; runs/NAME if not given."),
)
_SWITCHES = (
    ("queued", False, "create: asks through the queue and waits there."),
    ("spot", False, "create: cheaper, and can be preempted."),
    ("reserved", False, "create: from the project's reservation."),
    ("allow_dirty", False, "run: ships changes that are not committed as well."),
    (
        "check_config",
        True,
        "run: ev2 plan reads the config here first; not possible if that needs data "
        "which only the workers have.",
    ),
    ("follow", False, "logs: goes on printing."),
    ("yes", False, "delete: does not ask."),
    ("dry_run", False, "Prints the commands and runs nothing."),
)
_COUNTS = (
    ("lines", 50, "logs: how many of the last ones."),
    ("retries", 0, "run, resume: new tries after a preemption."),
)
_SECONDS = (
    ("retry_s", 30.0, "Seconds before the first new try; doubles, up to 600."),
    ("poll_s", 10.0, "Seconds between two looks at what is waited for."),
    ("queue_s", 86400.0, "Seconds to wait in the queue."),
    ("preflight_s", 180.0, "Seconds for all workers to meet before training."),
)


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    for name, text in _TEXTS:
        flags.DEFINE_string(name, None, text, flag_values=values)
    text = "run: git checkout to ship."
    flags.DEFINE_string("source", str(ROOT), text, flag_values=values)
    flags.DEFINE_string("worker", "0", "logs: a number, or all.", flag_values=values)
    for name, default, text in _SWITCHES:
        flags.DEFINE_bool(name, default, text, flag_values=values)
    for name, count, text in _COUNTS:
        flags.DEFINE_integer(name, count, text, 0, flag_values=values)
    for name, seconds, text in _SECONDS:
        flags.DEFINE_float(name, seconds, text, 0.0, flag_values=values)
    return values


def _dispatch(verb: str, values: flags.FlagValues, words: Sequence[str]) -> int:
    act, needs = VERBS[verb]
    checks.check_given({name: values[name].value for name in needs}, verb)
    checks.check_name(values.name)
    if words and verb != "run":
        raise errors.InputError(f"flags: {words[0]!r} is not a flag of {verb}")
    place = nodes.Place(name=values.name, zone=values.zone, project=values.project)
    return act(gcloud.Gcloud(dry_run=values.dry_run), place, values, words)


def _spec(values: flags.FlagValues, unknown: str = "") -> nodes.Spec:
    if values.spot and values.reserved:
        raise errors.InputError("flags: --spot and --reserved exclude each other")
    return nodes.Spec(
        accelerator_type=values.accelerator_type or unknown,
        runtime_version=values.runtime_version or unknown,
        queued=values.queued,
        spot=values.spot,
        reserved=values.reserved,
        service_account=values.service_account or "",
    )


def _bucket_and_folder(values: flags.FlagValues) -> tuple[str, str]:
    bucket = values.bucket.rstrip("/")
    workdir = values.workdir or f"{bucket}/runs/{values.name}"
    return bucket, checks.find_folder(bucket, workdir)


def _pace(values: flags.FlagValues) -> jobs.Pace:
    return jobs.Pace(
        preflight_s=values.preflight_s,
        poll_s=values.poll_s,
        queue_s=values.queue_s,
        retry_s=values.retry_s,
    )


def _create(cloud, place, values, words) -> int:
    del words
    spec = _spec(values)
    bucket, folder = _bucket_and_folder(values)
    checks.check_login(cloud)
    checks.check_kind(cloud, place, spec)
    checks.check_bucket(cloud, place.project, f"{bucket}/{folder}")
    checks.check_name_is_free(cloud, place)
    nodes.create(cloud, place, spec, poll_s=values.poll_s, wait_s=values.queue_s)
    cloud.note(f"{place.name} is ready and costs money until it is deleted")
    return 0


def _run(cloud, place, values, words) -> int:
    bucket, folder = _bucket_and_folder(values)
    checks.check_words(words)
    commit = checks.find_commit(cloud, values.source, allow_dirty=values.allow_dirty)
    if values.check_config:
        checks.check_config(cloud, words, values.source)
    checks.check_login(cloud)
    job = jobs.Job(
        place=place,
        bucket=bucket,
        folder=folder,
        words=["train", *words],
        commit=commit,
        spec=_spec(values, _CREATED),
    )
    node = jobs.find_node(cloud, job, assume=nodes.READY)
    if node is None or node.state != nodes.READY:
        state = "does not exist" if node is None else f"is {node.state}"
        raise errors.InputError(
            f"name: node {place.name!r} {state} in {place.zone}; create it first, or "
            "resume what ran on it"
        )
    job = dataclasses.replace(job, spec=node.spec)
    checks.check_bucket(cloud, place.project, job.workdir)
    jobs.ship(cloud, job, values.source)
    return _finish(jobs.run(cloud, job, retries=values.retries, pace=_pace(values)))


def _resume(cloud, place, values, words) -> int:
    del words
    bucket, folder = _bucket_and_folder(values)
    checks.check_login(cloud)
    assumed = jobs.Job(
        place=place,
        bucket=bucket,
        folder=folder,
        words=["train", f"--config={_RECORDED}"],
        commit=_RECORDED,
        spec=_spec(values, _CREATED),
    )
    job = jobs.read_record(cloud, place, bucket, folder, assume=assumed)
    node = jobs.find_node(cloud, job, assume="PREEMPTED")
    lost, retries, pace = nodes.is_lost(node), values.retries, _pace(values)
    if not lost and jobs.read_states(cloud, place, "0").get(0) == "running":
        cloud.note("the job is running; its log from the beginning:")
        try:
            code = jobs.follow(cloud, job, pace)
        except jobs.Preempted:
            code = jobs.PREEMPTED
        if code != jobs.PREEMPTED or not retries:
            return _finish(code)
        retries -= 1
        lost = nodes.is_lost(jobs.find_node(cloud, job, assume="PREEMPTED"))
    return _finish(jobs.run(cloud, job, retries=retries, pace=pace, lost=lost))


def _finish(code: int) -> int:
    if code == jobs.PREEMPTED:
        gcloud.say("preempted; resume, with the same --name and --bucket, goes on")
    return code


def _status(cloud, place, values, words) -> int:
    del words
    assumed = nodes.Node(state=nodes.READY, workers=1, spec=_spec(values, _CREATED))
    node = nodes.describe(cloud, place, assume=assumed)
    if node is None:
        queue = nodes.queue_state(cloud, place, assume="") or "none"
        print(f"node: none\nqueued resource: {queue}")
        return 0
    states = {}
    if node.state == nodes.READY:
        states = jobs.read_states(cloud, place, "all")
    progress = bytearray()
    if node.state == nodes.READY:
        script = workers.PROGRESS
        cloud.watch(*place.ssh("0", script), on_bytes=progress.extend)
    if not cloud.dry_run:
        print(f"node: {node.state}, {node.spec.accelerator_type}")
        for worker in range(node.workers):
            print(f"worker {worker}: {states.get(worker, 'no answer')}")
        print(f"progress: {progress.decode(errors='replace').strip() or 'none'}")
    return 0


def _logs(cloud, place, values, words) -> int:
    del words
    worker = values.worker
    if worker != "all" and not worker.isdigit():
        raise errors.InputError(f"worker: {worker!r}; give a number, or all")
    script = workers.show_log(
        values.lines, follow=values.follow, prefix=worker == "all"
    )
    code = cloud.watch(*place.ssh(worker, script), on_bytes=jobs.pass_on)
    return 1 if code else 0


def _fetch(cloud, place, values, words) -> int:
    del words
    bucket, folder = _bucket_and_folder(values)
    out = pathlib.Path(values.out or f"runs/{place.name}")
    files.check_new("out", out)
    copy = ("storage", "cp", "-r", f"{bucket}/{folder}/*")
    if cloud.dry_run:
        cloud.ask(*copy, str(out), f"--project={place.project}")
        return 0
    checks.check_login(cloud)
    with files.atomic_path(out) as aside:
        aside.mkdir()
        cloud.ask(*copy, str(aside), f"--project={place.project}")
    gcloud.say(f"{out}: fetched from {bucket}/{folder}")
    return 0


def _delete(cloud, place, values, words) -> int:
    del words
    if not values.yes and not cloud.dry_run:
        if not sys.stdin.isatty():
            raise errors.InputError("flags: nobody to ask; delete needs --yes")
        answer = input(f"delete {place.name} in {place.zone}, and its job? [y/N] ")
        if answer.strip().lower() != "y":
            return 1
    checks.check_login(cloud)
    if not nodes.delete(cloud, place, assume_queued=values.queued):
        raise errors.InputError(f"name: there is no {place.name!r} in {place.zone}")
    cloud.note("deleted; the bucket keeps the run")
    return 0


_PLACE = ("name", "zone", "project")
VERBS = {
    "create": (_create, (*_PLACE, "accelerator_type", "runtime_version", "bucket")),
    "run": (_run, (*_PLACE, "bucket")),
    "status": (_status, _PLACE),
    "logs": (_logs, _PLACE),
    "resume": (_resume, (*_PLACE, "bucket")),
    "fetch": (_fetch, (*_PLACE, "bucket")),
    "delete": (_delete, _PLACE),
}

if __name__ == "__main__":
    sys.exit(main())
