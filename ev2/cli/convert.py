"""The command `ev2 convert`."""

from collections.abc import Sequence

from ev2.cli import flags
from ev2.cli.commands import command

_PREPROCESSING = (
    flags.words(
        "mean",
        "Subtracted from pixels in 0..255: one number or red,green,blue. By default "
        "published, like the four values below.",
    ),
    flags.words("std", "Divides pixels in 0..255: one number or red,green,blue."),
    flags.integer("image_size", "Pixels."),
    flags.string("interpolation", "bilinear or bicubic."),
    flags.string("eval_crop", "resize or center."),
)


@command(
    "ev2 convert efficientnetv2-s.tgz --out=weights/s",
    flags.string("out", "Directory to write the checkpoint to.", required=True),
    flags.string("model", "Network; detected from the file if not given."),
    flags.switch("raw", "Takes the raw weights of a released checkpoint."),
    flags.integer("num_classes", "Classes; the file's if not given."),
    flags.switch("new_head", "Initializes a new classifier."),
    flags.choice(
        "padding",
        "symmetric for timm's networks without tf_ in their name.",
        ("", "same", "symmetric"),
        default="",
    ),
    *_PREPROCESSING,
    flags.JSON,
    arguments="SOURCE",
)
def convert(values: flags.Values, sources: Sequence[str]) -> None:
    """Converts published weights to a checkpoint."""
    from ev2.checkpoint import pretrained
    from ev2.checkpoint.published import convert

    given = flags.pick(values, *(flag.name for flag in _PREPROCESSING))
    report = pretrained.convert_published(
        sources[0],
        values.out,
        name=values.model or "",
        averaged=not values.raw,
        **flags.pick(values, "num_classes", "new_head", "padding"),
        overrides={name: v for name, v in given.items() if v is not None},
    )
    flags.show(values.json, report, convert.format_report(report, values.out))
