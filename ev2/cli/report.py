"""Writes the plots and the HTML page of a run."""

from ev2.cli import flags

EXAMPLE = "ev2 report --workdir=runs/demo"
FLAGS = (flags.string("workdir", "Directory of the run.", required=True),)


def run(values: flags.Values) -> None:
    from ev2.report import report

    print(f"report: {report.write_report(values.workdir)}")
