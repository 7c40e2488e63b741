"""Flags of the commands: their definition, their parsing, and the file of --json."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags

from ev2 import errors, files

Values = flags.FlagValues


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
        define: the function of absl that defines it.
        name: without dashes.
        text: one or two sentences for the help.
        default: the value if it is not given.
        required: True if the command does not run without it.
        enum_values: the allowed words; () for any.
    """

    define: Callable[..., Any]
    name: str
    text: str
    default: Any = None
    required: bool = False
    enum_values: Sequence[str] = ()

    def add(self, values: Values, argv: Sequence[str]) -> None:
        """Defines the flag in `values`; `argv` sets keys inside of a config."""
        options: dict[str, Any] = {"flag_values": values}
        if self.enum_values:
            options["enum_values"] = self.enum_values
        if self.define is _define_config:
            options["sys_argv"] = ["ev2", *argv]
        self.define(self.name, self.default, help=self.text, **options)


def _define_config(name: str, default: None, help: str, **options: Any) -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(name, default, help, **options)


string = functools.partial(Flag, flags.DEFINE_string)
integer = functools.partial(Flag, flags.DEFINE_integer)
number = functools.partial(Flag, flags.DEFINE_float)
switch = functools.partial(Flag, flags.DEFINE_bool, default=False)
words = functools.partial(Flag, flags.DEFINE_list)
repeated = functools.partial(Flag, flags.DEFINE_multi_string)


def choice(
    name: str, text: str, allowed: Sequence[str], default: str | None = None
) -> Flag:
    """Returns a flag whose value is one of `allowed`."""
    return Flag(flags.DEFINE_enum, name, text, default, enum_values=allowed)


_config = functools.partial(Flag, _define_config, "config", required=True)
_SETS = "--config.KEY=VALUE sets one of its keys."
RECIPE = _config(f"Recipe, such as configs/imagenet1k.py:s. {_SETS}")
OPTIONAL_RECIPE = dataclasses.replace(RECIPE, required=False)
CHAIN = _config(f"Chain of recipes, such as configs/chain_demo.py. {_SETS}")
SEARCH = _config(f"Search, such as configs/search.py:tiny. {_SETS}")
CHECKPOINT = string(
    "checkpoint", "Run, checkpoint or published weights.", required=True
)
WEIGHTS = choice("weights", "EMA or raw weights.", ("ema", "raw"), "ema")
JSON = string("json", "File to write the result to, as JSON.")


def parse(
    definitions: Iterable[Flag], argv: Sequence[str], *, check_required: bool = True
) -> tuple[Values, list[str]]:
    """Returns the values of the flags in `argv`, and the words beside flags.

    Raises:
        InputError: `argv` or the config that it names is wrong.
    """
    values = Values()
    for flag in definitions:
        flag.add(values, argv)
    rest = read(values, argv)
    for flag in definitions:
        if check_required and flag.required and values[flag.name].value in (None, ""):
            raise errors.InputError(f"{flag.name}: missing; give --{flag.name}=...")
    return values, rest


def read(values: Values, argv: Sequence[str]) -> list[str]:
    """Sets `values` from `argv` and returns the words beside flags.

    Raises:
        InputError: `argv` or the config that it names is wrong.
    """
    try:
        rest = values(["ev2", *argv])[1:]
        if "config" in values and values.config is not None:
            values.config.to_dict()  # raises what loading the file raised
    except (flags.Error, ValueError, KeyError, AttributeError, TypeError) as error:
        raise errors.InputError(f"flags: {_last_line(error)}") from error
    except (OSError, ImportError, SyntaxError) as error:
        raise errors.InputError(
            f"config: {_last_line(error)}; give a recipe such as configs/demo.py"
        ) from error
    return rest


def _last_line(error: Exception) -> str:
    """Returns the message of an error of flags or of a recipe as one line."""
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]  # a key of a section arrives wrapped in another error
    text = (str(error.args[0]) if error.args else repr(error)).strip()
    if isinstance(error, KeyError):  # a key that the config lacks, and a hint
        key, _, hint = text.partition("\n")
        return f"config key {key} is not known; see ev2/config.py. {hint}".strip()
    # A recipe's own error arrives with its traceback.
    line = (text or repr(error)).splitlines()[-1].strip().removeprefix("ValueError: ")
    if "get_config() takes 0 positional arguments" in line:
        return "--config: this recipe takes nothing behind a colon"
    if section := re.match(r"flag --config\.([\w.]+)=.* as a ConfigDict: ", line):
        return f"config: {section[1]} is a section; give --config.{section[1]}.KEY=..."
    if "has no attribute 'get_config'" in line:
        return "--config: this file has no get_config(); give a recipe"
    return line


def pick(values: Values, *names: str) -> dict[str, Any]:
    """Returns the values of the flags `names`, as keyword arguments."""
    return {name: values[name].value for name in names}


def parse_integers(key: str, texts: Sequence[str]) -> list[int]:
    """Returns the values of a list flag as integers, or raises InputError."""
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise errors.InputError(f"{key}: {error}; give whole numbers") from error


def check_json(path: str) -> None:
    """Raises InputError if a result cannot be written to `path`.

    An existing file may be an earlier result, and nothing else.
    """
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise errors.InputError(
            f"json: {path!r} cannot be written (its directory does not exist); choose "
            "another file"
        )
    if not pathlib.Path(path).exists():
        files.check_new("json", path)
        return
    try:
        json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise errors.InputError(
            f"json: {path!r} exists and is not a JSON file; choose another file"
        ) from error


def show(path: str | None, document: object, text: str) -> None:
    """Prints `text` and writes `document` to the file of --json, if one is given."""
    write_json(path, document)
    print(text)


def write_json(path: str | None, document: object) -> None:
    """Writes a result to the file of --json, if one is given.

    Raises:
        InputError: the file cannot be written.
    """
    if not path:
        return
    try:
        pathlib.Path(path).write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise errors.InputError(
            f"json: {path!r} cannot be written ({error.strerror}); choose another file"
        ) from error
