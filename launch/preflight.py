"""Run on every worker before training: do all of them see each other?

    python launch/preflight.py --limit_s=120

Prints one JSON line: "host", "worker", "versions", "seconds", and either
"process_index", "processes", "local_devices" and "devices", or "error". Exit code 1
with an error. A child does the work, because a hanging or crashing TPU runtime cannot
be interrupted from within.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import selectors
import socket
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

_LIMIT_S = flags.DEFINE_float("limit_s", 120, "Seconds to meet all others in.")
# A TPU slice knows these three itself.
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is.")
_CHILD = flags.DEFINE_bool("child", False, "Set by the parent.")

_SHUTDOWN_S = 20  # for the child to leave after it has answered


def main(argv: list[str]) -> None:
    if _CHILD.value:
        return _meet()
    started = time.monotonic()
    report = {"host": socket.gethostname(), "worker": worker_number()}
    report |= {"versions": versions()} | _watch_child(argv[0])
    report["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(report), flush=True)
    sys.exit(1 if "error" in report else 0)


def worker_number() -> int | None:
    """The number that gcloud gives this worker: hosts are called t1v-...-w-3."""
    found = re.search(r"-w-(\d+)$", socket.gethostname().partition(".")[0])
    text = found[1] if found else os.environ.get("TPU_WORKER_ID", "")
    return int(text) if text.isdigit() else _PROCESS_ID.value


def versions() -> dict[str, str]:
    """Values that must be equal on all workers; "source" is a hash of the code."""
    from ev2.train import workdir as run_folder

    found = run_folder.versions()
    try:
        found["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        found["libtpu"] = "not installed"
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(run_folder.__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return found | {"source": digest.hexdigest()[:12]}


def _watch_child(script: str) -> dict[str, Any]:
    """The child's report, or {"error": ...} with its last activity."""
    child = subprocess.Popen(
        [sys.executable, script, "--child", *sys.argv[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stderr is not None
    said, errors = b"", b""
    end = time.monotonic() + _LIMIT_S.value
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        while selector.get_map() and b"}\n" not in said and time.monotonic() < end:
            for key, _ in selector.select(max(0, end - time.monotonic())):
                chunk = os.read(key.fd, 2**16)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    said += chunk
                else:
                    errors += chunk
    phase, _, answer = said.decode().partition("{")
    phase = phase.strip().rpartition("\n")[2] or "starting Python"
    if answer:
        _leave(child)
        return json.loads("{" + answer)
    if time.monotonic() < end:  # it has closed both and is leaving
        child.wait()
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return {"error": f"{phase}: exit {child.returncode}: {last}"}
    child.kill()
    child.wait()
    return {"error": f"{phase}: not done within {_LIMIT_S.value:g} s"}


def _leave(child: subprocess.Popen) -> None:
    try:
        child.communicate(timeout=_SHUTDOWN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _meet() -> None:
    """Prints what it is doing, line by line, and at the end what it found."""
    print("importing jax", flush=True)
    import jax
    from jax.experimental import multihost_utils

    print("meeting the other workers", flush=True)
    jax.distributed.initialize(
        _COORDINATOR.value,
        _PROCESSES.value,
        _PROCESS_ID.value,
        initialization_timeout=int(_LIMIT_S.value),
    )
    print("opening the devices", flush=True)
    found = {
        "process_index": jax.process_index(),
        "processes": jax.process_count(),
        "local_devices": jax.local_device_count(),
        "devices": jax.device_count(),
    }
    print("adding up over all devices", flush=True)
    multihost_utils.sync_global_devices("preflight")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    app.run(main)
