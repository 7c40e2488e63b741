"""python -m pytest tests/launch/test_launch.py

launch/tpu.py against a gcloud whose workers are folders, in which the real scripts run
in bash; no cloud.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import tpu, workers
from tests.helpers import documented, fake_gcloud

ROOT = pathlib.Path(__file__).parents[2]
PLACE = ("--name=pod", "--zone=europe-west4-a", "--project=ours")
BUCKET = "--bucket=gs://bucket"
QUOTA = fake_gcloud.QUOTA
CREATE = (
    *("create", *PLACE, BUCKET),
    *("--accelerator_type=v3-32", "--runtime_version=tpu-ubuntu2204-base"),
)
CONFIG = ("--", "--config=configs/some.py:s", "--config.epochs=3")
SAYS_AND_LEAVES = 'echo "line 1"; echo "line 2 of $number"; exit '


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A git checkout to ship, with an `ev2 plan` that refuses 7 epochs."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "ev2").mkdir()
    (folder / "requirements.txt").write_text("jax==0.10.2\n")
    (folder / "ev2/__init__.py").write_text("")
    (folder / "ev2/__main__.py").write_text(
        "import sys\n"
        "assert sys.argv[1] == 'plan'\n"
        "if '--config.epochs=7' in sys.argv:\n"
        "    sys.exit('ev2: epochs: 7 is too many')\n"
    )
    for words in (
        "init -q",
        "add -A",
        "-c user.name=n -c user.email=e commit -qm first",
    ):
        subprocess.run(["git", *words.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Makes a cloud of the given scenario; returns its folder."""

    def make(**scenario) -> pathlib.Path:
        folder = tmp_path / "cloud"
        for key, value in fake_gcloud.install(folder, **scenario).items():
            monkeypatch.setenv(key, value)
        return folder

    return make


@pytest.fixture
def launch(checkout, capfd):
    """Runs the launcher; returns exit code, stdout and stderr."""

    def run(verb: str, *words: str) -> tuple[int, str, str]:
        quick = ("--poll_s=0.05", "--retry_s=0.05", f"--source={checkout}")
        capfd.readouterr()
        code = tpu.main([verb, *quick, *words])
        return code, *capfd.readouterr()

    return run


def calls(folder: pathlib.Path) -> list[str]:
    return (folder / "calls.txt").read_text().splitlines()


def test_a_run_from_creation_to_deletion(cloud, launch, checkout, tmp_path):
    folder = cloud(job=SAYS_AND_LEAVES + "0")
    assert launch(*CREATE)[0] == 0
    code, out, err = launch("run", *PLACE, BUCKET, *CONFIG)
    assert code == 0, err
    started, *lines = out.splitlines()
    assert started.startswith(
        "started train --config=configs/some.py:s --config.epochs=3 --workdir="
    )
    assert lines == ["line 1", "line 2 of 0"]
    assert "worker 3 (t1v-n-fake-w-3): process 3 of 4, 8 of 32 devices" in err
    # Every worker has the commit, the pinned set for Python 3.12, and its own log.
    installs = (folder / "uv.txt").read_text()
    for number in range(4):
        home = folder / "homes-1" / str(number)
        assert (home / "ev2-source/requirements.txt").exists()
        assert f"w-{number} uv venv --quiet --python 3.12 ev2-python" in installs
        (log,) = (folder / "buckets/bucket/runs/pod/logs").glob(
            f"*-worker-{number}.log"
        )
        assert f"line 2 of {number}" in log.read_text()
    assert installs.count("-r ev2-source/requirements.txt jax[tpu]") == 4

    code, out, _ = launch("status", *PLACE)
    assert code == 0
    assert out.splitlines() == [
        "node: READY, v3-32",
        *(f"worker {number}: exit 0" for number in range(4)),
        "progress: line 2 of 0",
    ]
    code, out, _ = launch("logs", *PLACE, "--worker=all", "--lines=1")
    assert sorted(out.splitlines()) == [f"[{n}] line 2 of {n}" for n in range(4)]

    out_folder = tmp_path / "fetched"
    fetch = ("fetch", *PLACE, BUCKET, f"--out={out_folder}")
    assert launch(*fetch)[0] == 0
    assert json.loads((out_folder / "launch.json").read_text())["words"][0] == "train"
    assert len(list((out_folder / "logs").iterdir())) == 4
    assert launch(*fetch)[0] == 2  # it is there already

    assert launch("delete", *PLACE)[0] == 2  # nobody to ask
    assert launch("delete", *PLACE, "--yes")[0] == 0
    code, out, _ = launch("status", *PLACE)
    assert out.splitlines() == ["node: none", "queued resource: none"]


