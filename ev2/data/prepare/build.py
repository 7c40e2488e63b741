"""Builds checked shards from a listing, and resumes an interrupted preparation."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import os
import shutil
from typing import IO, Any

import numpy as np

from ev2 import errors
from ev2.data import storage
from ev2.data.prepare import beam, image_table, shards
from ev2.data.prepare.listing import Listing
from ev2.data.tensorflow import tf

MANIFEST = "manifest.json"
LABELS = "labels.txt"
RECORD_BYTES = 256  # approximate size of a record without its image
DIGEST_IMAGES = 10_000  # images whose content is hashed in one task
MAX_SHARDS = 100_000  # their numbers have five digits


@dataclasses.dataclass(frozen=True)
class _DividedImages:
    """The images of each shard, and the numbers of duplicates."""

    splits: dict[str, dict[str, image_table.ImageTable]]  # split -> shard -> images
    merged: dict[str, int] | None


def prepare(
    listing: Listing, out: str, *, shard_mb: float, options: beam.BeamOptions
) -> dict[str, Any]:
    """Writes the shards of a listing into `out`, or resumes an unfinished preparation.

    The same listing gives the same bytes for any number of workers and interruptions.
    The manifest is written last, after all shards have been read again.

    Args:
        listing: the images and the rule of their splits.
        out: folder to fill, local or gs://; new, empty, or left unfinished by an
            earlier call with the same listing and `shard_mb`.
        shard_mb: approximate size of a shard, 10**6 bytes.
        options: runner of Beam.

    Returns:
        The manifest.

    Raises:
        InputError: `out` is finished or belongs to another data set, its disk is too
            small, or a source cannot be read.
        CheckError: a shard, read again, differs from what was written.
    """
    if not 0 < shard_mb < math.inf:
        raise errors.InputError(f"shard_mb: {shard_mb}; give a number above 0")
    _check_held_out(listing, len(listing.splits.get("train", ())))
    plan = _make_plan(listing, shard_mb)
    _check_out(out, plan)
    print(_format_listing(listing), flush=True)
    _check_space(listing, out)
    with _begin(out, plan):
        return _write(listing, out, shard_mb, options)


def _write(
    listing: Listing, out: str, shard_mb: float, options: beam.BeamOptions
) -> dict[str, Any]:
    """Writes and checks the missing shards; returns the manifest."""
    divided = _divide(listing, out, shard_mb, options)
    print(_format_splits(divided), flush=True)
    parts = {n: p for split in divided.splits.values() for n, p in split.items()}
    for name, part in parts.items():
        _forget_damaged(out, name)
        if not tf.io.gfile.exists(shards.in_state(out, f"{name}.json")):
            shards.write_state(out, f"{name}.npz", part.to_bytes())
    for task, suffix, title in (
        (shards.write_shard, ".json", "writing shards"),
        (shards.check_shard, ".checked", "checking shards"),
    ):
        beam.run(task, out, list(parts), suffix=suffix, title=title, options=options)
    _raise_problems(out, list(parts))
    return _finish(listing, out, divided)


def _check_held_out(listing: Listing, images: int) -> None:
    if listing.held_out and not 0 <= listing.held_out_images < images:
        raise errors.InputError(
            f"{listing.held_out_flag}: {listing.held_out_images}, but there are"
            f" {images} images to train on; give a number from 0 below that"
        )


def _make_plan(listing: Listing, shard_mb: float) -> dict[str, Any]:
    """Returns the values that a resumed preparation must share, and workers read."""
    return {
        "dataset": listing.dataset,
        "sources": listing.sources,
        "rule": listing.rule,
        "shard_mb": shard_mb,
        "synsets": listing.synsets,
        "classes": list(listing.classes),
        "images": {split: images.digest() for split, images in listing.splits.items()},
    }


def _check_out(out: str, plan: dict[str, Any]) -> None:
    """Raises InputError unless `out` is free or was started with the same plan."""
    try:
        names = storage.list_names(out) if tf.io.gfile.exists(out) else []
    except storage.ERRORS as error:
        raise errors.InputError(f"out: {out!r} is not a folder ({error})") from None
    # Without a plan, another process is starting at this moment, or was killed then.
    plan_path = shards.in_state(out, shards.PLAN)
    if not names or names == [shards.STATE] and not tf.io.gfile.exists(plan_path):
        return
    _check_unfinished(out, names)
    try:
        started = shards.read_state(out, shards.PLAN)
    except (*storage.ERRORS, ValueError):
        raise errors.InputError(
            f"out: {out!r} exists and is not an empty folder; nothing is overwritten,"
            " give a new folder"
        ) from None
    differ = [key for key, value in plan.items() if started.get(key) != value]
    if differ:
        raise errors.InputError(
            f"out: {out!r} was started with other {' and '.join(differ)}; give the same"
            " sources and flags to resume, or a new folder"
        )


def _check_unfinished(out: str, names: list[str]) -> None:
    if MANIFEST in names:
        raise errors.InputError(
            f"out: {out!r} is finished; nothing is overwritten, give a new folder"
        )


def _check_space(listing: Listing, out: str) -> None:
    """Raises InputError if the local disk has less room than the shards will take."""
    if storage.is_remote(out):
        return
    home, written = os.path.abspath(out), 0
    if os.path.isdir(home):
        written = sum(entry.stat().st_size for entry in os.scandir(home))
    while not os.path.isdir(home):
        home = os.path.dirname(home)
    tables = listing.splits.values()
    total = sum(int(t.sizes.sum()) + RECORD_BYTES * len(t) for t in tables)
    needed, free = total - written, shutil.disk_usage(home).free
    if needed > free:
        raise errors.InputError(
            f"out: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB"
            f" are free in {home!r}; make room or give another folder"
        )


def _begin(out: str, plan: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Makes the folder of the state and deletes files that a killed run left in it.

    Returns:
        The lock of the folder, to be closed at the end; the kernel releases it with the
        process. A remote folder cannot be locked.
    """
    state = os.path.join(out, shards.STATE)
    try:
        tf.io.gfile.makedirs(state)
        lock = contextlib.nullcontext() if storage.is_remote(out) else _lock(out, state)
        # Another process may have finished meanwhile.
        _check_unfinished(out, storage.list_names(out))
        shards.write_state(out, shards.PLAN, json.dumps(plan).encode())
        for name in storage.list_names(state):
            if name.endswith(".tmp") or name == beam.FAILURE:
                tf.io.gfile.remove(os.path.join(state, name))
    except storage.ERRORS as error:
        raise errors.InputError(f"out: cannot write to {out!r}: {error}") from None
    return lock


