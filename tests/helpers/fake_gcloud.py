"""A gcloud for tests: nodes are folders, workers are homes in which bash runs.

Run as `gcloud` with the folder that `install` made in FAKE_GCLOUD. `scenario.json`
there says what goes wrong; `calls.txt` lists the calls.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ZONES = ("europe-west4-a", "us-central1-a", "us-central1-b")
TYPES = ("v2-8", "v3-8", "v3-32", "v3-64")
RUNTIMES = ("tpu-ubuntu2204-base", "v2-alpha-tpuv5")
QUOTA = "Quota limit 'TPUV3sPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0"

# What workers have beside bash. gcsfuse makes a link for a mount, uv a "Python" that
# plays preflight, and an "ev2" that plays training.
_TOOLS = {
    "gcsfuse": 'for last; do :; done; bucket=${@: -2:1}; rmdir "$last"\n'
    'ln -s "$FAKE_GCLOUD/buckets/$bucket" "$last"',
    "mountpoint": 'test -L "$2"',
    "uv": 'echo "$HOSTNAME uv $*" >> "$FAKE_GCLOUD/uv.txt"\n'
    'test "$1" = venv || exit 0\n'
    'mkdir -p "${!#}/bin"; cp "$FAKE_GCLOUD"/worker/* "${!#}/bin/"',
}
_WORKER = {
    "python": 'number=${HOSTNAME##*-}; test "$1" = launch/preflight.py || exit 9\n'
    'test -e "$FAKE_GCLOUD/dead-$number" && exec sleep 60\n'
    'cat "$FAKE_GCLOUD/report-$number.json"; exit 0',
    "ev2": 'printf "started %s\\n" "$*"; . "$FAKE_GCLOUD/job.sh"',
}


def install(folder: pathlib.Path, *, workers: int = 4, job: str = "exit 0", **scenario):
    """Makes a cloud in `folder` and returns the PATH and variables to use it with.

    Args:
      workers: of every node.
      job: bash that plays the training, with $number of its worker and $generation.
      scenario: "refuse_create" (a message, or one for each creation), "lose" (of which
        generations of the node worker 0 vanishes when its log is followed), "drop_at"
        (byte counts after which the connection breaks, call by call), "login" (empty
        for none), "deaf" (how often the node cannot be described once its job runs),
        "writable" (False for a bucket that is not), "queue" (states).
    """
    folder.mkdir(parents=True)
    python = f"#!{sys.executable} -IS\n"
    _write(folder / "bin/gcloud", python + pathlib.Path(__file__).read_text())
    for name, text in _TOOLS.items():
        _write(folder / "bin" / name, f"#!/bin/bash\n{text}\n")
    for name, text in _WORKER.items():
        _write(folder / "worker" / name, f"#!/bin/bash\n{text}\n")
    text = "number=${HOSTNAME##*-}; generation=$(cat $FAKE_GCLOUD/generation)\n"
    (folder / "job.sh").write_text(f"{text}{job}\n")
    (folder / "buckets/bucket").mkdir(parents=True)
    (folder / "generation").write_text("0")
    for number in range(workers):
        report(folder, number, workers)
    (folder / "scenario.json").write_text(json.dumps({"workers": workers, **scenario}))
    return {
        "PATH": f"{folder}/bin:/usr/bin:/bin",
        "FAKE_GCLOUD": str(folder),
    }


def report(folder: pathlib.Path, number: int, workers: int, **changes):
    """Writes what worker `number` says in the preflight."""
    said = {
        "host": f"t1v-n-fake-w-{number}",
        "worker": number,
        "versions": {"jax": "0.10.2", "libtpu": "0.0.42.1", "source": "abc"},
        "process_index": number,
        "processes": workers,
        "local_devices": 8,
        "devices": 8 * workers,
        "seconds": 7.5,
        **changes,
    }
    (folder / f"report-{number}.json").write_text(json.dumps(said) + "\n")


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cloud:
    """The state of the cloud, and what each command does to it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.scenario = json.loads((folder / "scenario.json").read_text())
        self.path = folder / "nodes.json"
        self.nodes = json.loads(self.path.read_text()) if self.path.exists() else {}

    def save(self) -> None:
        self.path.write_text(json.dumps(self.nodes))

    def count(self, name: str) -> int:
        """How often this was called with `name` before."""
        path = self.folder / f"count-{name}"
        before = int(path.read_text()) if path.exists() else 0
        path.write_text(str(before + 1))
        return before

    def run(self, words: list[str], flags: dict[str, str]) -> None:
        if words[:2] == ["auth", "list"]:
            print(self.scenario.get("login", "somebody@example.com"))
        elif words[0] == "storage":
            self.storage(words[1], words[2:])
        elif words[2] == "locations":
            print("\n".join(ZONES))
        elif words[3] in ("accelerator-types", "versions"):
            print("\n".join(TYPES if words[3] == "accelerator-types" else RUNTIMES))
        elif words[3] == "list":
            queued = words[2] == "queued-resources"
            found = [n for n, d in self.nodes.items() if d["queued"] or not queued]
            print("\n".join(f"projects/p/locations/z/nodes/{name}" for name in found))
        else:
            getattr(self, words[3])(words[4], flags, words[2] == "queued-resources")

    def create(self, name: str, flags: dict[str, str], queued: bool) -> None:
        refusal = self.scenario.get("refuse_create", "")
        if isinstance(refusal, list):
            count = self.count("create")
            refusal = refusal[count] if count < len(refusal) else ""
        if refusal:
            where = "gcloud.compute.tpus.tpu-vm.create"
            fail(f'ERROR: ({where}) {{\n  "code": 8,\n  "message": "{refusal}"\n}}')
        generation = int((self.folder / "generation").read_text()) + 1
        (self.folder / "generation").write_text(str(generation))
        self.nodes[name] = {
            "state": "READY",
            "acceleratorType": flags["accelerator-type"],
            "runtimeVersion": flags.get("version") or flags["runtime-version"],
            "networkEndpoints": [{}] * self.scenario["workers"],
            "schedulingConfig": {"spot": "spot" in flags},
            "queued": queued,
            **({"queuedResource": name} if queued else {}),
        }

    def describe(self, name: str, flags: dict[str, str], queued: bool) -> None:
        del flags
        if (self.folder / "count-follow").exists():
            if self.count("deaf") < self.scenario.get("deaf", 0):
                fail("ERROR: (gcloud) There was a problem reaching the server.")
        if name not in self.nodes or (queued and not self.nodes[name]["queued"]):
            fail(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
        states = self.scenario.get("queue", ["ACTIVE"])
        print(
            states[min(self.count("queue"), len(states) - 1)]
            if queued
            else json.dumps(self.nodes[name])
        )

    def delete(self, name: str, flags: dict[str, str], queued: bool) -> None:
        del flags, queued
        del self.nodes[name]

    def storage(self, verb: str, words: list[str]) -> None:
        paths = [word.replace("gs://", f"{self.folder}/buckets/") for word in words]
        if verb == "cp" and words[0] == "-":
            if not self.scenario.get("writable", True):
                fail("ERROR: (gcloud.storage.cp) HTTPError 403: no storage.objects")
            path = pathlib.Path(paths[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sys.stdin.buffer.read())
        elif verb == "cp":
            assert paths[0].endswith("/*")
            for path in pathlib.Path(paths[0]).parent.iterdir():
                subprocess.run(["cp", "-r", path, paths[1]], check=True)
        elif verb == "rm":
            pathlib.Path(paths[0]).unlink()
        elif not pathlib.Path(paths[0]).exists():
            fail("ERROR: (gcloud.storage.cat) not found: 404.")
        else:
            print(pathlib.Path(paths[0]).read_text())

    def ssh(self, name: str, flags: dict[str, str], queued: bool) -> None:
        del queued
        if self.nodes.get(name, {}).get("state") != "READY":
            fail(f"ERROR: (gcloud) TPU {name} is not in state READY")
        chosen = flags["worker"]
        count = self.scenario["workers"]
        numbers = range(count) if chosen == "all" else [int(chosen)]
        script = flags["command"]
        if script.startswith("mkdir ev2-job/session"):
            self.follow(name, script)
        running = [self.start(n, script) for n in numbers]
        codes = [process.wait() for process in running]
        sys.exit(next((code for code in codes if code), 0))

    def start(self, number: int, script: str, **how) -> subprocess.Popen:
        generation = (self.folder / "generation").read_text()
        home = self.folder / f"homes-{generation}" / str(number)
        home.mkdir(parents=True, exist_ok=True)
        env = {"HOME": str(home), "HOSTNAME": f"t1v-n-fake-w-{number}"}
        env |= {key: os.environ[key] for key in ("PATH", "FAKE_GCLOUD")}
        return subprocess.Popen(["bash", "-c", script], cwd=home, env=env, **how)

    def follow(self, name: str, script: str) -> None:
        """Loses the node or the connection, if the scenario wants it now."""
        generation = int((self.folder / "generation").read_text())
        call, cuts = self.count("follow"), self.scenario.get("drop_at", [])
        if generation in self.scenario.get("lose", []):
            process = self.start(0, script, start_new_session=True)
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGKILL)
            self.nodes[name]["state"] = "PREEMPTED"
            self.save()
            sys.exit(255)
        if call < len(cuts):
            process = self.start(
                0, script, stdout=subprocess.PIPE, start_new_session=True
            )
            assert process.stdout is not None
            while left := cuts[call]:
                chunk = os.read(process.stdout.fileno(), left)
                cuts[call] -= len(chunk)
                sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            os.killpg(process.pid, signal.SIGKILL)
            again = self.start(0, script).wait()  # as gcloud does by itself
            sys.exit(again or 255)


def fail(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(1)


def main(argv: list[str]) -> None:
    folder = pathlib.Path(os.environ["FAKE_GCLOUD"])
    with open(folder / "calls.txt", "a") as calls:
        shown = [word.partition("\n")[0] for word in argv]
        calls.write(" ".join(shown) + "\n")
    flags = {}
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            flags[name] = value
    cloud = Cloud(folder)
    cloud.run([w for w in argv if w[:2] != "--" and w != "-r"], flags)
    cloud.save()


if __name__ == "__main__":
    main(sys.argv[1:])
