"""The pictures of a folder of class folders, to be made shards."""

import os

from ev2 import errors
from ev2.data import image_folder as folder
from ev2.data import storage as files
from ev2.data.prepare import image_table, listing

OTHER = "no picture by its name, or not in a class"


def list_folder(*, source: str, out: str, eval_fraction: float) -> listing.Listing:
    """Lists a folder of class folders, as `data.source=folder` reads it.

    Args:
        source: the folder, or one that holds train and val.
        out: where the shards will be.
        eval_fraction: share of each class that is held out, without val.

    Raises:
        InputError: as `folder.FolderSource`, or `out` is inside `source`.
    """
    home = os.path.join(os.path.abspath(source), "")
    if os.path.join(os.path.abspath(out), "").startswith(home):
        raise errors.InputError(
            f"out: {out!r} is inside the source {source!r}; give a folder beside it"
        )
    try:
        train, evaluation = (
            folder.FolderSource(source, split, name, eval_fraction)
            for split, name in (("train", "train"), ("eval", "validation"))
        )
        has_splits = folder.has_splits(source, "validation")
    except errors.InputError as error:
        line = str(error).replace("data.path", "source").replace("data.eval", "eval")
        raise errors.InputError(line) from None
    rule = f"a share of {eval_fraction} of each class, the first by hash"
    return listing.Listing(
        dataset=os.path.basename(os.path.abspath(source)),
        classes=train.class_names,
        synsets=False,
        splits={"train": _places(train), "validation": _places(evaluation)},
        sources=[listing.describe_source(source)],
        left_out=_list_others(source, train, evaluation),
        rule={
            "validation": "the source's own" if has_splits else rule,
            "train": "the source's own" if has_splits else "the others",
            "order": listing.ORDER,
        },
        notes=[],
    )


def _places(opened: folder.FolderSource) -> image_table.ImageTable:
    """The pictures by their path inside the folder, each a file of its own."""
    paths = [opened.name(i) for i in range(len(opened))]
    sizes = files.map_parallel(listing.size_or_0, paths)
    rows = [
        (i, 0, sizes[i], name.replace(os.sep, "/"), label)
        for i, (name, label) in enumerate(opened.pictures())
        if sizes[i]
    ]
    return image_table.from_rows(paths, rows)


def _list_others(root: str, *splits: folder.FolderSource) -> list[dict[str, str]]:
    """Files below `root` that are not among the pictures, or are empty."""
    kept = {split.name(i) for split in splits for i in range(len(split))}
    empty = {path for path in kept if not listing.size_or_0(path)}
    kept -= empty
    return [
        {
            "name": os.path.relpath(os.path.join(inside, name), root),
            "reason": "empty" if os.path.join(inside, name) in empty else OTHER,
        }
        for inside, folders, names in os.walk(root)
        if not folders.sort()  # walk in the order of names
        for name in sorted(names)
        if os.path.join(inside, name) not in kept
    ]
