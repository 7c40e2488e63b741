"""Refusals before anything is created or paid: one line with key and value."""

import difflib
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from ev2 import errors
from launch import gcloud, nodes

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_BUCKET = re.compile(r"gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]")
_NEAREST = 3


def check_given(values: Mapping[str, object], verb: str) -> None:
    """Raises InputError naming all flags of `values` that are missing."""
    missing = [f"--{name}=..." for name, value in values.items() if not value]
    if missing:
        raise errors.InputError(f"flags: {verb} also needs {' '.join(missing)}")


def check_name(name: str) -> None:
    """Raises InputError if Cloud would not take `name` for a node."""
    if not _NAME.fullmatch(name):
        raise errors.InputError(
            f"name: {name!r} is not a name for a node; give lower-case letters, digits "
            "and hyphens, a letter first"
        )


def find_folder(bucket: str, workdir: str) -> str:
    """Returns the run's folder within the bucket, such as "runs/NAME".

    Raises:
      InputError: `bucket` is not a bucket, or `workdir` is not a folder in it.
    """
    if not _BUCKET.fullmatch(bucket.rstrip("/")):
        raise errors.InputError(f"bucket: {bucket!r} is not a bucket; give gs://NAME")
    folder = workdir.removeprefix(f"{bucket.rstrip('/')}/").strip("/")
    if folder == workdir.strip("/") or not re.fullmatch(r"[-\w./=]+", folder):
        raise errors.InputError(
            f"workdir: {workdir!r} is not a folder in the bucket; give "
            f"{bucket.rstrip('/')}/runs/NAME"
        )
    return folder


def check_login(cloud: gcloud.Gcloud) -> None:
    """Raises InputError if gcloud is missing or nobody is logged in."""
    account = cloud.ask(
        *("auth", "list", "--filter=status:ACTIVE", "--format=value(account)"),
        assume="somebody",
    )
    if not account.strip():
        raise errors.InputError("gcloud: nobody is logged in; run gcloud auth login")


def check_kind(cloud: gcloud.Gcloud, place: nodes.Place, spec: nodes.Spec) -> None:
    """Raises InputError if the zone has no such accelerator or runtime.

    Nearest names that exist are in the message.
    """
    project = f"--project={place.project}"
    zones = cloud.ask(
        *("compute", "tpus", "locations", "list", project),
        "--format=value(locationId)",
        assume=place.zone,
    )
    _check_known("zone", place.zone, zones.split())
    for key, value, kind, field in (
        ("accelerator_type", spec.accelerator_type, "accelerator-types", "type"),
        ("runtime_version", spec.runtime_version, "versions", "version"),
    ):
        known = cloud.ask(
            *("compute", "tpus", "tpu-vm", kind, "list", *place.flags),
            f"--format=value({field})",
            assume=value,
        )
        _check_known(key, value, known.split(), where=f" in {place.zone}")


def _check_known(key: str, value: str, known: Iterable[str], where: str = "") -> None:
    known = sorted(set(known))
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=_NEAREST, cutoff=0)
    raise errors.InputError(
        f"{key}: {value!r} does not exist{where}; nearest: {', '.join(near) or 'none'}"
    )


def check_bucket(cloud: gcloud.Gcloud, project: str, workdir: str) -> None:
    """Raises InputError if no object can be written to and removed from `workdir`."""
    trial = f"{workdir}/.write-test"
    try:
        cloud.ask("storage", "cp", "-", trial, f"--project={project}", stdin=b"ev2\n")
        cloud.ask("storage", "rm", trial, f"--project={project}")
    except gcloud.GcloudError as error:
        raise errors.InputError(
            f"bucket: {workdir} cannot be written ({error}); create the bucket, or ask "
            "for the role Storage Object User"
        ) from error


def check_name_is_free(cloud: gcloud.Gcloud, place: nodes.Place) -> None:
    """Raises InputError if a node or a queued resource has this name already."""
    for kind in ("tpu-vm", "queued-resources"):
        if place.name in nodes.names(cloud, place, kind, assume=""):
            raise errors.InputError(
                f"name: {place.name!r} is in use in {place.zone} ({kind}); choose "
                "another, or delete that one first"
            )


def check_words(words: Sequence[str]) -> None:
    """Raises InputError unless `words` are flags for `ev2 train` with a config."""
    if not any(word.startswith("--config=") for word in words):
        raise errors.InputError(
            "flags: run needs the training's flags after --, as in "
            "run --name=... -- --config=configs/imagenet1k.py:s"
        )
    if any(word.startswith("--workdir") for word in words):
        raise errors.InputError("flags: give --workdir=gs://... before the --")


def check_config(cloud: gcloud.Gcloud, words: Sequence[str], source: str) -> None:
    """Raises InputError if `ev2 plan` refuses the config that `words` give."""
    words = [word for word in words if re.match(r"--config[.=]", word)]
    if cloud.dry_run:
        cloud.note("locally: ev2 plan with this config")
        return
    done = subprocess.run(
        [sys.executable, "-m", "ev2", "plan", *words],
        cwd=source,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise errors.InputError(lines[-1].removeprefix("ev2: "))


def find_commit(cloud: gcloud.Gcloud, source: str, *, allow_dirty: bool) -> str:
    """Returns the commit to ship: HEAD, or one made of HEAD and what is changed.

    Files that git does not know are never shipped.

    Raises:
      InputError: `source` is not a checkout, or is changed without `allow_dirty`.
    """
    head = _git(source, "rev-parse", "HEAD").strip()
    changed = _git(source, "status", "--porcelain").splitlines()
    if not changed:
        return head
    files = ", ".join(line[3:] for line in changed[:_NEAREST])
    if not allow_dirty and not cloud.dry_run:
        raise errors.InputError(
            f"source: {len(changed)} files are not committed ({files} ...); commit, "
            "or give --allow_dirty"
        )
    gcloud.say(f"not committed: {files}; files that git does not know stay behind")
    if not allow_dirty:
        return head
    return _git(source, "stash", "create").strip() or head


def archive(source: str, commit: str) -> bytes:
    """Returns `commit` as a .tar.gz."""
    return subprocess.run(
        ["git", "archive", "--format=tar.gz", commit],
        cwd=source,
        capture_output=True,
        check=True,
    ).stdout


def _git(source: str, *args: str) -> str:
    try:
        return subprocess.run(
            ["git", *args], cwd=source, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise errors.InputError(
            f"source: {str(pathlib.Path(source))!r} is not a git checkout; the job "
            "gets a commit of it"
        ) from error
