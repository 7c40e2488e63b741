"""The command line: `ev2 VERB --flag=value ...`. Verbs only; the work is elsewhere.

A verb is one word, or two where it has several subjects: `ev2 bench infer`.

Exit codes: 0 done, 1 failed, 2 bad input (one line on stderr says what to change).
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags, logging
from ml_collections import config_flags

from ev2 import errors

_CONFIG_HELP = "Recipe, such as configs/demo.py or configs/imagenet1k.py:s."


class Verb(NamedTuple):
    """A verb: its line in the help, its flags, and what it does with them."""

    summary: str
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[[flags.FlagValues], None]


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
            print(f"ev2 {name}: {verb.summary}\n\n{values.get_help()}")
            return 0
        _parse(values, argv)
        _set_up_process()
        verb.run(values)
    except errors.InputError as error:
        return _refuse(str(error))
    except (FloatingPointError, errors.CheckError) as error:
        print(f"ev2: {error}", file=sys.stderr)
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


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Parses flags and config; whatever is wrong in them is bad input."""
    try:
        rest = values([f"ev2 {argv[0]}", *argv[1:]])[1:]
        if "config" in values and values.config is not None:
            values.config.to_dict()  # a file that failed to load says so only now
    except (flags.Error, ValueError, KeyError, AttributeError, TypeError) as error:
        # A recipe's own error arrives with its traceback; the last line is for people.
        raise errors.InputError(f"flags: {_last_line(error)}") from error
    except (OSError, ImportError, SyntaxError) as error:
        raise errors.InputError(
            f"config: {_last_line(error)}; give a recipe such as configs/demo.py"
        ) from error
    if rest:
        raise errors.InputError(f"flags: {rest[0]!r} is not a flag; write --name=value")


def _last_line(error: Exception) -> str:
    text = str(error.args[0]) if error.args else repr(error)
    if isinstance(error, KeyError):  # a key that the config does not have, and a hint
        return f"config key {' '.join(text.split())} is not known; see configs/defaults"
    return (text.strip() or repr(error)).splitlines()[-1].strip()


def _set_up_process() -> None:
    """Logging for people, and the cache of compiled programs."""
    flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "ev2" / "compiled"))


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


def _define_config(
    values: flags.FlagValues, argv: Sequence[str], *, required: bool
) -> None:
    config_flags.DEFINE_config_file(
        "config", None, _CONFIG_HELP, flag_values=values, sys_argv=["ev2", *argv]
    )
    if required:
        flags.mark_flag_as_required("config", flag_values=values)


def _string(values: flags.FlagValues, name: str, help_text: str, *, required=False):
    flags.DEFINE_string(name, None, help_text, required=required, flag_values=values)


def _define_train(values: flags.FlagValues, argv: Sequence[str]) -> None:
    _define_config(values, argv, required=True)
    _string(values, "workdir", "Folder of the run.", required=True)


def _train(values: flags.FlagValues) -> None:
    import jax

    from ev2 import report, train

    results = train.train_and_evaluate(values.config, values.workdir)
    if jax.process_index() != 0:
        return
    page = report.write_report(values.workdir)
    for name, label in (("ema", "averaged"), ("raw", "raw")):
        sums = results[name]
        print(
            f"{label} weights: top-1 {sums['top1']:.2%}, top-5 {sums['top5']:.2%}, "
            f"{sums['count']:,} images, {sums['skipped']:,} skipped"
        )
    print(f"report: {page}")


def _define_evaluate(values: flags.FlagValues, argv: Sequence[str]) -> None:
    _define_config(values, argv, required=False)
    _string(values, "checkpoint", "Run folder, or one checkpoint in it.", required=True)
    flags.DEFINE_enum(
        "weights", "ema", ["ema", "raw"], "Averaged or raw.", flag_values=values
    )
    flags.DEFINE_enum(
        "split", "eval", ["eval", "train"], "Split to evaluate.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size", 0, "Global images; 0 = the config's.", flag_values=values
    )
    flags.DEFINE_integer(
        "image_size", 0, "Pixels; 0 = the checkpoint's.", flag_values=values
    )


