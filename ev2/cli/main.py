"""The command line: `ev2 COMMAND --flag=value ...`.

Exit codes: 0 done, 1 failed, 2 bad input (one line on stderr says what to change), 75
preempted and saved (run again), 130 stopped by Ctrl-C.
"""

import os
import pathlib
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags as absl_flags
from absl import logging

import ev2
from ev2 import errors
from ev2.cli import commands, flags, help, recipe_keys
from ev2.train import memory


def run() -> NoReturn:
    """Runs `main` and exits with its code: the console script."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has closed it, as "| head" does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    if _must_not_wait():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    try:
        _run_command(sys.argv[1:] if argv is None else list(argv))
    except errors.Ev2Error as error:
        print(f"ev2: {' '.join(str(error).split())}{error.advice}", file=sys.stderr)
        return error.exit_code
    except FloatingPointError as error:
        print(f"ev2: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"ev2: {str(error) or 'stopped; saved files stay'}", file=sys.stderr)
        return 130
    return 0


def _run_command(argv: Sequence[str]) -> None:
    """Runs the command of `argv`, or prints the help or the version."""
    words = [word for word in argv if word not in ("-h", "-help", "--help")]
    wants_help = len(words) < len(argv)
    if not words or words == ["help"]:
        print(help.format_overview())
    elif words == ["--version"]:
        print(f"ev2 {ev2.__version__}")
    elif wants_help and (followers := commands.list_followers(" ".join(words))):
        print(help.format_overview(followers))
    else:
        command = commands.load(commands.find(words))
        words = words[len(command.name.split()) :]
        (_print_help if wants_help else _execute)(command, words)


def _print_help(command: commands.Command, argv: Sequence[str]) -> None:
    """Prints the flags of a command and, if `argv` names a config, its keys."""
    text = help.format_command(command)
    if any(word.lstrip("-").startswith("config") for word in argv):
        from ml_collections import config_flags

        values, _ = flags.parse(command.flags, argv, check_required=False)
        if values.config is not None:
            path = config_flags.get_config_filename(values["config"])
            text += f"\n\n{recipe_keys.format_keys(values.config, path)}"
    print(text)


def _execute(command: commands.Command, argv: Sequence[str]) -> None:
    """Checks the flags and the words beside them, then runs the command."""
    values, words = flags.parse(command.flags, argv)
    _check_arguments(command, words)
    if flags.RECIPE in command.flags or flags.OPTIONAL_RECIPE in command.flags:
        from ev2.train import validate

        if values.config is not None:
            validate.check_recipe(values.config)
    if flags.JSON in command.flags and values.json:
        flags.check_json(values.json)
    _set_up_process()
    command.run(values, words) if command.arguments else command.run(values)


def _check_arguments(command: commands.Command, words: Sequence[str]) -> None:
    """Raises InputError unless the words beside flags are what the command takes."""
    noun = command.arguments.removesuffix("...")
    if not noun and words:
        raise errors.InputError(
            f"flags: {words[0]!r} is not a flag; write --name=value"
        )
    if noun and (not words or (len(words) > 1 and noun == command.arguments)):
        count = f"{len(words)} given" if words else "none"
        raise errors.InputError(
            f"{noun}: {count}; write ev2 {command.name} {command.arguments}"
        )


def _set_up_process() -> None:
    """Sets up memory, logging and the directory of JAX's compilation cache."""
    memory.keep_freed()
    absl_flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(_is_not_a_failed_save)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "ev2" / "compiled"))


def _is_not_a_failed_save(record: Any) -> bool:
    """Drops the traceback that Orbax logs of a failed save before raising it."""
    return not ("orbax" in record.pathname and record.levelname == "ERROR")


def _must_not_wait() -> bool:
    """Returns True if Python's exit would wait for a compilation or other processes.

    XLA cannot be interrupted, so its threads, whose names begin with "ev2-", are left.
    """
    multihost = sys.modules.get("ev2.train.multihost")  # without loading JAX
    has_joined = multihost is not None and multihost.have_joined()
    return has_joined or any(t.name.startswith("ev2-") for t in threading.enumerate())


if __name__ == "__main__":
    run()
