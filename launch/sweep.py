"""Trains a config many times over: a grid, random draws, or what Optuna suggests.

    python launch/sweep.py --config=configs/demo.py --sweep=configs/sweeps/demo.py

Every trial is a whole `ev2 train` in a folder of its own. The same command on any
number of machines, with one --storage, starts workers that share the trials; started
again, it goes on. docs/sweeps.md has the rest.

Exit codes: 0 all trials have ended, 2 bad input (one line; nothing was created), 1 no
trial came to a score, or workers failed, 75 told to stop (SIGTERM), 130 Ctrl-C; after
both the same command goes on.
"""

import contextlib
import json
import pathlib
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Sequence

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
from ev2.sweeps import runner as trial  # noqa: E402
from ev2.sweeps import storage, trial_files, workers  # noqa: E402
from ev2.sweeps import study as tries  # noqa: E402
from launch import asked as asking  # noqa: E402
from launch import gcloud, results, space, sweep_tpu  # noqa: E402

_TEXTS = (
    ("sweep", None, "Sweep file, as configs/sweeps/demo.py."),
    ("name", None, "Of the sweep, in the storage; the sweep file's if not given."),
    ("out", None, "Folder on this machine; runs/sweeps/NAME if not given."),
    (
        "storage",
        None,
        "Where workers meet: a file, for those of one machine; "
        "postgresql://USER@HOST/DATABASE, or grpc://HOST:PORT, for any. "
        "OUT/journal.log if not given.",
    ),
    ("command", None, "What a trial runs in place of `ev2 train`, with its flags."),
    ("zone", None, "TPUs: as in europe-west4-a."),
    ("project", None, "TPUs: project of Google Cloud."),
    ("bucket", None, "TPUs: gs://NAME; trials lie in BUCKET/sweeps/NAME."),
    ("source", str(ROOT), "TPUs: git checkout to ship."),
)
_SWITCHES = (
    ("check_config", True, "`ev2 plan` reads the config of the first trial before."),
    ("check_tpus", True, "Looks at the nodes before."),
    ("results", True, "Writes the table and plots at the end."),
    ("only_results", False, "Writes them now, and runs nothing."),
    ("dry_run", False, "Prints the commands of a trial, and runs nothing."),
)
_SECONDS = (
    ("poll_s", 0.5, "Seconds between two looks at jobs, and for work."),
    ("beat_s", 20.0, "Seconds between two signs of life of a trial."),
    ("grace_s", 120.0, "Seconds without one after which a worker is dead."),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, or continues, a sweep and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    values = _define_flags(argv)
    if not argv or "--help" in argv or "-h" in argv:
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        asking.parse_flags(values, argv)
        if values.serve:
            return _serve(values)
        return _run(asking.check_flags(values), argv)
    except errors.InputError as error:
        return _say_error(error, 2)
    except (errors.StoppedError, gcloud.CloudError, tries.UnreachableError) as error:
        return _say_error(error, 1)
    except Exception as error:
        if not tries.is_trouble(error):
            raise
        return _say_error(RuntimeError(f"storage: {error.__cause__ or error}"), 1)


def _say_error(error: Exception, code: int) -> int:
    trial.say(" ".join(str(error).split()))
    return code


def _define_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Recipe.", flag_values=values, sys_argv=["sweep.py", *argv]
    )
    for name, default, text in _TEXTS:
        flags.DEFINE_string(name, default, text, flag_values=values)
    text = "Names of TPU nodes that exist; trials run there, one at a time on each."
    flags.DEFINE_list("tpus", None, text, flag_values=values)
    flags.DEFINE_integer("workers", 1, "Trials at a time here.", flag_values=values)
    text = "New tries of a trial that died with its worker."
    flags.DEFINE_integer("retries", 2, text, 0, flag_values=values)
    text = "Port: lets workers reach --storage by gRPC, and runs nothing."
    flags.DEFINE_integer("serve", None, text, 1, 2**16 - 1, flag_values=values)
    for name, default, text in _SWITCHES:
        flags.DEFINE_bool(name, default, text, flag_values=values)
    for name, seconds, text in _SECONDS:
        flags.DEFINE_float(name, seconds, text, 0.0, flag_values=values)
    return values


def _run(asked: asking.Asked, argv: Sequence[str]) -> int:
    if asked.values.dry_run:
        return _show(asked)
    trials = asking.open_trials(asked)
    if asked.values.only_results:
        return _finish(asked, trials)
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "sweep.json"
    if not path.exists():
        text = json.dumps(asked.plan.definition, indent=1) + "\n"
        files.write_atomically(path, text.encode())
    places = asked.tpus.places if asked.tpus else []
    if asked.values.workers * max(len(places), 1) == 1:
        code = _work(asked, trials)
    else:
        code = _work_together(asked, argv)
    if code:
        return code
    return _finish(asked, trials) if asked.values.results else 0


