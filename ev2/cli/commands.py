"""The commands by name, each in a module that is imported when the command runs."""

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ev2 import errors
from ev2.cli import flags

# Heading in the help: its commands. "bench step" is in the module bench_step.
GROUPS = {
    "Train": ("train", "chain", "search", "plan", "report"),
    "Use trained weights": ("evaluate", "predict", "convert", "export"),
    "Prepare data": (
        *("prepare imagenet1k", "prepare imagenet21k", "prepare folder"),
        *("prepare fashion-mnist", "prepare flowers", "prepare cars"),
        "prepare preview",
    ),
    "Measure": (
        *("bench step", "bench infer", "bench input", "bench transition"),
        *("bench parity", "bench fused", "bench calibration", "bench controllers"),
    ),
}
COMMANDS = {name: heading for heading, names in GROUPS.items() for name in names}


class Command(NamedTuple):
    """A command as its module declares it.

    Attributes:
        name: one or two words.
        summary: one sentence.
        example: a command line.
        flags: in the order of the help.
        arguments: the words beside flags: "SOURCE" for one, "IMAGE..." for one or
            more, "" for none.
        run: takes the values of the flags and, if there are `arguments`, their list.
    """

    name: str
    summary: str
    example: str
    flags: Sequence[flags.Flag]
    arguments: str
    run: Callable[..., None]


def command(
    example: str, *definitions: flags.Flag, arguments: str = ""
) -> Callable[[Callable[..., None]], Command]:
    """Declares the decorated function as a command; its docstring is the summary."""
    words = example.split()[1:3]
    name = next(n for n in (words[0], " ".join(words)) if n in COMMANDS)
    return lambda run: Command(
        name, run.__doc__ or "", example, definitions, arguments, run
    )


def load(name: str) -> Command:
    """Returns the command called `name`, one of COMMANDS."""
    path = name.replace(" ", "_").replace("-", "_")
    module = importlib.import_module(f"ev2.cli.{path}")
    return getattr(module, name.split()[-1].replace("-", "_"))


def find(words: Sequence[str]) -> str:
    """Returns the command that `words` begin with.

    Raises:
        InputError: there is none.
    """
    first, second = [*words, ""][:2]
    for name in (first, f"{first} {second}"):
        if name in COMMANDS:
            return name
    followers = list_followers(first)
    start, typed = (f"{first} ", second) if followers else ("", first)
    known = dict.fromkeys(
        name.removeprefix(start).split()[0] for name in followers or COMMANDS
    )
    advice = f"choose one of {', '.join(known)}"
    if close := difflib.get_close_matches(typed, known, n=1, cutoff=0.7):
        advice = f"did you mean '{start}{close[0]}'?"
    given = f"{start}{typed}".strip()
    raise errors.InputError(f"command: {given!r} is not known; {advice}")


def list_followers(word: str) -> list[str]:
    """Returns the commands of two words that begin with `word`."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]
