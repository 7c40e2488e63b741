"""The `bench` commands: measurements, and comparisons with published numbers."""

from collections.abc import Sequence
from typing import Any

from ev2.cli import flags
from ev2.cli.commands import command


def _show(values: flags.Values, module: Any, figures: Any) -> None:
    flags.show(values.json, figures, module.format_table(figures))


@command(
    "ev2 bench step --model=b0 --size=192,224 --peers",
    flags.string("model", "Network: s, b0, v1-b0 or a full name.", required=True),
    flags.words("size", "Pixels, one or several.", required=True),
    flags.integer("batch", "Images; with --tpu per device.", 16),
    flags.choice(
        "dtype",
        "Compute type; by default bfloat16 with --tpu, float32 without.",
        ("float32", "bfloat16"),
    ),
    flags.string("tpu", "TPU slice to compile for, such as v3-32."),
    flags.switch("peers", "Measures Keras, torchvision and timm too."),
    flags.JSON,
)
def step(values: flags.Values) -> None:
    """Measures training steps and inference, beside other libraries."""
    from ev2.bench import step

    figures = step.measure(
        values.model,
        sizes=flags.parse_integers("size", values.size),
        batch_size=values.batch,
        dtype=values.dtype or ("bfloat16" if values.tpu else "float32"),
        slice_name=values.tpu or "",
        peers=values.peers,
    )
    _show(values, step, figures)


@command(
    "ev2 bench infer --model=efficientnetv2-s --batch=1",
    flags.string("model", "Network with random weights."),
    flags.string("checkpoint", "Weights to measure in place of --model."),
    flags.integer("batch", "Images at once.", 16),
    flags.integer("image_size", "Pixels; 0 for the size of evaluation.", 0),
    flags.words("formats", "Exports to measure; all if not given."),
    flags.JSON,
)
def infer(values: flags.Values) -> None:
    """Measures the latency of inference, live and exported."""
    from ev2.bench import latency

    options = flags.pick(values, "model", "checkpoint", "image_size", "formats")
    _show(values, latency, latency.measure(batch_size=values.batch, **options))


@command(
    "ev2 bench input --config=configs/demo.py",
    flags.RECIPE,
    flags.integer("images", "Images that each figure is taken over.", 2000),
    flags.words("sizes", "Pixels; the recipe's if not given.", []),
    flags.JSON,
)
def input(values: flags.Values) -> None:
    """Measures input pipelines in images per second, beside other loaders."""
    from ev2.bench import input

    sizes = flags.parse_integers("sizes", values.sizes)
    _show(
        values, input, input.measure(values.config, images=values.images, sizes=sizes)
    )


@command("ev2 bench transition --config=configs/demo.py", flags.RECIPE, flags.JSON)
def transition(values: flags.Values) -> None:
    """Measures the time that a change of stage takes."""
    from ev2.bench import transition

    _show(values, transition, transition.measure(values.config))


@command(
    "ev2 bench parity --models=efficientnetv2-b0 --witnesses=keras",
    flags.words("models", "Networks; all if not given.", []),
    flags.words(
        "witnesses",
        "Reference implementations: keras, timm, torchvision; the installed ones if "
        "not given.",
        [],
    ),
    flags.JSON,
)
def parity(values: flags.Values) -> None:
    """Compares logits with reference implementations on equal weights."""
    from ev2.bench import parity

    table = parity.compare(values.models, values.witnesses)
    _show(values, parity, table)
    parity.check(table)


@command(
    "ev2 bench fused --tpu=v3-8",
    flags.string("tpu", "Slice of TPU v3 to compile for.", "v3-8"),
    flags.integer("batch", "Images per device.", 32),
    flags.integer("size", "Pixels.", 380),
    flags.JSON,
)
def fused(values: flags.Values) -> None:
    """Compares Fused-MBConv in EfficientNet-B4 with Table 3 of the paper."""
    from ev2.bench import table3

    figures = table3.measure(
        slice_name=values.tpu, batch_size=values.batch, image_size=values.size
    )
    _show(values, table3, figures)


@command("ev2 bench calibration s.json m.json", flags.JSON, arguments="PLAN...")
def calibration(values: flags.Values, plans: Sequence[str]) -> None:
    """Compares plans for v3-32 with the hours of the paper."""
    from ev2.bench import calibration

    _show(values, calibration, calibration.compare(plans))


@command(
    "ev2 bench controllers --budget=100 --seeds=5",
    flags.integer("budget", "Networks that each search tries.", 200),
    flags.integer("seeds", "Searches for each controller.", 20),
    flags.JSON,
)
def controllers(values: flags.Values) -> None:
    """Compares the controllers of the search where the best network is known."""
    from ev2.bench import controllers

    figures = controllers.measure(budget=values.budget, seeds=range(values.seeds))
    _show(values, controllers, figures)
