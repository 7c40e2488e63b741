"""python -m pytest tests/launch/test_preflight.py

Workers meet before training: real processes on a CPU, and the verdict on their reports.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

from launch import meeting, preflight

ROOT = pathlib.Path(__file__).parents[2]


def test_preflight_verdicts():
    def say(worker, **changes):
        good = {"versions": {"jax": "1", "source": "a"}, "processes": 2}
        return {worker: good | changes}

    def verdict(*reports):
        return meeting.judge({k: v for r in reports for k, v in r.items()}, 2, 9.0)

    assert verdict(say(0), say(1)) == ""
    assert "worker 0, 1 of 2" in verdict()
    other = verdict(say(0), say(1, versions={"jax": "2", "source": "a"}))
    assert other == "worker 1 has jax 2 (worker 0: 1)"
    assert verdict(say(0), say(1, error="no TPU")) == "worker 1: no TPU"
    assert "sees 1 processes" in verdict(say(0, processes=1), say(1))


def start_preflight(number: int, port: int, limit_s: int) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "launch/preflight.py")),
            *(f"--coordinator=127.0.0.1:{port}", "--processes=2"),
            *(f"--process_id={number}", f"--limit_s={limit_s}"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_meet():
    port = free_port()
    both = [start_preflight(number, port, 120) for number in range(2)]
    reports = [json.loads(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [r["process_index"] for r in reports] == [0, 1]
    assert all(r["processes"] == r["devices"] == 2 for r in reports)
    assert reports[0]["versions"] == reports[1]["versions"]
    assert meeting.judge(dict(enumerate(reports)), 2, 120) == ""


def test_one_process_alone_gives_up_in_time():
    process = start_preflight(0, free_port(), 3)
    found = json.loads(process.communicate()[0])
    assert process.returncode == 1 and found["seconds"] < 6
    assert found["error"].endswith("not done within 3 s") and found["worker"] == 0


def test_workers_are_counted_as_gcloud_counts_them(monkeypatch):
    for host, number in (("t1v-n-0a1b-w-12", 12), ("t1v-n-0a1b-w-3.zone.internal", 3)):
        monkeypatch.setattr(preflight.socket, "gethostname", lambda host=host: host)
        assert preflight.worker_number() == number
