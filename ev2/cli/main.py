"""The command line: `ev2 VERB --flag=value ...`. What verbs do is in `ev2.cli.verbs`.

A verb is one word, or two where it has several subjects: `ev2 bench infer`.

Exit codes: 0 done, 1 failed, 2 bad input (one line on stderr says what to change), 75
preempted and saved (run again), 130 stopped by Ctrl-C.
"""

import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NoReturn

from absl import flags, logging

from ev2 import errors
from ev2.cli import flags as verb_parts
from ev2.cli.verbs import VERBS
from ev2.train import next_stage as ahead
from ev2.train import validate as check


def run() -> NoReturn:
    """The console command: runs `main` and leaves with its exit code.

    What goes on by itself is left behind, where Python would wait for it or crash
    under it.
    """
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    if _goes_on():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _goes_on() -> bool:
    """Whether something is being compiled, or JAX listens to other processes."""
    processes = sys.modules.get("ev2.train.multihost")  # its JAX is not loaded for this
    if processes is not None and processes.have_joined():
        return True
    return any(thread.name == ahead.THREAD_NAME for thread in threading.enumerate())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    asks_for_help = any(arg in ("--help", "-h", "-help") for arg in argv[1:])
    subjects = [name for name in VERBS if name.startswith(f"{argv[0]} ")]
    if subjects and asks_for_help and " ".join(argv[:2]) not in VERBS:
        print(_usage(subjects))
        return 0
    try:
        name = _find_verb(argv, subjects)
        verb, values = VERBS[name], flags.FlagValues()
        argv = [name, *argv[len(name.split()) :]]
        verb.define(values, argv)
        flags.DEFINE_bool("help", False, "Shows the flags.", flag_values=values)
        if asks_for_help:
            usage = f"ev2 {name} {verb.words}".rstrip()
            print(f"{usage}: {verb.summary}\n\n{values.get_help()}")
            return 0
        words = _parse(values, argv)
        _check_words(verb, name, words)
        own = name in ("chain", "search")  # what their configs are, they check
        if not own and "config" in values and values.config is not None:
            check.check_recipe(values.config)
        if "json" in values and isinstance(values["json"].value, str):
            verb_parts.check_json(values["json"].value)
        _set_up_process()
        verb.run(values, words) if verb.words else verb.run(values)
        sys.stdout.flush()
    except errors.InputError as error:
        return _refuse(str(error))
    except (FloatingPointError, errors.CheckError, errors.StoppedError) as error:
        print(f"ev2: {error}", file=sys.stderr)
        return 1
    except errors.PreemptedError as error:
        print(f"ev2: {error}; the same command goes on from there", file=sys.stderr)
        return 75
    except KeyboardInterrupt as error:
        said = str(error) or "stopped; what was saved stays"
        print(f"ev2: {said}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read stdout has enough, as "| head" does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _find_verb(argv: Sequence[str], subjects: Sequence[str]) -> str:
    """Returns the key in VERBS of the first word, or of the first two."""
    if argv[0] in VERBS:
        return argv[0]
    name = " ".join(argv[:2])
    if name in subjects:
        return name
    if subjects:
        known = ", ".join(subject.split()[1] for subject in subjects)
        raise errors.InputError(
            f"verb: {name!r} is not known; after {argv[0]}, name one of {known}"
        )
    words = ", ".join(dict.fromkeys(name.split()[0] for name in VERBS))
    raise errors.InputError(f"verb: {argv[0]!r} is not known; choose one of {words}")


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses flags and config and returns what stands beside flags.

    Whatever is wrong in them is bad input.
    """
    try:
        words = values([f"ev2 {argv[0]}", *argv[1:]])[1:]
        if "config" in values and values.config is not None:
            values.config.to_dict()  # a file that failed to load says so only now
    except (flags.Error, ValueError, KeyError, AttributeError, TypeError) as error:
        missing = re.search(
            r"Flag --(\w+) must have a value other than None", str(error)
        )
        if missing:
            raise errors.InputError(
                f"{missing[1]}: missing; give --{missing[1]}=..."
            ) from error
        # A recipe's own error arrives with its traceback; the last line is for people.
        raise errors.InputError(f"flags: {errors.last_line(error)}") from error
    except (OSError, ImportError, SyntaxError) as error:
        raise errors.InputError(
            f"config: {errors.last_line(error)}; give a recipe such as configs/demo.py"
        ) from error
    return words


def _check_words(verb: verb_parts.Verb, name: str, words: Sequence[str]) -> None:
    """Refuses words beside flags where the verb takes none, or others than it takes."""
    if not verb.words and words:
        raise errors.InputError(
            f"flags: {words[0]!r} is not a flag; write --name=value"
        )
    noun = verb.words.removesuffix("...")
    if verb.words and (not words or (len(words) > 1 and noun == verb.words)):
        found = f"{len(words)} given" if words else "none"
        raise errors.InputError(f"{noun}: {found}; write ev2 {name} {verb.words}")


def _set_up_process() -> None:
    """Logging for people, and the cache of compiled programs."""
    sys.unraisablehook = _report_unraisable
    flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(_is_not_said_elsewhere)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "ev2" / "compiled"))


def _report_unraisable(found) -> None:
    """Reports errors that nobody waits for, but those of reading a damaged checkpoint.

    Orbax leaves reads running when one fails, and each then finds its loop closed.
    """
    if "Event loop is closed" not in str(found.exc_value):
        sys.__unraisablehook__(found)


def _is_not_said_elsewhere(record) -> bool:
    """False for the tracebacks that Orbax prints of a save before it raises them."""
    return not ("orbax" in record.pathname and record.levelname == "ERROR")


def _refuse(line: str) -> int:
    print(f"ev2: {' '.join(line.split())}", file=sys.stderr)
    return 2


def _usage(names: Sequence[str] = ()) -> str:
    lines = [f"  {name:<23}{VERBS[name].summary}" for name in names or VERBS]
    return "\n".join(
        [
            "usage: ev2 VERB --flag=value ...      (ev2 VERB --help lists the flags)",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    run()
