"""The commands of runs: train, chain, search, plan and report."""

import re
from typing import Any

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


@command(
    "ev2 chain --config=configs/chain.py:s --workdir=runs/s --dry",
    flags.CHAIN,
    flags.string("workdir", "Directory of all runs.", required=True),
    flags.switch("dry", "Checks and prints the runs; trains nothing."),
    flags.JSON,
)
def chain(values: flags.Values) -> None:
    """Runs recipes one after another, each from the weights of an earlier one."""
    import jax

    from ev2.sweeps import chain

    summary = chain.run_chain(values.config, values.workdir, dry=values.dry)
    if values.dry or jax.process_index() != 0:
        return
    flags.show(values.json, summary, f"\n{chain.format_summary(summary)}")
    print(f"summary: {values.workdir}/{chain.JSON_NAME}, and as CSV beside it")


@command(
    "ev2 search --config=configs/search.py:tiny --workdir=runs/search",
    flags.SEARCH,
    flags.string("workdir", "Directory of candidates and result.", required=True),
    flags.string(
        "storage",
        "Database that workers share: a file on one machine, "
        "postgresql://USER@HOST/DATABASE on several. WORKDIR/study.db if not given.",
    ),
    flags.string("name", "Name of the search in the storage.", "search"),
    flags.integer("workers", "Candidates that train at the same time.", 1),
    flags.JSON,
)
def search(values: flags.Values) -> None:
    """Searches for an architecture, training-aware (section 3.3 of the paper)."""
    try:
        from ev2.nas import search
    except ImportError as error:
        raise errors.InputError(
            f"search: a package is missing ({error}); pip install 'ev2[nas]'"
        ) from error
    options = flags.pick(values, "name", "workers") | {"storage": values.storage or ""}
    result = search.search(values.config, values.workdir, **options)
    flags.write_json(values.json, result)


@command(
    "ev2 plan --config=configs/imagenet1k.py:s --tpu=v3-32",
    flags.RECIPE,
    flags.words(
        "tpu",
        "TPU slices such as v3-32 to compile every stage for; takes minutes, no TPU.",
    ),
    flags.integer("batch_size", "Global images; the recipe's if not given."),
    flags.string("plot", "PNG file for several slices; beside --json."),
    flags.JSON,
)
def plan(values: flags.Values) -> None:
    """Prints the stages of a run; with --tpu also their memory and time on slices."""
    from ev2.tpu import forecast
    from ev2.train import plan

    config = values.config
    if values.batch_size is not None:
        config = forecast.set_batch_size(config, values.batch_size)
    if values.tpu is not None:
        _run_forecast(values, config)
    elif values.plot:
        raise errors.InputError(
            f"plot: {values.plot!r} is of TPU slices; give --tpu=v3-8,v3-32 as well"
        )
    else:
        table = plan.make_plan(config)
        flags.show(values.json, table, plan.format_table(table))


def _run_forecast(values: flags.Values, config: Any) -> None:
    """Prints the plan with its cost on the slices; draws the plot."""
    from ev2.tpu import forecast, scaling

    plot = scaling.choose_path(values.plot, values.json, len(values.tpu))
    table = forecast.forecast(config, values.tpu)
    flags.show(values.json, table, scaling.format_stages(table))
    if "scaling" in table:
        print(f"\n{scaling.format_scaling(table)}")
    if plot:
        scaling.write_plot(table, plot)
        print(f"plot: {plot}")


@command(
    "ev2 report --workdir=runs/demo",
    flags.string("workdir", "Directory of the run.", required=True),
)
def report(values: flags.Values) -> None:
    """Writes the plots and the HTML page of a run."""
    from ev2.report import report

    print(f"report: {report.write_report(values.workdir)}")
