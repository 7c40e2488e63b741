"""Checks that all workers of a node reach each other before a run starts."""

import json
from collections.abc import Mapping
from typing import Any

from launch import gcloud, nodes, workers

# What ssh and the start of Python get beside the limit, as a share of it.
_SLACK = 0.5


def check(cloud: gcloud.Gcloud, place: nodes.Place, count: int, limit_s: float) -> str:
    """Connects all workers, prints their reports and returns the problems.

    Args:
      count: how many workers the node has.
      limit_s: what they have for it; one that is silent for half as long again is
        given up.

    Returns:
      One line that names the worker, "" if all is well.
    """
    said = bytearray()
    cloud.watch(
        *place.ssh("all", workers.preflight(limit_s)),
        on_bytes=said.extend,
        limit_s=limit_s * (1 + _SLACK),
    )
    if cloud.dry_run:
        return ""
    reports = _read(said.decode(errors="replace"))
    for worker, report in sorted(reports.items()):
        gcloud.say(_describe(worker, report))
    return judge(reports, count, limit_s)


def _read(text: str) -> dict[int, dict[str, Any]]:
    """Reports by worker; other output of ssh and the workers is left out."""
    reports = {}
    for line in text.splitlines():
        try:
            report = json.loads(line)
        except ValueError:
            continue
        if isinstance(report, dict) and isinstance(report.get("worker"), int):
            reports[report["worker"]] = report
    return reports


def _describe(worker: int, report: Mapping[str, Any]) -> str:
    if "error" in report:
        found = report["error"]
    else:
        found = (
            f"process {report['process_index']} of {report['processes']}, "
            f"{report['local_devices']} of {report['devices']} devices"
        )
    return f"worker {worker} ({report['host']}): {found}, {report['seconds']} s"


def judge(reports: Mapping[int, Mapping[str, Any]], count: int, limit_s: float) -> str:
    """Returns what is wrong with the workers' reports, "" if nothing is.

    Who did not answer comes first: the others can only say that they waited.
    """
    silent = [worker for worker in range(count) if worker not in reports]
    if silent:
        names = ", ".join(str(worker) for worker in silent)
        return f"no answer within {limit_s:g} s from worker {names} of {count}"
    known = reports[0]["versions"]
    for worker, report in sorted(reports.items()):
        differing = [
            f"{key} {value} (worker 0: {known.get(key)})"
            for key, value in report["versions"].items()
            if value != known.get(key)
        ]
        if differing:
            return f"worker {worker} has {', '.join(differing)}"
    for worker, report in sorted(reports.items()):
        if "error" in report:
            return f"worker {worker}: {report['error']}"
        if report["processes"] != count:
            return (
                f"worker {worker} sees {report['processes']} processes, the node has "
                f"{count} workers"
            )
    return ""
