"""Lists the images of a folder of class folders, for `build`."""

import os

from ev2 import errors
from ev2.data import file_list, storage
from ev2.data.prepare import image_table, listing

OTHER = "not an image by its name, or not in a class"


def list_folder(*, source: str, out: str, eval_fraction: float) -> listing.Listing:
    """Lists a folder of class folders, divided as `data.source=folder` divides it.

    Args:
        source: the folder, or one that contains train and val.
        out: folder of the shards.
        eval_fraction: fraction of each class to hold out, without val.

    Raises:
        InputError: see `file_list.ListedImages`; or `out` is inside `source`.
    """
    home = os.path.join(os.path.abspath(source), "")
    if os.path.join(os.path.abspath(out), "").startswith(home):
        raise errors.InputError(
            f"out: {out!r} is inside the source {source!r}; give a folder beside it"
        )
    try:
        train, evaluation = (
            file_list.ListedImages("folder", source, split, name, eval_fraction)
            for split, name in (("train", "train"), ("eval", "validation"))
        )
        divided = file_list.find_splits("folder", source, "eval", "validation")
    except errors.InputError as error:
        line = str(error).replace("data.path", "source").replace("data.eval", "eval")
        raise errors.InputError(line) from None
    held_out = f"a fraction of {eval_fraction} of each class, the first by hash"
    return listing.Listing(
        dataset=os.path.basename(os.path.abspath(source)),
        classes=train.class_names,
        synsets=False,
        splits={"train": _locate(train), "validation": _locate(evaluation)},
        sources=[listing.describe_source(source)],
        left_out=_list_others(source, train, evaluation),
        rule={
            "validation": "the source's own" if divided else held_out,
            "train": "the source's own" if divided else "the other images",
            "order": listing.ORDER,
        },
        notes=[],
    )


def _locate(images: file_list.ListedImages) -> image_table.ImageTable:
    """Returns the table of the images, each a file, by their path in the folder."""
    paths = [images.name(i) for i in range(len(images))]
    sizes = storage.map_parallel(listing.size_or_0, paths)
    rows = [
        (i, 0, sizes[i], name.replace(os.sep, "/"), label)
        for i, (name, label) in enumerate(images.rows())
        if sizes[i]
    ]
    return image_table.from_rows(paths, rows)


def _list_others(root: str, *splits: file_list.ListedImages) -> list[dict[str, str]]:
    """Returns the files below `root` that are not among the images, or are empty."""
    images = {split.name(i) for split in splits for i in range(len(split))}
    empty = {path for path in images if not listing.size_or_0(path)}
    others = []
    for inside, folders, names in os.walk(root):
        folders.sort()  # walk in the order of names
        for path in (os.path.join(inside, name) for name in sorted(names)):
            if path in empty or path not in images:
                reason = "empty" if path in empty else OTHER
                others.append({"name": os.path.relpath(path, root), "reason": reason})
    return others
