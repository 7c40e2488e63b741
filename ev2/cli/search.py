"""The command `ev2 search`."""

from ev2 import errors
from ev2.cli import flags
from ev2.cli.commands import command


@command(
    "ev2 search --config=configs/search.py:tiny --workdir=runs/search",
    flags.SEARCH,
    flags.string("workdir", "Directory of candidates and result.", required=True),
    flags.string(
        "storage",
        "Database that workers share: a file on one machine, "
        "postgresql://USER@HOST/DATABASE on several. WORKDIR/study.db if not given.",
    ),
    flags.string("name", "Name of the search in the storage.", "search"),
    flags.integer("workers", "Candidates that train at the same time.", 1),
    flags.JSON,
)
def search(values: flags.Values) -> None:
    """Searches for an architecture, training-aware (section 3.3 of the paper)."""
    try:
        from ev2.nas import search
    except ImportError as error:
        raise errors.InputError(
            f"search: a package is missing ({error}); pip install 'ev2[nas]'"
        ) from error
    result = search.search(
        values.config,
        values.workdir,
        storage=values.storage or "",
        name=values.name,
        workers=values.workers,
    )
    flags.write_json(values.json, result)
