"""The commands by name, each a module of this package that is imported when used."""

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ev2 import errors
from ev2.cli import flags

# Heading in the help: name of a command and its module.
GROUPS = {
    "Train": {
        "train": "train",
        "chain": "chain",
        "search": "search",
        "plan": "plan",
        "report": "report",
    },
    "Use trained weights": {
        "evaluate": "evaluate",
        "predict": "predict",
        "convert": "convert",
        "export": "export",
    },
    "Prepare data": {
        "prepare imagenet1k": "prepare_imagenet1k",
        "prepare imagenet21k": "prepare_imagenet21k",
        "prepare folder": "prepare_folder",
        "prepare fashion-mnist": "prepare_fashion_mnist",
        "prepare flowers": "prepare_flowers",
        "prepare cars": "prepare_cars",
        "prepare preview": "prepare_preview",
    },
    "Measure": {
        "bench step": "bench_step",
        "bench infer": "bench_infer",
        "bench input": "bench_input",
        "bench transition": "bench_transition",
        "bench parity": "bench_parity",
        "bench fused": "bench_fused",
        "bench calibration": "bench_calibration",
        "bench controllers": "bench_controllers",
    },
}
COMMANDS = {name: file for group in GROUPS.values() for name, file in group.items()}


class Command(NamedTuple):
    """A command as its module declares it.

    Attributes:
        name: one or two words.
        summary: the docstring of the module, one sentence.
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


def load(name: str) -> Command:
    """Returns the command called `name`, a key of COMMANDS."""
    module = importlib.import_module(f"ev2.cli.{COMMANDS[name]}")
    arguments = getattr(module, "ARGUMENTS", "")
    return Command(
        name, module.__doc__ or "", module.EXAMPLE, module.FLAGS, arguments, module.run
    )


def find(argv: Sequence[str]) -> str:
    """Returns the key of COMMANDS that `argv` begins with.

    Raises:
        InputError: there is none.
    """
    for name in (argv[0], " ".join(argv[:2])):
        if name in COMMANDS:
            return name
    if followers := list_followers(argv[0]):
        names = ", ".join(name.split()[1] for name in followers)
        advice, known = f"after {argv[0]}, name one of {names}", followers
    else:
        known = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
        advice = f"choose one of {', '.join(known)}"
        name = argv[0]
    if close := difflib.get_close_matches(name, known, n=1):
        advice = f"did you mean {close[0]!r}?"
    raise errors.InputError(f"command: {name!r} is not known; {advice}")


def list_followers(word: str) -> list[str]:
    """Returns the commands of two words that begin with `word`."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]
