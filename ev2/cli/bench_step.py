"""The command `ev2 bench step`."""

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


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
    show(values, step, figures)
