"""The command `ev2 train`."""

import re

from ev2 import errors
from ev2.cli import flags
from ev2.cli.commands import command


@command(
    "ev2 train --config=configs/demo.py --workdir=runs/demo",
    flags.RECIPE,
    flags.string("workdir", "Directory of the run.", required=True),
    flags.string("profile", "Steps to profile, FIRST:LAST; into WORKDIR/profile."),
    flags.switch("distributed", "Joins the processes of Cloud TPU, Slurm or Open MPI."),
    flags.string("coordinator", "HOST:PORT of process 0, without --distributed."),
    flags.integer("num_processes", "Number of processes, with --coordinator."),
    flags.integer("process", "Index of this process, with --coordinator."),
)
def train(values: flags.Values) -> None:
    """Trains a network; resumes by itself, evaluates and writes a report."""
    import jax

    from ev2.report import report
    from ev2.train import loop, multihost

    steps = _parse_steps(values.profile)
    processes = ("distributed", "coordinator", "num_processes", "process")
    with multihost.joined(**flags.pick(values, *processes)):
        results = loop.train_and_evaluate(values.config, values.workdir, profile=steps)
        is_first = jax.process_index() == 0
    if not is_first:
        return
    page = report.write_report(values.workdir)
    for name, label in (("ema", "EMA"), ("raw", "raw")):
        sums = results[name]
        print(
            f"{label} weights: top-1 {sums['top1']:.2%}, top-5 {sums['top5']:.2%}, "
            f"{sums['count']:,} images, {sums['skipped']:,} skipped"
        )
    if skipped := results["train_skipped"]:
        print(f"training skipped {skipped:,} corrupt images, named above")
    print(f"report: {page}")


def _parse_steps(text: str | None) -> range:
    """Returns the steps of "FIRST:LAST", LAST exclusive; of None, no steps."""
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2])) if match else range(0)
    if not steps:
        raise errors.InputError(
            f"profile: {text!r}; give FIRST:LAST, such as 100:110 for ten steps"
        )
    return steps
