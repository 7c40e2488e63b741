"""What each verb of the command line takes and does; the work is elsewhere."""

import json
from collections.abc import Sequence

from absl import flags

from ev2 import errors
from ev2.cli import bench_verbs, prepare_verbs
from ev2.cli import flags as verb
from ev2.models import arch


def _define_train(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=True)
    verb.define_string(values, "workdir", "Folder of the run.", required=True)
    verb.define_string(
        values, "profile", "Steps to profile, FIRST:LAST; into WORKDIR/profile."
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "One of several processes, which Cloud TPU, Slurm or Open MPI tells apart.",
        flag_values=values,
    )
    verb.define_string(
        values, "coordinator", "HOST:PORT of process 0, where nobody tells them apart."
    )
    for name, text in (
        ("num_processes", "How many processes there are, with --coordinator."),
        ("process", "Which of them this is, from 0, with --coordinator."),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values)


def _train(values: flags.FlagValues) -> None:
    import jax

    from ev2.report import report
    from ev2.train import loop as train
    from ev2.train import memory, profiling
    from ev2.train import multihost as processes

    memory.keep_freed()
    steps = profiling.parse_steps(values.profile)
    with processes.joined(
        distributed=values.distributed,
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process=values.process,
    ):
        results = train.train_and_evaluate(values.config, values.workdir, profile=steps)
        is_first = jax.process_index() == 0
    if not is_first:
        return
    page = report.write_report(values.workdir)
    for name, label in (("ema", "averaged"), ("raw", "raw")):
        sums = results[name]
        print(
            f"{label} weights: top-1 {sums['top1']:.2%}, top-5 {sums['top5']:.2%}, "
            f"{sums['count']:,} images, {sums['skipped']:,} skipped"
        )
    if skipped := results["train_skipped"]:
        print(f"training skipped {skipped:,} corrupt pictures, named above")
    print(f"report: {page}")


def _define_chain(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=True)
    verb.define_string(values, "workdir", "Folder of all runs.", required=True)
    verb.define_string(values, "json", "File to write the summary to as well.")
    flags.DEFINE_bool(
        "dry", False, "Checks and prints what there is to run.", flag_values=values
    )


def _chain(values: flags.FlagValues) -> None:
    import jax

    from ev2.sweeps import chain, chain_summary
    from ev2.train import memory

    memory.keep_freed()
    summary = chain.run_chain(values.config, values.workdir, dry=values.dry)
    if values.dry or jax.process_index() != 0:
        return
    if values.json:
        verb.write_json(values.json, summary)
    print(f"\n{chain_summary.format_summary(summary)}")
    print(f"summary: {values.workdir}/{chain_summary.JSON_NAME}, and as CSV beside it")


def _define_search(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=True)
    text = "Folder for the candidates of this machine and for what is found."
    verb.define_string(values, "workdir", text, required=True)
    verb.define_string(
        values,
        "storage",
        "Where workers meet: a file, for those of one machine; "
        "postgresql://USER@HOST/DATABASE, or grpc://HOST:PORT, for any. "
        "WORKDIR/journal.log if not given.",
    )
    flags.DEFINE_string(
        "name", "search", "Name of the search in the storage.", flag_values=values
    )
    flags.DEFINE_integer("workers", 1, "Candidates at a time.", flag_values=values)
    verb.define_string(values, "json", "File to write search.json to as well.")


def _search(values: flags.FlagValues) -> None:
    try:
        from ev2.nas import search
    except ImportError as error:
        raise errors.InputError(
            f"search: a package is missing ({error}); pip install -e '.[nas]'"
        ) from error
    found = search.search(
        values.config,
        values.workdir,
        storage=values.storage or "",
        name=values.name,
        workers=values.workers,
    )
    if values.json:
        verb.write_json(values.json, found)


