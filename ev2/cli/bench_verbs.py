"""What each `ev2 bench` verb takes and does; the measuring is in `ev2.bench`."""

from collections.abc import Sequence

from absl import flags

from ev2 import errors
from ev2.cli import flags as verb


def _define_infer(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    verb.define_string(
        values, "model", "Network with random weights, such as efficientnetv2-s."
    )
    verb.define_string(
        values, "checkpoint", "Checkpoint or published weights, in place of --model."
    )
    flags.DEFINE_integer("batch", 16, "Images at once.", flag_values=values)
    flags.DEFINE_integer(
        "image_size", 0, "Pixels; 0 = what it is evaluated at.", flag_values=values
    )
    flags.DEFINE_list(
        "formats", None, "Exports to measure; all if left out.", flag_values=values
    )
    verb.define_string(values, "json", "File to write the figures to.")


def _infer(values: flags.FlagValues) -> None:
    from ev2.bench import latency as infer

    figures = infer.measure(
        model=values.model,
        checkpoint=values.checkpoint,
        batch_size=values.batch,
        image_size=values.image_size,
        formats=values.formats,
    )
    if values.json:
        verb.write_json(values.json, figures)
    else:
        print(infer.format_table(figures))


def _define_input(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=True)
    flags.DEFINE_integer("images", 2000, "Images a figure.", flag_values=values)
    flags.DEFINE_list(
        "sizes", [], "Pixels; the recipe's if left out.", flag_values=values
    )
    verb.define_string(values, "json", "File to write the figures to.")


def _input(values: flags.FlagValues) -> None:
    from ev2.bench import input as bench

    sizes = _whole_numbers("sizes", values.sizes)
    figures = bench.measure(values.config, images=values.images, sizes=sizes)
    if values.json:
        verb.write_json(values.json, figures)
    print(bench.format_table(figures))


def _define_parity(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    flags.DEFINE_list("models", [], "Networks; all if left out.", flag_values=values)
    flags.DEFINE_list(
        "witnesses",
        [],
        "keras, timm, torchvision; those installed if left out.",
        flag_values=values,
    )
    verb.define_string(values, "json", "File to write the figures to.")


def _parity(values: flags.FlagValues) -> None:
    from ev2.bench import parity

    table = parity.compare(values.models, values.witnesses)
    if values.json:
        verb.write_json(values.json, table)
    print(parity.format_table(table))
    parity.check(table)


def _define_transition(values: flags.FlagValues, argv: Sequence[str]) -> None:
    verb.define_config(values, argv, required=True)
    verb.define_string(values, "json", "File to write the figures to.")


def _transition(values: flags.FlagValues) -> None:
    from ev2.bench import transition

    figures = transition.measure(values.config)
    if values.json:
        verb.write_json(values.json, figures)
    print(transition.format_table(figures))


def _define_step(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    verb.define_string(
        values, "model", "Network: s, b0, v1-b0 or a full name.", required=True
    )
    flags.DEFINE_list("size", None, "Pixels, one or several.", flag_values=values)
    flags.mark_flag_as_required("size", flag_values=values)
    flags.DEFINE_integer(
        "batch", 16, "Images; with --tpu per device.", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "Compute type; bfloat16 with --tpu and float32 here, if not given.",
        flag_values=values,
    )
    verb.define_string(
        values, "tpu", "TPU slice to compile for, such as v3-32; if not given, here."
    )
    flags.DEFINE_bool(
        "peers", False, "Keras, torchvision and timm too.", flag_values=values
    )
    verb.define_string(values, "json", "File to write the figures to.")


def _step(values: flags.FlagValues) -> None:
    from ev2.bench import step

    figures = step.measure(
        values.model,
        sizes=_whole_numbers("size", values.size),
        batch_size=values.batch,
        dtype=values.dtype or ("bfloat16" if values.tpu else "float32"),
        slice_name=values.tpu or "",
        peers=values.peers,
    )
    if values.json:
        verb.write_json(values.json, figures)
    print(step.format_table(figures))


def _define_fused(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    flags.DEFINE_string("tpu", "v3-8", "Slice of TPU v3.", flag_values=values)
    flags.DEFINE_integer("batch", 32, "Images per device.", flag_values=values)
    flags.DEFINE_integer("size", 380, "Pixels.", flag_values=values)
    verb.define_string(values, "json", "File to write the figures to.")


def _fused(values: flags.FlagValues) -> None:
    from ev2.bench import table3 as fused

    figures = fused.measure(
        slice_name=values.tpu, batch_size=values.batch, image_size=values.size
    )
    if values.json:
        verb.write_json(values.json, figures)
    print(fused.format_table(figures))


def _define_controllers(values: flags.FlagValues, argv: Sequence[str]) -> None:
    del argv
    flags.DEFINE_integer(
        "budget", 200, "Networks that each search tries.", flag_values=values
    )
    flags.DEFINE_integer(
        "seeds", 20, "Searches for each controller.", flag_values=values
    )
    verb.define_string(values, "json", "File to write the figures to.")


def _controllers(values: flags.FlagValues) -> None:
    from ev2.bench import controllers

    figures = controllers.measure(budget=values.budget, seeds=range(values.seeds))
    if values.json:
        verb.write_json(values.json, figures)
    print(controllers.format_table(figures))


def _define_json(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of a bench that takes no other."""
    del argv
    verb.define_string(values, "json", "File to write the figures to.")


def _calibration(values: flags.FlagValues, plans: Sequence[str]) -> None:
    from ev2.bench import calibration

    figures = calibration.compare(plans)
    if values.json:
        verb.write_json(values.json, figures)
    print(calibration.format_table(figures))


def _whole_numbers(key: str, words: Sequence[str]) -> list[int]:
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise errors.InputError(f"{key}: {error}; give whole numbers") from error


VERBS = {
    "bench transition": verb.Verb(
        "what a change of stage costs", _define_transition, _transition
    ),
    "bench input": verb.Verb(
        "images a second, beside other loaders", _define_input, _input
    ),
    "bench parity": verb.Verb(
        "our logits beside those of others", _define_parity, _parity
    ),
    "bench step": verb.Verb("a step and inference, beside others", _define_step, _step),
    "bench calibration": verb.Verb(
        "plans for v3-32 beside the paper's hours",
        _define_json,
        _calibration,
        "PLAN...",
    ),
    "bench controllers": verb.Verb(
        "what a search tries next, where the best is known",
        _define_controllers,
        _controllers,
    ),
    "bench fused": verb.Verb(
        "Fused-MBConv in B4, beside the paper", _define_fused, _fused
    ),
    "bench infer": verb.Verb("latency, live and exported", _define_infer, _infer),
}
