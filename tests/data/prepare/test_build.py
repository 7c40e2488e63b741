"""Shards from miniature archives in ImageNet's layout: stopped, corrupt, repeated."""

import fcntl
import hashlib
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from ev2 import errors
from ev2.cli import main as cli
from ev2.data import sources, tfrecord
from ev2.data.prepare import image_table, shards
from tests.helpers import archives, command_line, image_files

pytest.importorskip(
    "apache_beam", reason="Apache Beam is missing: pip install 'ev2[prepare]'"
)
# Beam's own modules use what newer Pythons and packages drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)
_prepare, _records = archives.prepare_imagenet1k, archives.read_records
_contents = archives.contents


@pytest.fixture(scope="module")
def imagenet1k(tmp_path_factory):
    """The folder of the archives, and their images."""
    folder = tmp_path_factory.mktemp("imagenet1k")
    return folder, archives.make_imagenet1k(folder)


@pytest.fixture(scope="module")
def prepared(imagenet1k, tmp_path_factory):
    """The shards of the archives, written by one worker without a disturbance."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert _prepare(imagenet1k[0], out, "--workers=1") == 0
    return out


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def test_imagenet1k_comes_back(imagenet1k, prepared):
    _, given = imagenet1k
    by_hash = sorted(given["train"], key=_hash)
    expected = {
        "minival": by_hash[:6],
        "train": by_hash[6:],
        "validation": sorted(given["validation"], key=_hash),
    }
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert set(manifest["splits"]) == set(expected)
    for split, names in expected.items():
        content = given["validation" if split == "validation" else "train"]
        found = _records(prepared, split)
        assert [record[0] for record in found] == names
        for name, encoded, labels, synsets in found:
            assert (encoded, synsets) == (content[name][0], [content[name][1]])
            assert labels == [archives.CLASSES.index(content[name][1]) + 1]
        assert manifest["splits"][split]["images"] == len(names)
    labels = (prepared / "labels.txt").read_text().splitlines()
    assert labels == manifest["classes"] == list(archives.CLASSES)


def test_the_manifest_describes_the_shards(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    for split, found in manifest["splits"].items():
        paths = tfrecord.find_shards(str(prepared), split)
        assert [str(prepared / s["file"]) for s in found["shards"]] == list(paths)
        for shard in found["shards"]:
            path = prepared / shard["file"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
            records = list(tf.data.TFRecordDataset(str(path)))
            assert len(records) == shard["records"]
    assert len(manifest["splits"]["train"]["shards"]) > 2
    assert [s["name"] for s in manifest["sources"]][0] == "ILSVRC2012_img_train.tar"
    assert manifest["notes"][0] == "train has 30 images; ILSVRC2012 has 1,281,167"


def test_splits_are_added_with_plus(prepared):
    options = {"source": "tfrecord", "path": str(prepared)}
    config = image_files.make_config(train_split="train+minival", **options)
    both = sources.open_source(config, "train")
    assert len(both) == 30 and len(sources.open_source(config, "eval")) == 8
    found = dict.fromkeys(both.read(np.arange(30))[0])
    records = [r for split in ("train", "minival") for r in _records(prepared, split)]
    assert list(found) == [encoded for _, encoded, _, _ in records]
    config.data.train_split = "train+train"
    with pytest.raises(errors.InputError, match="names a split twice"):
        sources.open_source(config, "train")


def test_the_result_does_not_depend_on_the_workers(imagenet1k, prepared, tmp_path):
    assert _prepare(imagenet1k[0], tmp_path / "out", "--workers=3") == 0
    assert _contents(tmp_path / "out") == _contents(prepared)


def test_stopped_and_resumed(imagenet1k, prepared, tmp_path, monkeypatch, capsys):
    """Finished shards stay, lost ones are written again; the bytes are the same."""
    written = []
    write = shards.write_records

    def record(path, records):
        name = path.rpartition("/")[2].partition(".")[0]
        written.append(name)
        if len(written) == 4 and name not in written[:3]:
            raise OSError("No space left on device")
        return write(path, records)

    monkeypatch.setattr(shards, "write_records", record)
    out = tmp_path / "out"
    assert _prepare(imagenet1k[0], out, "--workers=1") == 2
    assert f"{written[3]}: No space left" in command_line.error_line(capsys)
    first, *rest = written[:3]
    finished = [out / name for name in rest]
    before = [path.stat() for path in finished]
    (out / first).unlink()
    (out / shards.STATE / f"{rest[0]}.abc.tmp").write_bytes(b"half")
    assert _prepare(imagenet1k[0], out, "--minival_images=5") == 2
    assert "started with other rule" in capsys.readouterr().err
    assert _prepare(imagenet1k[0], out) == 0
    assert not set(written[4:]) & set(rest) and first in written[4:]
    assert [(p.stat().st_ino, p.stat().st_mtime_ns) for p in finished] == [
        (found.st_ino, found.st_mtime_ns) for found in before
    ]
    assert _contents(out) == _contents(prepared)


def test_ctrl_c_ends_the_running_tasks(
    imagenet1k, prepared, tmp_path, monkeypatch, capsys
):
    out, written, write = tmp_path / "out", [], shards.write_records

    def interrupt(path, records):
        written.append(path)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # until the main thread has noticed
        return write(path, records)

    monkeypatch.setattr(shards, "write_records", interrupt)
    assert _prepare(imagenet1k[0], out, "--workers=1") == 130
    assert len(written) == 2 and capsys.readouterr().err.count("\n") == 1
    assert _prepare(imagenet1k[0], out) == 0
    assert len(written) == len(list(out.glob("*-of-*")))
    assert _contents(out) == _contents(prepared)


def test_storage_by_address_gives_the_same(imagenet1k, prepared, tmp_path):
    """TensorFlow reads and writes "file://" as it does "gs://"."""
    folder = f"file://{imagenet1k[0]}"
    assert _prepare(folder, f"file://{tmp_path}/out", "--runner=FnApiRunner") == 0
    assert _contents(tmp_path / "out") == _contents(prepared)


@pytest.mark.slow
def test_workers_in_other_processes_give_the_same(imagenet1k, prepared, tmp_path):
    options = ["direct_num_workers=2", "direct_running_mode=multi_processing"]
    flags = ["--runner=FnApiRunner", *(f"--beam={option}" for option in options)]
    assert _prepare(imagenet1k[0], tmp_path / "out", *flags) == 0
    assert _contents(tmp_path / "out") == _contents(prepared)


def test_a_flipped_byte_is_found_and_repaired(
    imagenet1k, prepared, tmp_path, monkeypatch, capsys
):
    out, find_problem = tmp_path / "out", shards.find_problem
    spoilt = []

    def flip(path, *rest):
        if not spoilt:
            spoilt.append(path)
            content = bytearray(pathlib.Path(path).read_bytes())
            content[1000] ^= 1
            pathlib.Path(path).write_bytes(content)
        return find_problem(path, *rest)

    monkeypatch.setattr(shards, "find_problem", flip)
    assert _prepare(imagenet1k[0], out) == 1
    error = command_line.error_line(capsys)
    assert f"{spoilt[0]}: record 1 cannot be read (corrupted record at" in error
    assert not (out / "manifest.json").exists()
    assert _prepare(imagenet1k[0], out) == 0
    assert _contents(out) == _contents(prepared)


def test_imagenet21k_merges_equal_images(tmp_path):
    given = archives.make_imagenet21k(tmp_path)
    out = tmp_path / "out"
    flags = [
        *archives.flags_imagenet21k(tmp_path),
        "--validation_images=5",
        "--shard_mb=0.01",
    ]
    assert cli.main(["prepare", "imagenet21k", *flags, f"--out={out}"]) == 0
    splits = {split: _records(out, split) for split in ("validation", "train")}
    assert len(splits["validation"]) == 5
    records = splits["validation"] + splits["train"]
    names = [name for name, _, _, _ in records]
    assert names == sorted(names, key=_hash)
    assert {encoded: set(synsets) for _, encoded, _, synsets in records} == given
    assert len(records) == len(given) == 26
    for _, _, labels, synsets in records:
        assert labels == sorted(labels)
        assert synsets == [archives.CLASSES[label - 1] for label in labels]
    assert sorted(len(labels) for _, _, labels, _ in records)[-3:] == [1, 2, 3]
    merged = json.loads((out / "manifest.json").read_text())["merged"]
    expected = {"pictures": 30, "records": 26, "same_class": 1, "other_classes": 3}
    assert merged == expected


def test_a_folder_of_class_archives_is_the_archive(imagenet1k, prepared, tmp_path):
    folder, given = imagenet1k
    for name in archives.CLASSES:
        members = {f: b for f, (b, c) in given["train"].items() if c == name}
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / f"{name}.tar").write_bytes(archives.tar(members))
    out = tmp_path / "out"
    assert _prepare(folder, out, f"--train={tmp_path}/train") == 0
    same = {n: b for n, b in _contents(prepared).items() if n != "manifest.json"}
    assert {n: b for n, b in _contents(out).items() if n != "manifest.json"} == same


def test_a_folder_is_split_as_the_folder_source_does(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(10)]
    image_files.write_pngs(tmp_path / "own", names)
    (tmp_path / "own/a/notes.txt").write_text("no image")
    out, result = tmp_path / "out", tmp_path / "result.json"
    flags = [f"--source={tmp_path}/own", "--eval_fraction=0.2", f"--json={result}"]
    assert cli.main(["prepare", "folder", *flags, f"--out={out}"]) == 0
    config = image_files.make_config(
        source="folder", path=str(tmp_path / "own"), eval_fraction=0.2
    )
    for split, name in (("train", "train"), ("eval", "validation")):
        opened = sources.open_source(config, split)
        read = zip(*opened.read(np.arange(len(opened))), strict=True)
        expected = {encoded: [label + 1] for encoded, label in read}
        records = _records(out, name)
        assert {encoded: labels for _, encoded, labels, _ in records} == expected
    assert (out / "labels.txt").read_text() == "a\nb\n"
    left_out = json.loads(result.read_text())["left_out"]
    assert [entry["name"] for entry in left_out] == ["a/notes.txt"]


def test_other_files_are_named_and_odd_images_kept(tmp_path, capsys):
    archives.make_imagenet1k(tmp_path)
    png, text = image_files.png(7), b"not an image at all"
    members = {
        "n01440764_1.JPEG": png,
        "n01440764_2.JPEG": text,
        "readme.txt": b"words",
        "n01440764_3.JPEG": b"",
    }
    inner = {f"{name}.tar": archives.tar(members) for name in archives.CLASSES[:2]}
    inner["LICENSE"] = b"words"
    train = tmp_path / "train.tar"
    train.write_bytes(archives.tar(inner))
    out = tmp_path / "out"
    flags = [f"--train={train}", f"--out={out}", "--minival_images=0"]
    assert cli.main(["prepare", "imagenet1k", *flags]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert {encoded for _, encoded, _, _ in _records(out, "train")} == {png, text}
    assert list(manifest["splits"]) == ["train"]
    assert [(e["name"], e["reason"]) for e in manifest["left_out"]][:3] == [
        ("LICENSE", "not an archive of a class"),
        ("n01440764/readme.txt", "not an image by its name"),
        ("n01440764/n01440764_3.JPEG", "empty"),
    ]
    assert "5 left out, first LICENSE" in capsys.readouterr().out


def test_image_tables_survive_a_file_and_any_order():
    rng = np.random.RandomState(0)
    parts = [
        image_table.from_rows(
            [path], [(0, i, i + 1, f"{path}{i}", i % 3) for i in range(5)]
        )
        for path in ("x", "y")
    ]
    joined = image_table.join(parts)
    merged = image_table.merge_equal(
        joined, rng.randint(0, 2, (10, 1)).repeat(32, 1) * 255
    )
    assert len(merged.table) == 2
    order = rng.permutation(10)
    taken = image_table.from_bytes(joined.take(order).to_bytes())
    expected = [(f"{'xy'[i // 5]}{i % 5}".encode(), [i % 5 % 3]) for i in order]
    found = zip(taken.names.tolist(), taken.split_labels(), strict=True)
    assert list(found) == expected
    assert [taken.paths[f] for f in taken.files] == ["xy"[i // 5] for i in order]


def test_equal_names_in_different_folders_are_different_images(tmp_path):
    """Of equal names in one folder the last image counts; the others are reported."""
    rng = np.random.RandomState(3)
    members = {
        f"{inside}/{i}.JPEG": archives.jpeg(rng) for inside in "xy" for i in "01"
    }
    for name in archives.CLASSES:
        (tmp_path / f"{name}.tar").write_bytes(archives.tar(members))
    out = tmp_path / "out"
    flags = [f"--source={tmp_path}", f"--out={out}", "--validation_images=1"]
    assert cli.main(["prepare", "imagenet21k", *flags]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert sum(split["images"] for split in manifest["splits"].values()) == 4
    assert manifest["max_labels"] == 3 and not manifest["left_out"]


def test_empty_files_of_a_folder_are_named(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    image_files.write_pngs(source, [f"{c}/{i}.jpg" for c in "ab" for i in "01"])
    (source / "a/empty.jpg").write_bytes(b"")
    os.symlink(tmp_path / "nothing", source / "b/link.jpg")
    flags = [f"--source={source}", f"--out={out}", "--eval_fraction=0.4"]
    assert cli.main(["prepare", "folder", *flags]) == 0
    left_out = json.loads((out / "manifest.json").read_text())["left_out"]
    assert {row["name"] for row in left_out} == {"a/empty.jpg", "b/link.jpg"}


def test_a_second_process_is_refused(imagenet1k, tmp_path):
    out = tmp_path / "out"
    (out / shards.STATE).mkdir(parents=True)
    with open(out / shards.STATE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _prepare(imagenet1k[0], out) == 2
    assert _prepare(imagenet1k[0], out) == 0
