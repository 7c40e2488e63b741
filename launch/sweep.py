"""Trains a config many times: a grid, random draws, or suggestions of Optuna.

    python launch/sweep.py --config=configs/demo.py --sweep=configs/sweeps/demo.py

Every trial is a complete `ev2 train` in its own folder. The same command on any number
of machines, with one --storage, starts workers that share the trials; after a stop it
resumes the sweep. See docs/sweeps.md.

Exit codes: 0 all trials have ended; 1 no trial has a score, or workers failed; 2 bad
input (one line; nothing was created); 75 SIGTERM, 130 Ctrl-C: the same command resumes
the sweep.
"""

import functools
import json
import pathlib
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

try:
    import optuna
    from ml_collections import config_flags
except ImportError as missing:
    print(f"sweep: {missing}; pip install 'ev2[sweep]'", file=sys.stderr)
    sys.exit(2)

from ev2 import errors, files  # noqa: E402
from ev2.cli import flags as cli_flags  # noqa: E402
from ev2.sweeps import runner, storage, study, workers  # noqa: E402
from launch import gcloud, results, space, sweep_options, sweep_tpu  # noqa: E402

_TEXTS = (
    ("sweep", None, "Sweep file, such as configs/sweeps/demo.py."),
    ("name", None, "Name of the sweep in the storage; by default of the file."),
    ("out", None, "Folder on this machine; runs/sweeps/NAME if not given."),
    (
        "storage",
        None,
        "Database that workers share: a file, for workers of one machine, or "
        "postgresql://USER@HOST/DATABASE. OUT/study.db if not given.",
    ),
    ("command", None, "Command of a trial in place of `ev2 train`, with flags."),
    ("zone", None, "TPUs: zone, such as europe-west4-a."),
    ("project", None, "TPUs: project of Google Cloud."),
    ("bucket", None, "TPUs: gs://NAME; trials are in BUCKET/sweeps/NAME."),
    ("source", str(ROOT), "TPUs: git checkout to ship."),
)
_SWITCHES = (
    ("check_config", True, "Checks the config of the first trial by `ev2 plan`."),
    ("check_tpus", True, "Checks the nodes first."),
    ("results", True, "Writes the table and plots at the end."),
    ("only_results", False, "Writes table and plots now, and runs nothing."),
    ("dry_run", False, "Prints the commands of a trial, and runs nothing."),
)
_SECONDS = (
    ("poll_s", 0.5, "Seconds between two checks of runs and of waiting trials."),
    ("beat_s", 20.0, "Seconds between two heartbeats of a trial, rounded up."),
    ("grace_s", 120.0, "Seconds without a heartbeat after which a worker is dead."),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, or resumes, a sweep and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    values = _define_flags(argv)
    if not argv or "--help" in argv or "-h" in argv:
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if rest := cli_flags.read(values, argv):
            raise errors.InputError(
                f"flags: {rest[0]!r} is not a flag; write --name=value"
            )
        return _run(sweep_options.check(values), argv)
    except errors.InputError as error:
        return _fail(str(error), 2)
    except (errors.StoppedError, gcloud.CloudError) as error:
        return _fail(str(error), 1)
    except storage.FAULTS as error:
        return _fail(f"storage: {storage.explain(error)}", 1)


def _fail(text: str, code: int) -> int:
    workers.say(" ".join(text.split()))
    return code


def _define_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Recipe.", flag_values=values, sys_argv=["sweep.py", *argv]
    )
    for name, default, text in _TEXTS:
        flags.DEFINE_string(name, default, text, flag_values=values)
    text = "Names of existing TPU nodes, each of which runs one trial at a time."
    flags.DEFINE_list("tpus", None, text, flag_values=values)
    flags.DEFINE_integer("workers", 1, "Trials at a time here.", flag_values=values)
    text = "Retries of a trial that died with its run or worker."
    flags.DEFINE_integer("retries", 2, text, 0, flag_values=values)
    for name, default, text in _SWITCHES:
        flags.DEFINE_bool(name, default, text, flag_values=values)
    for name, seconds, text in _SECONDS:
        flags.DEFINE_float(name, seconds, text, 0.0, flag_values=values)
    return values


