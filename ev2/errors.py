"""The one error that means "the input was bad": a line for people, exit code 2."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a person: one line with key, value and what is allowed.

    The command line prints the message alone and exits with code 2; nothing has
    been written or compiled when it is raised.
    """


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raises InputError, listing `allowed`, if `value` is not among them."""
    allowed = list(allowed)
    if value not in allowed:
        names = ", ".join(str(a) for a in allowed)
        raise InputError(f"{key}: {value!r} is not known; choose one of {names}")