def test_the_job_s_exit_code_is_returned(cloud, launch):
    cloud(workers=2, job="test $number = 1 && exit 137; exit 0")
    launch(*CREATE)
    code, _, err = launch("run", *PLACE, BUCKET, "--retries=3", *CONFIG)
    assert code == 137
    assert "worker 1: exit 137" in err and "try 1" not in err


def test_preempted_it_goes_on_on_a_new_node(cloud, launch):
    # The first node vanishes, the second is told to stop and saves, the third ends.
    job = (
        'echo "generation $generation"; test $generation = 1 && sleep 2\n'
        "test -e $HOME/told || { touch $HOME/told; exit 75; }\nexit 0"
    )
    folder = cloud(workers=2, job=job, lose=[1], refuse_create=["", QUOTA, ""])
    assert launch(*CREATE, "--spot")[0] == 0
    code, out, err = launch("run", *PLACE, BUCKET, "--retries=4", *CONFIG)
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("generation")] == [
        "generation 1",
        "generation 2",
        "generation 2",
    ]
    waits = re.findall(r"preempted; try (\d) of 4; waiting ([\d.]+) s", err)
    assert waits == [("1", "0.05"), ("2", "0.1"), ("3", "0.2")]
    assert QUOTA in err
    created = [line for line in calls(folder) if "tpu-vm create" in line]
    assert len(created) == 3 and len(set(created)) == 1 and "--spot" in created[0]
    assert sum("tpu-vm delete" in line for line in calls(folder)) == 1


def test_without_tries_left_it_says_75_and_resume_goes_on(cloud, launch):
    job = "test $generation = 3 || sleep 2; echo done; exit 0"
    folder = cloud(workers=2, job=job, lose=[1, 2])
    launch(*CREATE, "--queued")
    code, _, err = launch("run", *PLACE, BUCKET, "--retries=1", *CONFIG)
    assert code == 75 and "try 1 of 1" in err and "resume" in err
    code, out, err = launch("resume", *PLACE, BUCKET)
    assert code == 0, err
    assert "started train --config=configs/some.py:s" in out and "done" in out
    deleted = [line for line in calls(folder) if "delete pod" in line]
    assert [line.split()[2] for line in deleted] == ["queued-resources"] * 2


