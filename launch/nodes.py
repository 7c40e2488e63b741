"""TPU nodes: asked for, waited for, described, deleted; alone or through the queue."""

import dataclasses
import json
import time

from launch import gcloud

READY = "READY"
# A node in one of these does not come back: it is deleted and created again.
_LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "FAILED")
_QUEUE_ENDS = ("FAILED", "SUSPENDING", "SUSPENDED")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A node by name, zone and project; `flags` are gcloud's for the last two."""

    name: str
    zone: str
    project: str

    @property
    def flags(self) -> tuple[str, str]:
        return (f"--zone={self.zone}", f"--project={self.project}")

    def ssh(self, worker: str, script: str) -> tuple[str, ...]:
        """gcloud's arguments to run `script` on a worker, or on "all" at once."""
        return (
            *("compute", "tpus", "tpu-vm", "ssh", self.name, *self.flags),
            *(f"--worker={worker}", "--quiet", f"--command={script}"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """The kind of a node: enough to create it again after a preemption.

    Attributes:
      queued: asked for as a queued resource of the node's own name.
      spot, reserved: the tier; on demand if neither.
      service_account: e-mail; the project's default one if empty.
    """

    accelerator_type: str
    runtime_version: str
    queued: bool = False
    spot: bool = False
    reserved: bool = False
    service_account: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A node as Cloud describes it; `workers` is how many hosts it has."""

    state: str
    workers: int
    spec: Spec


def describe(cloud: gcloud.Gcloud, place: Place, *, assume: Node) -> Node | None:
    """Returns the node, or None if there is none; a dry run assumes `assume`."""
    document = {
        "state": assume.state,
        "acceleratorType": assume.spec.accelerator_type,
        "runtimeVersion": assume.spec.runtime_version,
        "networkEndpoints": [{}] * assume.workers,
        "schedulingConfig": {
            "spot": assume.spec.spot,
            "reserved": assume.spec.reserved,
        },
        "serviceAccount": {"email": assume.spec.service_account},
        "queuedResource": place.name if assume.spec.queued else "",
    }
    try:
        answer = cloud.ask(
            *("compute", "tpus", "tpu-vm", "describe", place.name),
            *place.flags,
            "--format=json",
            assume=json.dumps(document),
        )
    except gcloud.GcloudError as error:
        if error.not_found:
            return None
        raise
    found = json.loads(answer)
    tier = found.get("schedulingConfig", {})
    return Node(
        state=found.get("state", "UNKNOWN"),
        workers=len(found.get("networkEndpoints", [])),
        spec=Spec(
            accelerator_type=found.get("acceleratorType", "").rpartition("/")[2],
            runtime_version=found.get("runtimeVersion", ""),
            queued=bool(found.get("queuedResource")),
            spot=bool(tier.get("spot") or tier.get("preemptible")),
            reserved=bool(tier.get("reserved")),
            service_account=found.get("serviceAccount", {}).get("email", ""),
        ),
    )


def is_lost(node: Node | None) -> bool:
    """True if an existing node is gone for good."""
    return node is None or node.state in _LOST


def create(
    cloud: gcloud.Gcloud, place: Place, spec: Spec, *, poll_s: float, wait_s: float
) -> None:
    """Makes the node and returns when it is ready.

    Args:
      poll_s: seconds between two looks at the queue.
      wait_s: seconds to wait there; the request is left in the queue after them.

    Raises:
      CloudError: Cloud refuses (quota, capacity), or the wait is over.
    """
    options = [
        f"--accelerator-type={spec.accelerator_type}",
        *(["--spot"] if spec.spot else []),
        *(["--reserved"] if spec.reserved else []),
        *([f"--service-account={spec.service_account}"] * bool(spec.service_account)),
        *place.flags,
    ]
    cloud.note(f"creating {spec.accelerator_type} {place.name} in {place.zone}")
    if not spec.queued:
        cloud.ask(
            *("compute", "tpus", "tpu-vm", "create", place.name),
            f"--version={spec.runtime_version}",
            *options,
        )
        return
    cloud.ask(
        *("compute", "tpus", "queued-resources", "create", place.name),
        f"--node-id={place.name}",
        f"--runtime-version={spec.runtime_version}",
        *options,
    )
    _wait_in_queue(cloud, place, poll_s=poll_s, wait_s=wait_s)


def _wait_in_queue(
    cloud: gcloud.Gcloud, place: Place, *, poll_s: float, wait_s: float
) -> None:
    started, seen = time.monotonic(), ""
    while True:
        state = queue_state(cloud, place, assume="ACTIVE")
        if state != seen:
            cloud.note(f"queued resource {place.name}: {state}")
            seen = state
        if state == "ACTIVE":
            return
        if state in _QUEUE_ENDS:
            raise gcloud.CloudError(
                f"queued resource {place.name}: {state}; `gcloud compute tpus "
                f"queued-resources describe {place.name}` has the reason"
            )
        if time.monotonic() - started > wait_s:
            raise gcloud.CloudError(
                f"queued resource {place.name}: still {state} after {wait_s:g} s; it "
                "stays in the queue: `status` looks, `delete` takes it out"
            )
        time.sleep(poll_s)


def queue_state(cloud: gcloud.Gcloud, place: Place, *, assume: str) -> str:
    """Returns the state of the queued resource, "" if there is none."""
    try:
        return cloud.ask(
            *("compute", "tpus", "queued-resources", "describe", place.name),
            *place.flags,
            "--format=value(state.state)",
            assume=assume,
        ).strip()
    except gcloud.GcloudError as error:
        if error.not_found:
            return ""
        raise


def names(cloud: gcloud.Gcloud, place: Place, kind: str, *, assume: str) -> set[str]:
    """Returns the names of all of `kind`, "tpu-vm" or "queued-resources"."""
    answer = cloud.ask(
        *("compute", "tpus", kind, "list"),
        *place.flags,
        "--format=value(name)",
        assume=assume,
    )
    return {line.rpartition("/")[2] for line in answer.split()}


def delete(cloud: gcloud.Gcloud, place: Place, *, assume_queued: bool) -> bool:
    """Deletes the node and its queued resource; returns whether there was either."""
    assumed = {"tpu-vm": place.name, "queued-resources": place.name * assume_queued}
    queued = place.name in names(
        cloud, place, "queued-resources", assume=assumed["queued-resources"]
    )
    if queued:  # --force: its node goes with it
        cloud.ask(
            *("compute", "tpus", "queued-resources", "delete", place.name),
            *place.flags,
            "--force",
            "--quiet",
        )
        return True
    there = place.name in names(cloud, place, "tpu-vm", assume=assumed["tpu-vm"])
    if there:
        cloud.ask(
            *("compute", "tpus", "tpu-vm", "delete", place.name),
            *place.flags,
            "--quiet",
        )
    return there