def _define_evaluate(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=False)
    verb.define_string(
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
    from ev2.evaluation import evaluate

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
    verb.define_string(
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
    from ev2.evaluation import predict

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
    verb.define_string(
        values, "model", "Name of the network; found from the file if not given."
    )
    verb.define_string(
        values, "out", "Folder to write the checkpoint to.", required=True
    )
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
    verb.define_string(values, "interpolation", "bilinear or bicubic.")
    verb.define_string(values, "eval_crop", "resize or center.")
    verb.define_string(values, "json", "File to write the mapping report to.")


def _convert(values: flags.FlagValues, sources: Sequence[str]) -> None:
    from ev2.checkpoint.published import write as convert

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
        verb.write_json(values.json, report)
    print(convert.format_report(report, values.out))


def _define_plan(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=True)
    verb.define_string(values, "json", "File to write the plan to.")
    flags.DEFINE_list(
        "tpu",
        None,
        "TPU slice such as v3-32, or several: what the steps of each stage take there, "
        "by its compiler; no TPU is needed, minutes are.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Global images; the recipe's if not given.",
        flag_values=values,
    )
    verb.define_string(
        values, "plot", "PNG file of several slices; beside --json if not given."
    )


def _plan(values: flags.FlagValues) -> None:
    from ev2.tpu import forecast
    from ev2.train import plan

    config = values.config
    if values.batch_size is not None:
        config = forecast.set_batch_size(config, values.batch_size)
    if values.plot and values.tpu is None:
        raise errors.InputError(
            f"plot: {values.plot!r} is of TPU slices; give --tpu=v3-8,v3-32 as well"
        )
    if values.tpu is None:
        table = plan.make_plan(config)
        text = plan.format_table(table)
    else:
        table, text = _forecast(values, config)
    if values.json:
        verb.write_json(values.json, table)
    if values.tpu is not None or not values.json:
        print(text)


def _forecast(values: flags.FlagValues, config) -> tuple[dict, str]:
    """A plan with its cost on the slices, and that for people; draws the plot."""
    from ev2.tpu import forecast, scaling

    plot = scaling.choose_path(values.plot, values.json, len(values.tpu))
    table = forecast.forecast(config, values.tpu)
    text = scaling.format_stages(table)
    if "scaling" in table:
        text = f"{text}\n\n{scaling.format_scaling(table)}"
    if plot:
        scaling.write_plot(table, plot)
        text = f"{text}\nplot: {plot}"
    return table, text


def _define_preview(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=True)
    verb.define_string(values, "out", "PNG file to write.", required=True)
    verb.define_string(values, "image", "Picture to show; a drawn one if not given.")


def _preview(values: flags.FlagValues) -> None:
    from ev2.data.augment import preview

    preview.write_preview(values.config, values.out, values.image or "")
    print(f"preview: {values.out}")


def _define_export(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    verb.define_string(
        values, "checkpoint", "Run, checkpoint or published weights.", required=True
    )
    names = "stablehlo, saved_model, tflite, onnx or safetensors."
    verb.define_string(values, "format", names, required=True)
    verb.define_string(values, "out", "File (or folder) to write, new.", required=True)
    flags.DEFINE_enum(
        "weights", "ema", ["ema", "raw"], "Averaged or raw.", flag_values=values
    )


def _export(values: flags.FlagValues) -> None:
    from ev2.export import export

    report = export.export(
        values.checkpoint, values.format, values.out, weights=values.weights
    )
    print(
        f"{values.out}: {report['bytes']:,} bytes; largest difference to the source "
        f"{report['max_abs_difference']:.2g}, allowed {report['bound']:.2g}"
    )


def _define_report(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    verb.define_string(values, "workdir", "Folder of the run.", required=True)


def _report(values: flags.FlagValues) -> None:
    from ev2.report import report

    print(f"report: {report.write_report(values.workdir)}")


VERBS = {
    "train": verb.Verb("trains, resumes by itself, evaluates", _define_train, _train),
    "chain": verb.Verb(
        "runs recipes one after another, each from the last", _define_chain, _chain
    ),
    "search": verb.Verb(
        "searches for a network, training-aware", _define_search, _search
    ),
    "evaluate": verb.Verb(
        "exact accuracy of a checkpoint", _define_evaluate, _evaluate
    ),
    "predict": verb.Verb(
        "names what pictures show", _define_predict, _predict, "IMAGE..."
    ),
    "convert": verb.Verb(
        "published weights to a checkpoint", _define_convert, _convert, "SOURCE"
    ),
    "plan": verb.Verb("prints the stages of a run", _define_plan, _plan),
    "export": verb.Verb("a file that other tools can serve", _define_export, _export),
    **bench_verbs.VERBS,
    **prepare_verbs.VERBS,
    "prepare preview": verb.Verb(
        "all operations by magnitude, as a PNG", _define_preview, _preview
    ),
    "report": verb.Verb("pictures and one page of a run", _define_report, _report),
}
