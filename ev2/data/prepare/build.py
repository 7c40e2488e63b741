"""One preparation from a listing to checked shards; it can be stopped and go on."""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
from typing import IO, Any

import numpy as np

from ev2 import errors
from ev2.data import storage as files
from ev2.data.prepare import beam, image_table, shards
from ev2.data.prepare.listing import Listing
from ev2.data.tensorflow import tf

MANIFEST = "manifest.json"
LABELS = "labels.txt"
RECORD_BYTES = 256  # about what a record holds beside the picture
DIGEST_PICTURES = 10_000  # pictures whose content is hashed in one task
MAX_SHARDS = 100_000  # their numbers have five digits


@dataclasses.dataclass(frozen=True)
class _Divided:
    """What is written: the pictures of each shard, and what became of equal ones."""

    splits: dict[str, dict[str, image_table.ImageTable]]  # split -> shard -> pictures
    merged: dict[str, int] | None


def prepare(
    listing: Listing,
    out: str,
    *,
    shard_mb: float,
    options: beam.Options,
) -> dict[str, Any]:
    """Writes the shards of a listing into `out`, goes on with what is unfinished.

    The same listing gives the same bytes, whatever the number of workers and however
    often it was stopped. The manifest is written last, when all shards have been read
    again.

    Args:
        listing: the pictures and the rule of their splits.
        out: folder to fill, local or gs://; new, empty, or left unfinished by an
            earlier call with the same listing and `shard_mb`.
        shard_mb: about the size of a shard, 10**6 bytes.
        options: how Beam runs.

    Returns:
        The manifest.

    Raises:
        InputError: `out` is finished, of something else or too small; a source fails.
        CheckError: a shard, read again, is not what was written.
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
    listing: Listing, out: str, shard_mb: float, options: beam.Options
) -> dict[str, Any]:
    """Writes and checks what is not there yet; returns the manifest."""
    divided = _divide(listing, out, shard_mb, options)
    print(_format_splits(divided), flush=True)
    parts = {n: p for found in divided.splits.values() for n, p in found.items()}
    _forget_damaged(out, list(parts))
    for name, part in parts.items():
        if not tf.io.gfile.exists(shards.in_state(out, f"{name}.json")):
            files.write_file(shards.in_state(out, f"{name}.npz"), part.to_bytes())
    for task, suffix, title in (
        (shards.write_shard, ".json", "writing shards"),
        (shards.check_shard, ".checked", "checking shards"),
    ):
        beam.run(task, out, list(parts), suffix=suffix, title=title, options=options)
    _raise_problems(out, list(parts))
    return _finish(listing, out, divided)


def _check_held_out(listing: Listing, pictures: int) -> None:
    if listing.held_out and not 0 <= listing.held_out_images < pictures:
        raise errors.InputError(
            f"{listing.held_out_flag}: {listing.held_out_images}, but there are"
            f" {pictures} pictures to train on; give a number from 0 below that"
        )


def _make_plan(listing: Listing, shard_mb: float) -> dict[str, Any]:
    """What a preparation that goes on must agree in, and what workers need."""
    return {
        "dataset": listing.dataset,
        "sources": listing.sources,
        "rule": listing.rule,
        "shard_mb": shard_mb,
        "synsets": listing.synsets,
        "classes": list(listing.classes),
        "pictures": {s: found.digest() for s, found in listing.splits.items()},
    }


def _check_out(out: str, plan: dict[str, Any]) -> None:
    """Raises InputError unless `out` is free or was begun with the same plan."""
    try:
        found = files.list_names(out) if tf.io.gfile.exists(out) else []
    except (OSError, tf.errors.OpError) as error:
        raise errors.InputError(f"out: {out!r} is no folder ({error})") from None
    begins = found == [shards.STATE] and not tf.io.gfile.exists(
        shards.in_state(out, shards.PLAN)
    )
    if not found or begins:  # at this very moment, or was killed then
        return
    _check_unfinished(out, found)
    try:
        begun = json.loads(files.read_file(shards.in_state(out, shards.PLAN)))
    except (OSError, tf.errors.OpError, ValueError):
        raise errors.InputError(
            f"out: {out!r} exists and is not an empty folder; nothing is overwritten,"
            " give a new folder"
        ) from None
    differ = [key for key, value in plan.items() if begun.get(key) != value]
    if differ:
        raise errors.InputError(
            f"out: {out!r} was begun with other {' and '.join(differ)}; give the same"
            " sources and flags to go on, or a new folder"
        )


def _check_unfinished(out: str, found: list[str]) -> None:
    if MANIFEST in found:
        raise errors.InputError(
            f"out: {out!r} is finished; nothing is overwritten, give a new folder"
        )


def _check_space(listing: Listing, out: str) -> None:
    """Raises InputError if the local disk has less room than the shards will take."""
    if files.is_remote(out):
        return
    home = os.path.abspath(out)
    there = (
        sum(e.stat().st_size for e in os.scandir(home)) if os.path.isdir(home) else 0
    )
    while not os.path.isdir(home):
        home = os.path.dirname(home)
    pictures = sum(len(found) for found in listing.splits.values())
    needed = _bytes_of(listing) + RECORD_BYTES * pictures - there
    free = shutil.disk_usage(home).free
    if needed > free:
        raise errors.InputError(
            f"out: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free in"
            f" {home!r}; make room or give another folder"
        )


def _bytes_of(listing: Listing) -> int:
    return sum(int(found.sizes.sum()) for found in listing.splits.values())


def _begin(out: str, plan: dict[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Makes the folder of the state; takes away what a killed run left half written.

    Returns:
        The lock that keeps a second process out, to be closed at the end; the kernel
        drops it with the process. A remote folder cannot be locked.
    """
    state = os.path.join(out, shards.STATE)
    try:
        tf.io.gfile.makedirs(state)
        lock = contextlib.nullcontext() if files.is_remote(out) else _lock(out, state)
        _check_unfinished(out, files.list_names(out))  # another may just have ended
        files.write_file(shards.in_state(out, shards.PLAN), json.dumps(plan).encode())
        for name in files.list_names(state):
            if name.endswith(".tmp") or name == beam.FAILURE:
                tf.io.gfile.remove(os.path.join(state, name))
    except (OSError, tf.errors.OpError) as error:
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
    listing: Listing, out: str, shard_mb: float, options: beam.Options
) -> _Divided:
    """Merges equal pictures, holds some out, and deals the splits to shards."""
    splits, merged = dict(listing.splits), None
    if listing.merge:
        found = image_table.merge_equal(
            splits["train"], _digest(splits["train"], out, options)
        )
        merged = {
            "pictures": len(splits["train"]),
            "records": len(found.places),
            "same_class": found.same_class,
            "other_classes": found.other_classes,
        }
        splits["train"] = found.places
        _check_held_out(listing, len(found.places))
    ordered = {s: found.take(found.hash_order()) for s, found in splits.items()}
    if listing.held_out_images:
        rows = np.arange(len(ordered["train"]))
        ordered[listing.held_out] = ordered["train"].take(
            rows[: listing.held_out_images]
        )
        ordered["train"] = ordered["train"].take(rows[listing.held_out_images :])
    return _Divided(
        {split: _deal(split, ordered[split], shard_mb) for split in sorted(ordered)},
        merged,
    )


