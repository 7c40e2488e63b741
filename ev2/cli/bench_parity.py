"""The command `ev2 bench parity`."""

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


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
    show(values, parity, table)
    parity.check(table)
