"""The command `ev2 plan`."""

from typing import Any

from ev2 import errors
from ev2.cli import flags
from ev2.cli.commands import command


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
