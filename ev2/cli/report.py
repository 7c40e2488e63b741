"""The command `ev2 report`."""

from ev2.cli import flags
from ev2.cli.commands import command


@command(
    "ev2 report --workdir=runs/demo",
    flags.string("workdir", "Directory of the run.", required=True),
)
def report(values: flags.Values) -> None:
    """Writes the plots and the HTML page of a run."""
    from ev2.report import report

    print(f"report: {report.write_report(values.workdir)}")
