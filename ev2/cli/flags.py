"""What a verb of the command line is, and the flags that several share."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from ev2 import errors, files

_CONFIG_HELP = (
    "Recipe, such as configs/demo.py or configs/imagenet1k.py:s; of ev2 chain a chain, "
    "as configs/chain_demo.py, of ev2 search a search, as configs/search.py:tiny. "
    "--config.KEY=VALUE sets a key of it."
)


class Verb(NamedTuple):
    """A verb: its line in the help, its flags, and what it does with them.

    `words` says what stands beside flags, such as "SOURCE" for one word or "IMAGE..."
    for one or more; `run` is then given their list too.
    """

    summary: str
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[..., None]
    words: str = ""


def define_config(
    values: flags.FlagValues, argv: Sequence[str], *, required: bool
) -> None:
    """Defines --config; `argv` holds what is set inside it."""
    config_flags.DEFINE_config_file(
        "config", None, _CONFIG_HELP, flag_values=values, sys_argv=["ev2", *argv]
    )
    if required:
        flags.mark_flag_as_required("config", flag_values=values)


def define_string(
    values: flags.FlagValues, name: str, help_text: str, *, required=False
) -> None:
    """Defines a flag of text, None if not given."""
    flags.DEFINE_string(name, None, help_text, required=required, flag_values=values)


def check_json(path: str) -> None:
    """Raises InputError if a result cannot be written to `path`, before there is one.

    A file that is there may be an earlier result, and nothing else.
    """
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise errors.InputError(
            f"json: {path!r} cannot be written (its folder does not exist); choose "
            "another file"
        )
    if not pathlib.Path(path).exists():
        files.check_new("json", path)
        return
    try:
        json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise errors.InputError(
            f"json: {path!r} exists and is no JSON file; choose another file"
        ) from error


def write_json(path: str, document: object) -> None:
    """Writes a result; raises InputError if it cannot."""
    try:
        pathlib.Path(path).write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise errors.InputError(
            f"json: {path!r} cannot be written ({error.strerror}); choose another file"
        ) from error