def _lock(out: str, state: str) -> IO:
    lock = open(os.path.join(state, "lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise errors.InputError(
            f"out: another process is preparing {out!r}; wait for it, or stop it"
        ) from None
    return lock


def _divide(
    listing: Listing, out: str, shard_mb: float, options: beam.BeamOptions
) -> _DividedImages:
    """Merges equal images, holds some out, and divides the splits into shards."""
    splits, counts = dict(listing.splits), None
    if listing.merge:
        images = splits["train"]
        merged = image_table.merge_equal(images, _digest(images, out, options))
        counts = {"pictures": len(images), "records": len(merged.table)}
        counts |= {key: getattr(merged, key) for key in ("same_class", "other_classes")}
        splits["train"] = merged.table
        _check_held_out(listing, len(merged.table))
    ordered = {s: images.take(images.hash_order()) for s, images in splits.items()}
    if listing.held_out_images:
        rows = np.arange(len(ordered["train"]))
        first, others = np.split(rows, [listing.held_out_images])
        ordered[listing.held_out] = ordered["train"].take(first)
        ordered["train"] = ordered["train"].take(others)
    return _DividedImages(
        {split: _cut(split, ordered[split], shard_mb) for split in sorted(ordered)},
        counts,
    )


def _digest(
    images: image_table.ImageTable, out: str, options: beam.BeamOptions
) -> np.ndarray:
    """Reads all images and returns their SHA-256: `[N, 32] uint8`."""
    names = []
    for first in range(0, len(images), DIGEST_IMAGES):
        names.append(f"digest-{first // DIGEST_IMAGES:05d}")
        rows = np.arange(first, min(first + DIGEST_IMAGES, len(images)))
        shards.write_state(out, f"{names[-1]}.npz", images.take(rows).to_bytes())
    titles = {"suffix": ".sha256", "title": "hashing images"}
    beam.run(shards.digest_images, out, names, **titles, options=options)
    paths = [shards.in_state(out, f"{name}.sha256") for name in names]
    content = b"".join(storage.read_file(path) for path in paths)
    return np.frombuffer(content, np.uint8).reshape(-1, 32)


def _cut(
    split: str, images: image_table.ImageTable, shard_mb: float
) -> dict[str, image_table.ImageTable]:
    """Returns the images of each shard, as equal in number as possible, in order."""
    count = math.ceil(int(images.sizes.sum()) / (shard_mb * 1e6))
    count = max(1, min(count, len(images)))
    if count >= MAX_SHARDS:
        raise errors.InputError(
            f"shard_mb: {shard_mb} gives {count} shards of {split}, at most"
            f" {MAX_SHARDS - 1} are possible; give more"
        )
    bounds = itertools.pairwise(len(images) * i // count for i in range(count + 1))
    return {
        shards.shard_name(split, i, count): images.take(np.arange(first, end))
        for i, (first, end) in enumerate(bounds)
    }


def _forget_damaged(out: str, name: str) -> None:
    """Deletes the results of a shard that is missing, cut, or failed its check."""
    result = shards.in_state(out, f"{name}.json")
    checked = shards.in_state(out, f"{name}.checked")
    if not tf.io.gfile.exists(result):
        return
    path = os.path.join(out, name)
    size = shards.read_state(out, f"{name}.json")["bytes"]
    is_whole = tf.io.gfile.exists(path) and storage.size(path) == size
    is_checked = tf.io.gfile.exists(checked)
    if not is_whole or (is_checked and storage.read_file(checked)):
        if is_checked:
            tf.io.gfile.remove(checked)
        tf.io.gfile.remove(result)


def _raise_problems(out: str, names: list[str]) -> None:
    results = {
        n: storage.read_file(shards.in_state(out, f"{n}.checked")) for n in names
    }
    if problems := [(name, result) for name, result in results.items() if result]:
        name, problem = problems[0]
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise errors.CheckError(
            f"{os.path.join(out, name)}{more}: {problem.decode()}; run it again to"
            " rewrite it"
        )


def _finish(listing: Listing, out: str, divided: _DividedImages) -> dict[str, Any]:
    """Writes class names and manifest, and removes the state."""
    tables = [table for parts in divided.splits.values() for table in parts.values()]
    manifest = {
        "dataset": listing.dataset,
        "rule": listing.rule,
        "sources": listing.sources,
        "notes": listing.notes,
        "classes": list(listing.classes),
        "merged": divided.merged,
        "left_out": listing.left_out,
        "max_labels": max(int(table.counts.max()) for table in tables),
        "splits": {},
    }
    for split, parts in divided.splits.items():
        made = [shards.read_state(out, f"{name}.json") for name in parts]
        manifest["splits"][split] = {
            "images": sum(shard["records"] for shard in made),
            "shards": [{k: s[k] for k in ("file", "records", "sha256")} for s in made],
        }
    labels = "\n".join(listing.classes) + "\n"
    storage.write_file(os.path.join(out, LABELS), labels.encode())
    content = json.dumps(manifest, indent=1) + "\n"
    storage.write_file(os.path.join(out, MANIFEST), content.encode())
    tf.io.gfile.rmtree(os.path.join(out, shards.STATE))
    return manifest


def _format_listing(listing: Listing) -> str:
    """Formats the counts of the sources, before anything is written."""
    lines = [f"{listing.dataset}: {len(listing.classes):,} classes"]
    for split, images in listing.splits.items():
        size = images.sizes.sum() / 1e9
        lines.append(f"{split:<12}{len(images):>12,} images {size:>10.2f} GB")
    if listing.left_out:
        first = "{name} ({reason})".format(**listing.left_out[0])
        lines.append(f"{len(listing.left_out):,} left out, first {first}")
    return "\n".join([*lines, *(f"note: {note}" for note in listing.notes)])


def _format_splits(divided: _DividedImages) -> str:
    """Formats the counts of the shards to write."""
    lines = []
    if divided.merged:
        lines.append(
            "{pictures:,} images are {records:,} records: {same_class:,} copies in"
            " one class, {other_classes:,} in others".format(**divided.merged)
        )
    for split, parts in divided.splits.items():
        images = sum(map(len, parts.values()))
        size = sum(int(part.sizes.sum()) for part in parts.values()) / 1e9
        lines.append(
            f"{split:<12}{images:>12,} records {size:>11.2f} GB{len(parts):>8,} shards"
        )
    return "\n".join(lines)


def format_result(manifest: dict[str, Any], out: str) -> str:
    """Returns the last line that the command prints."""
    splits = manifest["splits"].items()
    counts = ", ".join(f"{entry['images']:,} {split}" for split, entry in splits)
    number = sum(len(entry["shards"]) for _, entry in splits)
    line = f"{out}: {counts} in {number:,} shards, all read again"
    if manifest["max_labels"] > 1:
        line += f"; to train on all labels, data.max_labels={manifest['max_labels']}"
    return line
