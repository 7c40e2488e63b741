"""The command line: `ev2 VERB --flag=value ...`. Verbs only; the work is elsewhere.

Exit codes: 0 done, 1 failed, 2 bad input (one line on stderr says what to change).
"""

import collections
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags, logging
from ml_collections import config_flags

from ev2 import arch, errors

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
    if argv[0] not in VERBS:
        return _refuse(f"verb: {argv[0]!r} is not known; choose one of {_names()}")
    verb, values = VERBS[argv[0]], flags.FlagValues()
    verb.define(values, argv)
    flags.DEFINE_bool("help", False, "Shows the flags.", flag_values=values)
    if any(arg in ("--help", "-h", "-help") for arg in argv[1:]):
        print(f"ev2 {argv[0]}: {verb.summary}\n\n{values.get_help()}")
        return 0
    try:
        _parse(values, argv)
        _set_up_process()
        verb.run(values)
        sys.stdout.flush()
    except errors.InputError as error:
        return _refuse(str(error))
    except FloatingPointError as error:
        print(f"ev2: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read stdout has enough, as "| head" does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


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
    _check_rest(values, rest)


def _last_line(error: Exception) -> str:
    if error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]  # a key of a section arrives wrapped in another error
    text = (str(error.args[0]) if error.args else repr(error)).strip()
    if isinstance(error, KeyError):  # a key that the config does not have, and a hint
        key, _, hint = text.partition("\n")
        return f"config key {key} is not known; see configs/defaults.py. {hint}".strip()
    return (text or repr(error)).splitlines()[-1].strip()


def _check_rest(values: flags.FlagValues, rest: Sequence[str]) -> None:
    if "dataset" in values:
        if len(rest) != 1:
            raise errors.InputError("prepare: name one dataset: fashion-mnist")
        values.dataset = rest[0]
    elif "images" in values:
        values.images = [*values.images, *rest]
    elif "source_file" in values:
        if len(rest) != 1:
            raise errors.InputError("convert: name one file or folder of weights")
        values.source_file = rest[0]
    elif rest:
        raise errors.InputError(f"flags: {rest[0]!r} is not a flag; write --name=value")


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


def _names() -> str:
    return ", ".join(VERBS)


def _usage() -> str:
    lines = [f"  {name:<10}{verb.summary}" for name, verb in VERBS.items()]
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
        "split",
        None,
        ["eval", "train", "all"],
        "Pictures to evaluate; all is every one of a folder without train/ and val/, "
        "and the default there for weights that were not trained on a folder.",
        flag_values=values,
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


def _define_predict(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    _string(values, "checkpoint", "Run folder, or one checkpoint in it.", required=True)
    flags.DEFINE_multi_string(
        "images", [], "Files, folders or globs; simply IMAGE...", flag_values=values
    )
    flags.DEFINE_bool(
        "json", False, "A JSON object per picture on stdout.", flag_values=values
    )
    flags.DEFINE_enum(
        "weights", "ema", ["ema", "raw"], "Averaged or raw.", flag_values=values
    )
    flags.DEFINE_integer("top", 5, "Classes to name.", flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "Images at once.", flag_values=values)
    flags.DEFINE_integer(
        "image_size", 0, "Pixels; 0 = the checkpoint's.", flag_values=values
    )


def _predict(values: flags.FlagValues) -> None:
    from ev2 import predict

    predict.print_predictions(
        values.checkpoint,
        values.images,
        json_lines=values.json,
        weights=values.weights,
        top=values.top,
        batch_size=values.batch_size,
        image_size=values.image_size,
    )


def _define_convert(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    flags.DEFINE_string(
        "source_file", None, "Published weights; simply SOURCE.", flag_values=values
    )
    _string(values, "model", "Name of the network; found from the file if not given.")
    _string(values, "out", "Folder to write the checkpoint to.", required=True)
    flags.DEFINE_bool(
        "raw", False, "Of a released checkpoint, not the averages.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_classes", None, "Classes; the file's if not given.", flag_values=values
    )
    flags.DEFINE_bool(
        "new_head", False, "Draws the classifier anew.", flag_values=values
    )
    flags.DEFINE_enum(
        "padding",
        "",
        ["", *arch.PADDINGS],
        "symmetric for timm's networks without tf_ in their name.",
        flag_values=values,
    )
    for name, text in (("mean", "subtracted"), ("std", "divided by")):
        flags.DEFINE_list(
            name,
            None,
            f"What pixels in 0..255 are {text}: one number or red,green,blue. The "
            "published one if not given; so for the flags below.",
            flag_values=values,
        )
    flags.DEFINE_integer("image_size", None, "Pixels.", flag_values=values)
    _string(values, "interpolation", "bilinear or bicubic.")
    _string(values, "eval_crop", "resize or center.")
    _string(values, "json", "File to write the mapping report to.")


def _convert(values: flags.FlagValues) -> None:
    from ev2 import checkpoint

    names = ("mean", "std", "image_size", "interpolation", "eval_crop")
    report = checkpoint.convert_published(
        values.source_file,
        values.out,
        name=values.model or "",
        averaged=not values.raw,
        num_classes=values.num_classes,
        new_head=values.new_head,
        padding=values.padding,
        preprocessing={
            n: values[n].value for n in names if values[n].value is not None
        },
    )
    if values.json:
        _write_json(values.json, report)
    print(_format_report(report, values.out))


def _format_report(report: dict, out: str) -> str:
    """The mapping report for people: counts, then what was left out by reason."""
    skipped = collections.Counter(row["reason"] for row in report["skipped"])
    lines = [
        f"{report['model']} from {report['format']} names: {report['matched']:,} "
        f"tensors matched, {report['transposed']:,} of them transposed",
        *(f"{count:,} left out: {reason}" for reason, count in skipped.items()),
        *report["notes"],
        "preprocessing: "
        + ", ".join(f"{k} {_short(v)}" for k, v in report["preprocessing"].items()),
        f"weights: {out}",
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    return "/".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


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
    flags.DEFINE_string("dataset", None, "fashion-mnist.", flag_values=values)
    _string(values, "source", "Folder with the original files.", required=True)
    _string(values, "out", "Folder to write the shards to.", required=True)
    _string(values, "json", "File to write the manifest to.")


def _prepare(values: flags.FlagValues) -> None:
    from ev2.data import prepare

    errors.check_choice("prepare", values.dataset, ("fashion-mnist",))
    manifest = prepare.prepare_fashion_mnist(values.source, values.out)
    if values.json:
        _write_json(values.json, manifest)
    else:
        print(json.dumps(manifest, indent=1))


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
    "predict": Verb("names what pictures show", _define_predict, _predict),
    "convert": Verb("published weights to a checkpoint", _define_convert, _convert),
    "plan": Verb("prints the stages of a run", _define_plan, _plan),
    "prepare": Verb("turns original files into shards", _define_prepare, _prepare),
    "report": Verb("pictures and one page of a run", _define_report, _report),
}


if __name__ == "__main__":
    sys.exit(main())
