"""What each verb of the command line takes and does; the work is elsewhere."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from ev2 import arch, errors, files, prepare_verbs

_CONFIG_HELP = "Recipe, such as configs/demo.py or configs/imagenet1k.py:s."


class Verb(NamedTuple):
    """A verb: its line in the help, its flags, and what it does with them.

    `words` says what stands beside flags, such as "SOURCE" for one word or "IMAGE..."
    for one or more; `run` is then given their list too.
    """

    summary: str
    define: Callable[[flags.FlagValues, Sequence[str]], None]
    run: Callable[..., None]
    words: str = ""


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
    _string(
        values, "checkpoint", "Run, checkpoint or published weights.", required=True
    )
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
    _string(
        values, "checkpoint", "Run, checkpoint or published weights.", required=True
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


def _predict(values: flags.FlagValues, images: Sequence[str]) -> None:
    from ev2 import predict

    predict.print_predictions(
        values.checkpoint,
        images,
        json_lines=values.json,
        weights=values.weights,
        top=values.top,
        batch_size=values.batch_size,
        image_size=values.image_size,
    )


def _define_convert(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
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


def _convert(values: flags.FlagValues, sources: Sequence[str]) -> None:
    from ev2 import convert

    names = ("mean", "std", "image_size", "interpolation", "eval_crop")
    report = convert.convert_published(
        sources[0],
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
        files.write_json(values.json, report)
    print(convert.format_report(report, values.out))


def _define_plan(values: flags.FlagValues, argv: Sequence[str]) -> None:
    _define_config(values, argv, required=True)
    _string(values, "json", "File to write the plan to.")


def _plan(values: flags.FlagValues) -> None:
    from ev2 import plan

    table = plan.make_plan(values.config)
    if values.json:
        files.write_json(values.json, table)
    else:
        print(plan.format_table(table))


def _define_preview(values: flags.FlagValues, argv: Sequence[str]) -> None:
    _define_config(values, argv, required=True)
    _string(values, "out", "PNG file to write.", required=True)
    _string(values, "image", "Picture to show; a drawn one if not given.")


def _preview(values: flags.FlagValues) -> None:
    from ev2 import preview

    preview.write_preview(values.config, values.out, values.image or "")
    print(f"preview: {values.out}")


def _define_export(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    _string(
        values, "checkpoint", "Run, checkpoint or published weights.", required=True
    )
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
    _string(
        values, "checkpoint", "Checkpoint or published weights, in place of --model."
    )
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
        files.write_json(values.json, figures)
    else:
        print(infer.format_table(figures))


def _define_bench_input(values: flags.FlagValues, argv: Sequence[str]) -> None:
    _define_config(values, argv, required=True)
    flags.DEFINE_integer("images", 2000, "Images a figure.", flag_values=values)
    flags.DEFINE_list(
        "sizes", [], "Pixels; the recipe's if left out.", flag_values=values
    )
    _string(values, "json", "File to write the figures to.")


def _bench_input(values: flags.FlagValues) -> None:
    from ev2.bench import input as bench

    try:
        sizes = [int(size) for size in values.sizes]
    except ValueError as error:
        raise errors.InputError(f"sizes: {error}; give whole numbers") from error
    figures = bench.measure(values.config, images=values.images, sizes=sizes)
    if values.json:
        files.write_json(values.json, figures)
    print(bench.format_table(figures))


def _define_bench_parity(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    flags.DEFINE_list("models", [], "Networks; all if left out.", flag_values=values)
    flags.DEFINE_list(
        "witnesses",
        [],
        "keras, timm, torchvision; those installed if left out.",
        flag_values=values,
    )
    _string(values, "json", "File to write the figures to.")


def _bench_parity(values: flags.FlagValues) -> None:
    from ev2.bench import parity

    table = parity.compare(values.models, values.witnesses)
    if values.json:
        files.write_json(values.json, table)
    print(parity.format_table(table))
    parity.check(table)


def _define_report(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    _string(values, "workdir", "Folder of the run.", required=True)


def _report(values: flags.FlagValues) -> None:
    from ev2 import report

    print(f"report: {report.write_report(values.workdir)}")


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


VERBS = {
    "train": Verb("trains, resumes by itself, evaluates", _define_train, _train),
    "evaluate": Verb("exact accuracy of a checkpoint", _define_evaluate, _evaluate),
    "predict": Verb("names what pictures show", _define_predict, _predict, "IMAGE..."),
    "convert": Verb(
        "published weights to a checkpoint", _define_convert, _convert, "SOURCE"
    ),
    "plan": Verb("prints the stages of a run", _define_plan, _plan),
    "export": Verb("a file that other tools can serve", _define_export, _export),
    "bench input": Verb(
        "images a second, beside other loaders", _define_bench_input, _bench_input
    ),
    "bench parity": Verb(
        "our logits beside those of others", _define_bench_parity, _bench_parity
    ),
    "bench infer": Verb(
        "latency, live and exported", _define_bench_infer, _bench_infer
    ),
    "prepare imagenet1k": Verb(
        "ILSVRC2012's archives to shards",
        prepare_verbs.define_imagenet1k,
        prepare_verbs.prepare_imagenet1k,
    ),
    "prepare imagenet21k": Verb(
        "an archive of class archives to shards",
        prepare_verbs.define_imagenet21k,
        prepare_verbs.prepare_imagenet21k,
    ),
    "prepare folder": Verb(
        "a folder of class folders to shards",
        prepare_verbs.define_folder,
        prepare_verbs.prepare_folder,
    ),
    "prepare fashion-mnist": Verb(
        "the embedded shards, from the original files",
        prepare_verbs.define_fashion_mnist,
        prepare_verbs.prepare_fashion_mnist,
    ),
    "prepare preview": Verb(
        "all operations by magnitude, as a PNG", _define_preview, _preview
    ),
    "report": Verb("pictures and one page of a run", _define_report, _report),
}
