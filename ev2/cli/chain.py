"""The command `ev2 chain`."""

from ev2.cli import flags
from ev2.cli.commands import command


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
