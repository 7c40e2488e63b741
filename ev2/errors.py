"""The errors that the command line turns into one line for people."""

import re
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a person: one line with key, value and what is allowed.

    The command line prints the message alone and exits with code 2; nothing has
    been written or compiled when it is raised.
    """


class CheckError(RuntimeError):
    """A result that was written and does not pass its own check; exit code 1.

    The message has the figure and what was allowed; what was written stays.
    """


class PreemptedError(RuntimeError):
    """The run was told to stop and has saved its state; exit code 75.

    The same command goes on from there.
    """


class StoppedError(RuntimeError):
    """The run cannot go on, such as on a full disk; what was saved stays.

    Exit code 1, and the message alone.
    """


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raises InputError, listing `allowed`, if `value` is not among them."""
    allowed = list(allowed)
    if value not in allowed:
        names = ", ".join(str(a) for a in allowed)
        raise InputError(f"{key}: {value!r} is not known; choose one of {names}")


def last_line(error: Exception) -> str:
    """Returns what an error of flags or of a recipe says, as one line for people."""
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]  # a key of a section arrives wrapped in another error
    text = (str(error.args[0]) if error.args else repr(error)).strip()
    if isinstance(error, KeyError):  # a key that the config does not have, and a hint
        key, _, hint = text.partition("\n")
        return f"config key {key} is not known; see ev2/config.py. {hint}".strip()
    line = (text or repr(error)).splitlines()[-1].strip().removeprefix("ValueError: ")
    if "get_config() takes 0 positional arguments" in line:
        return "--config: this recipe takes nothing behind a colon"
    if section := re.match(r"flag --config\.([\w.]+)=.* as a ConfigDict: ", line):
        return f"config: {section[1]} is a section; give --config.{section[1]}.KEY=..."
    if "has no attribute 'get_config'" in line:
        return "--config: this file has no get_config(); give a recipe"
    return line
