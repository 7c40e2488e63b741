"""Shell scripts that workers run, as text.

A worker keeps everything in its home:

    ev2-bucket/   the bucket, mounted with gcsfuse
    ev2-source/   the shipped commit
    ev2-python/   Python 3.12 and the pinned packages
    ev2-job/      run.sh, pid, log, and exit once it has ended

No single quotes in here: a dry run shows a script as one quoted word.
"""

import shlex
from collections.abc import Sequence

UV_VERSION = "0.13.9"
# gcsfuse refuses to rename folders of more files than this, and checkpoints are moved
# into place as folders.
_RENAME_LIMIT_FILES = 1_000_000

_WORKER = "worker=${HOSTNAME##*-}"
# Not the pid alone: a process that has ended keeps it until its parent looks.
_IS_RUNNING = (
    "test -s ev2-job/pid && test ! -s ev2-job/exit && "
    "kill -0 $(cat ev2-job/pid) 2> /dev/null"
)

# Python comes through uv: one file, the same on every image, while deadsnakes needs a
# package source that not every Ubuntu release has.
_SETUP = f"""\
set -eu
cd $HOME
{_WORKER}
if {_IS_RUNNING}; then
  echo "worker $worker: a job is running; see status and logs" >&2
  exit 3
fi
if ! command -v gcsfuse > /dev/null; then
  keys=/usr/share/keyrings/cloud.google.asc
  packages=https://packages.cloud.google.com/apt
  curl -fsSL $packages/doc/apt-key.gpg | sudo tee $keys > /dev/null
  echo "deb [signed-by=$keys] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse > /dev/null
fi
mkdir -p ev2-bucket
mountpoint -q ev2-bucket || gcsfuse --implicit-dirs \\
  --rename-dir-limit={_RENAME_LIMIT_FILES} \\
  --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \\
  BUCKET ev2-bucket > /dev/null
export PATH=$HOME/.local/bin:$PATH
if ! command -v uv > /dev/null; then
  curl -fsSL https://astral.sh/uv/{UV_VERSION}/install.sh | sh > /dev/null
fi
rm -rf ev2-source
mkdir ev2-source
tar -xzf ev2-bucket/ARCHIVE -C ev2-source
test -x ev2-python/bin/python || uv venv --quiet --python 3.12 ev2-python
uv pip install --quiet --python ev2-python -r ev2-source/requirements.txt "jax[tpu]"
uv pip install --quiet --python ev2-python --no-deps --no-build-isolation \\
  --config-settings editable_mode=compat --editable ev2-source
echo "worker $worker: installed" >&2
"""

# nohup and setsid: the job is nobody's child and outlives the ssh session, on any
# image, without root. The trap keeps the script alive for the exit code when the
# machine is told to stop; the job itself gets the signal as well. gcloud runs a command
# once more when ssh drops: a job that runs by then is the one just started.
_START = f"""\
set -eu
cd $HOME
{_WORKER}
if {_IS_RUNNING}; then exit 0; fi
rm -rf ev2-job
mkdir ev2-job
cat > ev2-job/run.sh << "END"
{_WORKER}
echo $$ > $HOME/ev2-job/pid
trap : TERM
cd $HOME/ev2-source
PYTHONUNBUFFERED=1 COMMAND
code=$?
mkdir -p WORKDIR/logs
name=$(date -u +%Y%m%dT%H%M%S)-worker-$worker.log
timeout 60 cp $HOME/ev2-job/log WORKDIR/logs/$name
echo $code > $HOME/ev2-job/exit
END
nohup setsid bash ev2-job/run.sh > ev2-job/log 2>&1 < /dev/null &
until test -s ev2-job/pid; do sleep 0.1; done
echo "worker $worker: started" >&2
"""

STOP = f"""\
cd $HOME
if {_IS_RUNNING}; then kill -TERM -- -$(cat ev2-job/pid); fi
"""

# One line for a worker: "worker 3: exit 0", "worker 3: running" ...
STATE = f"""\
cd $HOME
{_WORKER}
if test -s ev2-job/exit; then echo "worker $worker: exit $(cat ev2-job/exit)"
elif {_IS_RUNNING}; then echo "worker $worker: running"
elif test -s ev2-job/pid; then echo "worker $worker: killed"
else echo "worker $worker: none"
fi
"""

# The bar rewrites its line: its last state is what follows the last return.
PROGRESS = """\
test -s ev2-job/log && tail -c 4000 ev2-job/log | tr "\\r" "\\n" | grep . | tail -n 1
"""


def setup(bucket: str, archive: str) -> str:
    """Mounts the bucket, unpacks `archive` of it, installs Python and packages."""
    return _SETUP.replace("BUCKET", shlex.quote(bucket)).replace(
        "ARCHIVE", shlex.quote(archive)
    )


def preflight(limit_s: float) -> str:
    """Meets the other workers; prints one JSON line."""
    return (
        "cd $HOME/ev2-source && ../ev2-python/bin/python launch/preflight.py "
        f"--limit_s={limit_s:g}"
    )


def start(words: Sequence[str], folder: str) -> str:
    """Starts `ev2 WORDS` with the run in `folder` of the bucket, and comes back.

    With --distributed the processes of all workers make one run.
    """
    workdir = f"$HOME/ev2-bucket/{shlex.quote(folder)}"
    command = f"$HOME/ev2-python/bin/ev2 {shlex.join(words)} --workdir={workdir}"
    command += " --distributed"
    return _START.replace("COMMAND", command).replace("WORKDIR", workdir)


def follow(first_byte: int, session: str) -> str:
    """Prints the log from `first_byte`, counted from 1, until the job ends.

    Runs once for a `session`: when ssh drops, gcloud itself runs the command again,
    which would print all once more.
    """
    return (
        f"mkdir ev2-job/{session} && tail -c +{first_byte} -F -s 0.2 "
        "--pid=$(cat ev2-job/pid) ev2-job/log 2> /dev/null"
    )


def show_log(lines: int, *, follow: bool, prefix: bool) -> str:
    """Prints the last `lines` of the log; with `prefix` says whose they are."""
    command = f"tail -n {lines} {'-F ' if follow else ''}ev2-job/log"
    if not prefix:
        return command
    return f'{command} | sed -u "s/^/[${{HOSTNAME##*-}}] /"'
