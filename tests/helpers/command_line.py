"""Output of `ev2` commands that a test ran in its own process."""

from ev2.cli import main as cli


def error_line(capsys) -> str:
    """The standard error of the command before, which must be one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def refuse(capsys, *argv: str, code: int = 2) -> str:
    """Runs `ev2 ARGV`, which must exit with `code`; returns its one line of error."""
    assert cli.main(argv) == code
    return error_line(capsys)
