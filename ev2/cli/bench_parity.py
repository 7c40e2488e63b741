"""Compares logits with reference implementations on equal weights."""

from ev2.cli import flags

EXAMPLE = "ev2 bench parity --models=efficientnetv2-b0 --witnesses=keras"
FLAGS = (
    flags.words("models", "Networks; all if not given.", []),
    flags.words(
        "witnesses",
        "Reference implementations: keras, timm, torchvision; the installed ones if "
        "not given.",
        [],
    ),
    flags.JSON,
)


def run(values: flags.Values) -> None:
    from ev2.bench import parity

    table = parity.compare(values.models, values.witnesses)
    flags.show(values.json, table, parity.format_table(table))
    parity.check(table)