def _run(options: sweep_options.SweepOptions, argv: Sequence[str]) -> int:
    if options.flags.dry_run:
        return _show(options)
    shared = sweep_options.open_study(options)
    if options.flags.only_results:
        return _finish(options, shared)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sweep.json"
    if not path.exists():
        text = json.dumps(options.spec.definition, indent=1) + "\n"
        files.write_atomically(path, text.encode())
    places = options.tpus.places if options.tpus else []
    if options.flags.workers * max(len(places), 1) == 1:
        code = _work(options, shared)
    else:
        code = _work_together(options, argv)
    if code:
        return code
    return _finish(options, shared) if options.flags.results else 0


class _Sweep(runner.Objective):
    """Trains the config with the values of a trial."""

    def __init__(self, sweep: space.Sweep, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._sweep = sweep

    def suggest(self) -> Mapping[str, Any]:
        return space.suggest(self.trial, self._sweep)

    def arguments(self) -> list[str]:
        return space.as_flags(self.values)


def _work(options: sweep_options.SweepOptions, shared: study.SharedStudy) -> int:
    """Runs trials here, one at a time, until none is left."""
    stopping, poll_s = threading.Event(), options.flags.poll_s
    if options.tpus:
        machine = sweep_tpu.make_machine(options.tpus, options.out, options.arguments)
    else:
        command = functools.partial(_make_command, options)
        machine = runner.Machine(out=options.out, command=command, look_s=poll_s)
    score = options.sweep.score
    objective = _Sweep(
        *(options.sweep, shared, machine, stopping), score=score, poll_s=poll_s
    )
    with workers.listening(stopping.set) as received:
        return 0 if objective.work() else workers.SIGNALS[received[0]]


def _make_command(
    options: sweep_options.SweepOptions,
    words: Sequence[str],
    folder: str,
    resumes: bool = False,
) -> list[str]:
    """Returns the command that runs a trial here."""
    del resumes  # ev2 resumes by itself
    given = options.flags.command
    start = shlex.split(given) if given else [sys.executable, "-m", "ev2", "train"]
    workdir = (options.out / "trials" / folder).absolute()
    return [*start, *options.arguments, *words, f"--workdir={workdir}"]


def _work_together(options: sweep_options.SweepOptions, argv: Sequence[str]) -> int:
    """Starts a process per worker and waits for all of them."""
    own = ["--workers=1", "--noresults", "--nocheck_config", "--nocheck_tpus"]
    places = options.tpus.places if options.tpus else []
    each = [[*own, f"--tpus={place.name}"] for place in places]
    each = each or [own] * options.flags.workers
    command = [sys.executable, str(ROOT / "launch/sweep.py"), *argv]
    codes, received = workers.run_together([[*command, *words] for words in each])
    if received:
        return workers.SIGNALS[received[0]]
    for number, code in enumerate(codes):
        if code:
            workers.say(f"worker {number} of {len(codes)} ended with {code}")
    return 0 if 0 in codes else 1


def _finish(options: sweep_options.SweepOptions, shared: study.SharedStudy) -> int:
    """Prints the table and writes table and plots beside the trials."""
    rows = results.collect(shared, options.sweep)
    options.out.mkdir(parents=True, exist_ok=True)
    print(results.format_table(rows, options.sweep))
    for line in results.write(options.out, shared, options.sweep, rows):
        print(line)
    scored = any(row["state"] == study.DONE for row in rows)
    return 0 if scored or options.flags.only_results else 1


def _show(options: sweep_options.SweepOptions) -> int:
    """Prints the command of the first trial, for each node if there are nodes."""
    fixed = space.decode(options.sweep, options.spec.params[0])
    suggested = {key: "AS_SUGGESTED" for key in options.sweep.keys}
    words = space.as_flags(suggested | fixed)
    if options.tpus:
        sweep_tpu.show(options.tpus, options.arguments, words)
        return 0
    print(f"# trial 0 of {options.sweep.trials}")
    print(shlex.join(_make_command(options, words, "0000")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