def _digest(
    found: image_table.ImageTable, out: str, options: beam.Options
) -> np.ndarray:
    """`[N, 32] uint8`: SHA-256 of every picture's bytes; all are read once for it."""
    names = []
    for first in range(0, len(found), DIGEST_PICTURES):
        name = f"digest-{first // DIGEST_PICTURES:05d}"
        rows = np.arange(first, min(first + DIGEST_PICTURES, len(found)))
        content = found.take(rows).to_bytes()
        files.write_file(shards.in_state(out, f"{name}.npz"), content)
        names.append(name)
    beam.run(
        shards.digest_pictures,
        out,
        names,
        suffix=".sha256",
        title="hashing pictures",
        options=options,
    )
    content = [
        files.read_file(shards.in_state(out, f"{name}.sha256")) for name in names
    ]
    return np.frombuffer(b"".join(content), np.uint8).reshape(-1, 32)


def _deal(
    split: str, found: image_table.ImageTable, shard_mb: float
) -> dict[str, image_table.ImageTable]:
    """The pictures of each shard: equal numbers of them, in their order."""
    count = math.ceil(int(found.sizes.sum()) / (shard_mb * 1e6))
    count = max(1, min(count, len(found)))
    if count >= MAX_SHARDS:
        raise errors.InputError(
            f"shard_mb: {shard_mb} gives {count} shards of {split}, at most"
            f" {MAX_SHARDS - 1} are possible; give more"
        )
    bounds = [len(found) * i // count for i in range(count + 1)]
    return {
        shards.shard_name(split, i, count): found.take(
            np.arange(bounds[i], bounds[i + 1])
        )
        for i in range(count)
    }


def _forget_damaged(out: str, names: list[str]) -> None:
    """Forgets results of shards that are gone, of another size, or failed the check."""
    for name in names:
        result = shards.in_state(out, f"{name}.json")
        checked = shards.in_state(out, f"{name}.checked")
        if not tf.io.gfile.exists(result):
            continue
        path = os.path.join(out, name)
        made = json.loads(files.read_file(result))
        is_whole = tf.io.gfile.exists(path) and files.size(path) == made["bytes"]
        is_checked = tf.io.gfile.exists(checked)
        if is_checked and files.read_file(checked):
            is_whole = False
        if not is_whole:
            if is_checked:
                tf.io.gfile.remove(checked)
            tf.io.gfile.remove(result)


def _raise_problems(out: str, names: list[str]) -> None:
    found = {n: files.read_file(shards.in_state(out, f"{n}.checked")) for n in names}
    wrong = [(name, line.decode()) for name, line in found.items() if line]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise errors.CheckError(
            f"{os.path.join(out, wrong[0][0])}{more}: {wrong[0][1]}; run it again to"
            " write it anew"
        )


def _finish(listing: Listing, out: str, divided: _Divided) -> dict[str, Any]:
    """Writes class names and manifest, and removes the state."""
    manifest = {
        "dataset": listing.dataset,
        "rule": listing.rule,
        "sources": listing.sources,
        "notes": listing.notes,
        "classes": list(listing.classes),
        "merged": divided.merged,
        "left_out": listing.left_out,
        "max_labels": max(
            int(part.counts.max())
            for parts in divided.splits.values()
            for part in parts.values()
        ),
        "splits": {},
    }
    for split, parts in divided.splits.items():
        made = [
            json.loads(files.read_file(shards.in_state(out, f"{name}.json")))
            for name in parts
        ]
        manifest["splits"][split] = {
            "images": sum(shard["records"] for shard in made),
            "shards": [{k: s[k] for k in ("file", "records", "sha256")} for s in made],
        }
    labels = "\n".join(listing.classes) + "\n"
    files.write_file(os.path.join(out, LABELS), labels.encode())
    content = json.dumps(manifest, indent=1) + "\n"
    files.write_file(os.path.join(out, MANIFEST), content.encode())
    tf.io.gfile.rmtree(os.path.join(out, shards.STATE))
    return manifest


def _format_listing(listing: Listing) -> str:
    """What was found, before anything is written."""
    lines = [f"{listing.dataset}: {len(listing.classes):,} classes"]
    for split, found in listing.splits.items():
        lines.append(
            f"{split:<12}{len(found):>12,} pictures {found.sizes.sum() / 1e9:>10.2f} GB"
        )
    if listing.left_out:
        first = listing.left_out[0]
        lines.append(
            f"{len(listing.left_out):,} left out, first {first['name']}"
            f" ({first['reason']})"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in listing.notes)])


def _format_splits(divided: _Divided) -> str:
    """What will be written."""
    lines = []
    if divided.merged:
        lines.append(
            "{pictures:,} pictures are {records:,} records: {same_class:,} copies in"
            " one class, {other_classes:,} in others".format(**divided.merged)
        )
    for split, parts in divided.splits.items():
        images = sum(map(len, parts.values()))
        size = sum(int(part.sizes.sum()) for part in parts.values())
        lines.append(
            f"{split:<12}{images:>12,} records {size / 1e9:>11.2f} GB"
            f"{len(parts):>8,} shards"
        )
    return "\n".join(lines)


def format_result(manifest: dict[str, Any], out: str) -> str:
    """The last line for people."""
    splits = manifest["splits"].items()
    counts = ", ".join(f"{found['images']:,} {split}" for split, found in splits)
    number = sum(len(found["shards"]) for _, found in splits)
    line = f"{out}: {counts} in {number:,} shards, all read again"
    if manifest["max_labels"] > 1:
        line += f"; to train on all labels, data.max_labels={manifest['max_labels']}"
    return line