def _work(asked: asking.Asked, trials: tries.Trials) -> int:
    """Runs trials here, one at a time, until none is left."""
    values, stopping = asked.values, threading.Event()
    if asked.tpus:
        machine = sweep_tpu.make_machine(asked.tpus, asked.out, asked.words)
    else:
        machine = _this_machine(asked)
    pace = trial.Pace(poll_s=values.poll_s, beat_s=values.beat_s)
    with workers.listening(stopping.set) as came:
        if trial.work(trials, _make_task(asked.sweep), machine, pace, stopping):
            return 0
    return workers.SIGNALS[came[0]]


def _make_task(sweep: space.Sweep) -> trial.Task:
    return trial.Task(
        name="sweep",
        trials=sweep.trials,
        suggest=lambda one: space.suggest(one, sweep),
        words=space.as_flags,
        score=sweep.score,
        prune=sweep.prune,
    )


def _this_machine(asked: asking.Asked) -> trial.Machine:
    runs = (asked.out / "trials").absolute()

    return trial.Machine(
        out=asked.out,
        name="",
        command=_make_command(asked),
        read=lambda folder, name: trial_files.read(runs / folder / name),
        stop=trial.stop,
        deaths=trial.LOCAL_DEATHS,
        score_s=asked.values.poll_s,
    )


def _make_command(asked: asking.Asked) -> Callable[..., list[str]]:
    """Of a trial's flags and folder, what runs it here."""
    given = asked.values.command
    start = shlex.split(given) if given else [sys.executable, "-m", "ev2", "train"]

    def command(words: Sequence[str], folder: str, again: bool = False) -> list[str]:
        del again  # ev2 goes on by itself
        workdir = (asked.out / "trials" / folder).absolute()
        return [*start, *asked.words, *words, f"--workdir={workdir}"]

    return command


def _work_together(asked: asking.Asked, argv: Sequence[str]) -> int:
    """Starts a process for each worker and waits for all of them."""
    own = ["--workers=1", "--noresults", "--nocheck_config", "--nocheck_tpus"]
    places = asked.tpus.places if asked.tpus else []
    each = [[*own, f"--tpus={place.name}"] for place in places]
    each = each or [own] * asked.values.workers
    command = [sys.executable, str(ROOT / "launch/sweep.py"), *argv]
    codes, came = workers.run_together([[*command, *words] for words in each])
    if came:
        return workers.SIGNALS[came[0]]
    for number, code in enumerate(codes):
        if code:
            trial.say(f"worker {number + 1} of {len(codes)} ended with {code}")
    return 0 if 0 in codes else 1


def _serve(values: flags.FlagValues) -> int:
    """Is Optuna's gRPC proxy of a storage, until it is stopped."""
    if not values.storage:
        raise errors.InputError("flags: --serve also needs --storage=...")
    if values.dry_run:
        print(f"# gRPC on port {values.serve} for {storage.hidden(values.storage)}")
        return 0
    storage.check(values.storage)
    kept = storage.connect(values.storage)
    trial.say(f"serving {storage.hidden(values.storage)} on port {values.serve}")
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            optuna.storages.run_grpc_proxy_server(
                kept, host="0.0.0.0", port=values.serve
            )
        except RuntimeError as error:  # what gRPC says of a port that it cannot have
            if "Failed to bind" not in str(error):
                raise
            raise errors.InputError(
                f"serve: port {values.serve} is in use, or not ours; give another"
            ) from error
    return 0


def _finish(asked: asking.Asked, trials: tries.Trials) -> int:
    """Prints the table and writes it, with the plots, beside the trials."""
    rows = results.collect(trials.study, asked.sweep, asked.values.retries)
    asked.out.mkdir(parents=True, exist_ok=True)
    print(results.format_table(rows, asked.sweep))
    for line in results.write(asked.out, trials.study, asked.sweep, rows):
        print(line)
    scored = any(row["state"] == tries.DONE for row in rows)
    return 0 if scored or asked.values.only_results else 1


def _show(asked: asking.Asked) -> int:
    """Prints how the first trial would run, on each node if on nodes."""
    point = space.decode(asked.sweep, asked.plan.points[0])
    words = space.as_flags({key: "AS_SUGGESTED" for key in asked.sweep.keys} | point)
    if asked.tpus:
        sweep_tpu.show(asked.tpus, asked.words, words)
        return 0
    print(f"# trial 1 of {asked.sweep.trials}")
    print(shlex.join(_make_command(asked)(words, "0000")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
