"""Errors that the command line prints as one line, and their exit codes."""

from collections.abc import Iterable


class Ev2Error(Exception):
    """An error whose message is one line for the user.

    Attributes:
        exit_code: exit code of the command.
        advice: end of the printed line.
    """

    exit_code = 1
    advice = ""


class InputError(Ev2Error, ValueError):
    """Bad input, found before anything is written or compiled.

    The message has the key, its value and the allowed values.
    """

    exit_code = 2


class CheckError(Ev2Error, RuntimeError):
    """A written result fails its check; the file stays.

    The message has the value and the allowed bound.
    """


class StoppedError(Ev2Error, RuntimeError):
    """The run cannot continue, for example on a full disk; saved files stay."""


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