def test_the_job_outlives_the_launcher_and_resume_watches_it(cloud, launch, checkout):
    folder = cloud(
        workers=2, job="echo begun; until test -e $FAKE_GCLOUD/go; do sleep 0.1; done"
    )
    launch(*CREATE)
    # A process that a shell starts in the background ignores Ctrl-C.
    with_ctrl_c = (
        "import runpy, signal, sys; sys.argv = sys.argv[1:]; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", with_ctrl_c, str(ROOT / "launch/tpu.py"), "run"]
    first = subprocess.Popen(
        [*command, *PLACE, BUCKET, f"--source={checkout}", *CONFIG],
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        assert first.stdout is not None
        assert any("begun" in line for line in iter(first.stdout.readline, ""))
        first.send_signal(signal.SIGINT)
    assert first.returncode == 130
    assert "worker 1: running" in launch("status", *PLACE)[1]
    code, _, err = launch("run", *PLACE, BUCKET, *CONFIG)
    assert code == 1 and "a job is running" in err
    threading.Timer(1, (folder / "go").touch).start()
    code, out, err = launch("resume", *PLACE, BUCKET)
    assert code == 0 and "the job is running" in err
    assert [line.split()[0] for line in out.splitlines()] == ["started", "begun"]


def test_a_dropped_connection_is_made_again_where_it_broke_off(cloud, launch):
    lines = [f"step {number}" for number in range(40)]
    job = f"printf '%s\\n' {' '.join(map(shlex.quote, lines))}; exit 3"
    folder = cloud(workers=2, job=job, drop_at=[5, 1, 160], deaf=2)
    launch(*CREATE)
    code, out, err = launch("run", *PLACE, BUCKET, *CONFIG)
    assert code == 3
    assert out.splitlines()[1:] == lines
    assert err.count("connection to worker 0 lost") == 3
    assert err.count("There was a problem reaching the server") == 2
    assert not (folder / "count-create").exists()


def test_a_dead_worker_is_named_in_time(cloud, launch):
    folder = cloud()
    (folder / "dead-2").touch()
    for number in (0, 1, 3):
        waited = "meeting the other workers: not done within 2 s"
        fake_gcloud.report(folder, number, 4, error=waited)
    launch(*CREATE)
    started = time.monotonic()
    code, out, err = launch("run", *PLACE, BUCKET, "--preflight_s=1", *CONFIG)
    assert time.monotonic() - started < 5
    assert code == 1 and out == ""
    assert "preflight: no answer within 1 s from worker 2 of 4" in err
    assert "worker 3 (t1v-n-fake-w-3): meeting the other workers" in err
    assert not (folder / "homes-1/0/ev2-job").exists()  # no training was started


def test_quota_refusal_is_one_line(cloud, launch):
    folder = cloud(refuse_create=QUOTA)
    code, out, err = launch(*CREATE)
    assert code == 1 and out == ""
    assert err.splitlines()[-1] == f"tpu: gcloud compute tpus tpu-vm create: {QUOTA}"
    assert not json.loads((folder / "nodes.json").read_text() or "{}")


def test_the_queue_is_waited_in(cloud, launch):
    cloud(queue=["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "ACTIVE"])
    code, _, err = launch(*CREATE, "--queued")
    assert code == 0
    assert err.count("WAITING_FOR_RESOURCES") == 1 and "pod: ACTIVE" in err


@pytest.mark.parametrize(
    "queue, flags, message",
    [
        (["PROVISIONING", "FAILED"], (), "queued resource pod: FAILED"),
        (["PROVISIONING"], ("--queue_s=0",), "still PROVISIONING after 0 s"),
    ],
)
def test_the_queue_may_end_badly(cloud, launch, queue, flags, message):
    cloud(queue=queue)
    code, _, err = launch(*CREATE, "--queued", *flags)
    assert code == 1 and message in err.splitlines()[-1]


def refusals():
    """Words, what is wrong with the cloud, and the line that says so."""
    create = list(CREATE)
    zone = [w.replace("west4-a", "west4-q") for w in create]
    kind = [w.replace("v3-32", "v3-31") for w in create]
    image = [w.replace("2204", "2004") for w in create]
    run = ["run", *PLACE, BUCKET]
    bad = [*run, "--", "--config=configs/some.py:s", "--config.epochs=7"]
    return [
        (["creat", *PLACE], {}, "verb: 'creat' is not known; choose one of create"),
        (
            ["create", "--name=pod", BUCKET],
            {},
            "flags: create also needs --zone=... --project=... --accelerator_type=... "
            "--runtime_version=...",
        ),
        ([*create, "--nonsense"], {}, "flags: Unknown command line flag 'nonsense'"),
        ([*create, "--spot", "--reserved"], {}, "exclude each other"),
        (["status", "--name=Pod", *PLACE[1:]], {}, "name: 'Pod' is not a name"),
        ([*create, "--bucket=bucket"], {}, "bucket: 'bucket' is not a bucket"),
        ([*create, "--workdir=gs://other/x"], {}, "workdir: 'gs://other/x' is no"),
        (create, {"login": ""}, "nobody is logged in; run gcloud auth login"),
        (zone, {}, "zone: 'europe-west4-q' does not exist; nearest: europe-west4-a"),
        (kind, {}, "accelerator_type: 'v3-31' does not exist in europe-west4-a; "),
        (image, {}, "runtime_version: 'tpu-ubuntu2004-base' does not exist"),
        (create, {"writable": False}, "bucket: gs://bucket/runs/pod cannot be written"),
        ([*run, *CONFIG], {}, "name: node 'pod' does not exist in europe-west4-a"),
        (run, {}, "flags: run needs the training's flags after --"),
        (bad, {}, "tpu: epochs: 7 is too many"),
        ([*run, "--source=/", *CONFIG], {}, "source: '/' is not a git checkout"),
        (["resume", *PLACE, BUCKET], {}, "nothing was launched into this folder"),
        (["delete", *PLACE, "--yes"], {}, "name: there is no 'pod'"),
        (["status", *PLACE, "word"], {}, "'word' is not a flag of status"),
    ]


@pytest.mark.parametrize("words, scenario, message", refusals())
def test_bad_input_is_one_line_before_anything_is_made(
    cloud, launch, words, scenario, message
):
    folder = cloud(**scenario)
    code, out, err = launch(*words)
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and message in err
    made = calls(folder) if (folder / "calls.txt").exists() else []
    assert not [line for line in made if " create " in line or " ssh " in line]
    assert not list((folder / "buckets/bucket").rglob("launch.json"))


def test_a_name_in_use_is_refused(cloud, launch):
    cloud()
    assert launch(*CREATE)[0] == 0
    code, _, err = launch(*CREATE)
    assert code == 2 and "name: 'pod' is in use in europe-west4-a (tpu-vm)" in err


def test_gcloud_missing(launch, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = launch(*CREATE)
    assert code == 2 and err.startswith("tpu: gcloud: not found on PATH")


def test_changes_are_shipped_only_when_allowed(cloud, launch, checkout, tmp_path):
    folder = cloud(workers=1)
    launch(*CREATE)
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    (copy / "requirements.txt").write_text("jax==0.10.3\n")
    run = ("run", *PLACE, BUCKET, f"--source={copy}")
    code, _, err = launch(*run, *CONFIG)
    assert code == 2 and "source: 1 files are not committed (requirements.txt" in err
    code, _, err = launch(*run, "--allow_dirty", *CONFIG)
    assert code == 0, err
    shipped = folder / "homes-1/0/ev2-source/requirements.txt"
    assert shipped.read_text() == "jax==0.10.3\n"


# The documented commands, each with the file in tests/golden that it prints.
GOLDENS = {
    "create": "launch_create.txt",
    "run": "launch_run.txt",
    "status": "launch_status.txt",
    "logs": "launch_logs.txt",
    "resume": "launch_resume.txt",
    "fetch": "launch_fetch.txt",
    "delete": "launch_delete.txt",
}


def test_documentation_shows_every_command():
    assert {words[0] for words in documented.launch_commands("launch/tpu.py")} == set(
        tpu.VERBS
    )


def test_documented_commands_print_their_goldens(
    checkout, capfd, monkeypatch, tmp_path
):
    """UPDATE_GOLDENS=1 writes them anew."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)  # where no runs/ lies that fetch would not replace
    printed: dict[str, str] = {}
    for words in documented.launch_commands("launch/tpu.py"):
        capfd.readouterr()
        dry = [words[0], "--dry_run", f"--source={checkout}", *words[1:]]
        assert tpu.main(dry) == 0
        out, err = capfd.readouterr()
        assert err == ""
        out = re.sub(r"\b[0-9a-f]{12}\b", "COMMIT", out)
        name = GOLDENS[words[0]]
        printed[name] = printed.get(name, "") + f"$ {shlex.join(words)}\n{out}"
    for name, text in printed.items():
        path = ROOT / "tests/golden" / name
        if os.environ.get("UPDATE_GOLDENS"):
            path.write_text(text)
        assert text == path.read_text(), name
    assert sorted(printed) == sorted(GOLDENS.values())


def test_worker_scripts_are_shown_without_escapes():
    # A dry run quotes them whole; a single quote inside would tear them apart.
    scripts = (
        workers.setup("bucket", "runs/a/source.tar.gz"),
        workers.start(["train", "--config=a.py"], "runs/a"),
        workers.follow(1, "session"),
        *(workers.STATE, workers.STOP, workers.PROGRESS, workers.preflight(9)),
    )
    assert not [script for script in scripts if "'" in script]