def _evaluate(values: flags.FlagValues) -> None:
    from ev2 import evaluate

    results = evaluate.evaluate_checkpoint(
        values.checkpoint,
        values.config,
        weights=values.weights,
        split=values.split,
        batch_size=values.batch_size,
        image_size=values.image_size,
    )
    print(json.dumps(results))


def _define_plan(values: flags.FlagValues, argv: Sequence[str]) -> None:
    _define_config(values, argv, required=True)
    _string(values, "json", "File to write the plan to.")


def _plan(values: flags.FlagValues) -> None:
    from ev2 import plan

    table = plan.make_plan(values.config)
    if values.json:
        _write_json(values.json, table)
    else:
        print(plan.format_table(table))


def _define_prepare(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    _string(values, "source", "Folder with the original files.", required=True)
    _string(values, "out", "Folder to write the shards to.", required=True)
    _string(values, "json", "File to write the manifest to.")


def _prepare(values: flags.FlagValues) -> None:
    from ev2.data import prepare

    manifest = prepare.prepare_fashion_mnist(values.source, values.out)
    if values.json:
        _write_json(values.json, manifest)
    else:
        print(json.dumps(manifest, indent=1))


def _define_export(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    _string(values, "checkpoint", "Run folder, or one checkpoint in it.", required=True)
    names = "stablehlo, saved_model, tflite, onnx or safetensors."
    _string(values, "format", names, required=True)
    _string(values, "out", "File (or folder) to write, new.", required=True)
    flags.DEFINE_enum(
        "weights", "ema", ["ema", "raw"], "Averaged or raw.", flag_values=values
    )


def _export(values: flags.FlagValues) -> None:
    from ev2 import export

    report = export.export(
        values.checkpoint, values.format, values.out, weights=values.weights
    )
    print(
        f"{values.out}: {report['bytes']:,} bytes; largest difference to the source "
        f"{report['max_abs_difference']:.2g}, allowed {report['bound']:.2g}"
    )


def _define_bench_infer(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    _string(values, "model", "Network with random weights, such as efficientnetv2-s.")
    _string(values, "checkpoint", "Run folder or checkpoint, in place of --model.")
    flags.DEFINE_integer("batch", 16, "Images at once.", flag_values=values)
    flags.DEFINE_integer(
        "image_size", 0, "Pixels; 0 = what it is evaluated at.", flag_values=values
    )
    flags.DEFINE_list(
        "formats", None, "Exports to measure; all if left out.", flag_values=values
    )
    _string(values, "json", "File to write the figures to.")


def _bench_infer(values: flags.FlagValues) -> None:
    from ev2.bench import infer

    figures = infer.measure(
        model=values.model,
        checkpoint=values.checkpoint,
        batch_size=values.batch,
        image_size=values.image_size,
        formats=values.formats,
    )
    if values.json:
        _write_json(values.json, figures)
    else:
        print(infer.format_table(figures))


def _define_report(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    _string(values, "workdir", "Folder of the run.", required=True)


def _report(values: flags.FlagValues) -> None:
    from ev2 import report

    print(f"report: {report.write_report(values.workdir)}")


def _write_json(path: str, document: object) -> None:
    try:
        pathlib.Path(path).write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise errors.InputError(
            f"json: {path!r} cannot be written ({error.strerror}); choose another file"
        ) from error


VERBS = {
    "train": Verb("trains, resumes by itself, evaluates", _define_train, _train),
    "evaluate": Verb("exact accuracy of a checkpoint", _define_evaluate, _evaluate),
    "plan": Verb("prints the stages of a run", _define_plan, _plan),
    "export": Verb("a file that other tools can serve", _define_export, _export),
    "bench infer": Verb(
        "latency, live and exported", _define_bench_infer, _bench_infer
    ),
    "prepare fashion-mnist": Verb(
        "turns original files into shards", _define_prepare, _prepare
    ),
    "report": Verb("pictures and one page of a run", _define_report, _report),
}


if __name__ == "__main__":
    sys.exit(main())
