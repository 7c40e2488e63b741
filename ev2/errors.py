"""The errors that the command line prints as one line, and their exit codes."""

from collections.abc import Iterable


class Ev2Error(Exception):
    """An error whose message is one line for the user.

    Attributes:
        exit_code: exit code of the command line.
        advice: ends the line that the command line prints.
    """

    exit_code = 1
    advice = ""


class InputError(Ev2Error, ValueError):
    """Bad input: one line with the key, its value and what is allowed.

    It is raised before anything is written or compiled.
    """

    exit_code = 2


class CheckError(Ev2Error, RuntimeError):
    """A written result does not pass its own check; the file stays.

    The message has the figure and the allowed bound.
    """


class StoppedError(Ev2Error, RuntimeError):
    """The run cannot continue, such as on a full disk; saved files stay."""


class PreemptedError(Ev2Error, RuntimeError):
    """The run was asked to stop and has saved its state."""

    exit_code = 75
    advice = "; run the same command again to resume"


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raises InputError, listing `allowed`, if `value` is not among them."""
    allowed = list(allowed)
    if value not in allowed:
        names = ", ".join(str(a) for a in allowed)
        raise InputError(f"{key}: {value!r} is not known; choose one of {names}")
