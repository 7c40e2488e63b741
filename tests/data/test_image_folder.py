"""Folders of class folders made here; bad ones of each kind, in one line."""

import numpy as np
import pytest

from ev2 import errors
from ev2.data import file_list, sources, storage
from tests.helpers import image_files


def _config(path, **changes):
    return image_files.make_config(source="folder", path=str(path), **changes)


def test_folder_with_splits(tmp_path):
    names = ["train/b/z.PNG", "train/b/deep/er/a.jpg", "train/a/1.jpeg"]
    image_files.write_pngs(tmp_path, [*names, "val/a/7.png", "val/b/8.png"])
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    (tmp_path / "train/a/.hidden.png").write_bytes(b"")
    (tmp_path / "train/.cache").mkdir()
    config = _config(tmp_path)
    assert sources.describe(config) == sources.DatasetInfo(3, 2, 2, ("a", "b"))
    train = sources.open_source(config, "train")
    encoded, labels = train.read(np.arange(3))
    assert [image_files.red(e) for e in encoded] == [2, 1, 0]
    assert labels.tolist() == [0, 1, 1]
    assert train.name(1) == str(tmp_path / "train/b/deep/er/a.jpg")
    assert sources.open_source(config, "eval").name(0) == str(tmp_path / "val/a/7.png")


def test_folder_holds_out_a_fraction_of_each_class(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(20)] + ["c/0.png", "c/1.png"]
    image_files.write_pngs(tmp_path, names)
    config = _config(tmp_path, eval_fraction=0.25)
    paths = {}
    for split in ("train", "eval"):
        opened = sources.open_source(config, split)
        paths[split] = {opened.name(i) for i in range(len(opened))}
        labels = opened.read(np.arange(len(opened)))[1]
        expected = {"train": [15, 15, 1], "eval": [5, 5, 1]}[split]
        assert np.bincount(labels).tolist() == expected
    assert not paths["train"] & paths["eval"]
    assert paths["train"] | paths["eval"] == {str(tmp_path / name) for name in names}


def test_all_images_of_a_folder_without_splits(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(3)] + ["c/0.png"]
    image_files.write_pngs(tmp_path / "one", names)
    config = _config(tmp_path / "one")
    opened = sources.open_source(config, "all")
    assert [opened.name(i) for i in range(len(opened))] == [
        str(tmp_path / "one" / name) for name in names
    ]
    assert opened.read(np.arange(7))[1].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert sources.is_undivided(config)
    image_files.write_pngs(
        tmp_path / "two", [f"{s}/{n}" for s in ("train", "val") for n in names]
    )
    config.data.path = str(tmp_path / "two")
    assert not sources.is_undivided(config)
    with pytest.raises(errors.InputError, match="two/train and .*two/val; choose"):
        sources.open_source(config, "all")
    assert not sources.is_undivided(image_files.make_config(source="embedded"))


def test_the_held_out_images_depend_on_names_alone(tmp_path):
    splits = []
    for root in (tmp_path / "here", tmp_path / "there"):
        image_files.write_pngs(root, [f"{c}/{i}.png" for c in "ab" for i in range(9)])
        opened = file_list.ListedImages("folder", str(root), "eval", "validation", 0.3)
        splits.append([opened.name(i)[len(str(root)) :] for i in range(len(opened))])
    assert splits[0] == splits[1]


def test_a_class_may_be_called_train(tmp_path):
    image_files.write_pngs(
        tmp_path, [f"{c}/{i}.png" for c in ("train", "ship") for i in "12"]
    )
    assert sources.describe(_config(tmp_path)).class_names == ("ship", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class folders"),
        (["a.png", "b.png"], "no class folders"),
        (["a/1.png"], "one class folder, 'a'"),
        (["a/1.png", "a/2.png", "b/notes.txt"], "b' holds no images"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"],
            "val. has the class 'c'",
        ),
        (["train/a/1.png", "val/a/1.png"], "one class folder, 'a'"),
    ],
)
def test_bad_folders(tmp_path, names, message):
    image_files.write_pngs(tmp_path, names)
    with pytest.raises(errors.InputError, match=message) as raised:
        sources.describe(_config(tmp_path))
    assert image_files.one_line(raised).startswith("data.path: ")


def test_bad_folder_settings(tmp_path):
    image_files.write_pngs(tmp_path, ["a/0.png", "b/0.png"])
    for values, message in (
        ({"path": ""}, "data.path: ''"),
        ({"path": "/does/not/exist"}, "is not a folder"),
        ({"path": "gs://bucket/images"}, "is remote; data.source 'folder' must be"),
        ({"path": str(tmp_path), "eval_fraction": 1.0}, "data.eval_fraction: 1.0"),
        ({"path": str(tmp_path)}, "no images left for 'eval'"),
    ):
        with pytest.raises(errors.InputError, match=message):
            sources.describe(image_files.make_config(source="folder", **values))


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_file_that_may_not_be_read_is_skipped(tmp_path, monkeypatch, error):
    opened = _opened(tmp_path, monkeypatch, error(13, "no", "a/0.png"))
    encoded, _ = opened.read(np.array([0]))
    assert encoded == [b""]


def test_storage_that_fails_is_not_a_corrupt_image(tmp_path, monkeypatch):
    opened = _opened(tmp_path, monkeypatch, OSError(5, "I/O error", "a/0.png"))
    with pytest.raises(errors.InputError, match="cannot read") as raised:
        opened.read(np.array([0]))
    assert "a/0.png" in image_files.one_line(raised)


def _opened(tmp_path, monkeypatch, error):
    """A folder of four images, of which none can be read for `error`."""
    image_files.write_pngs(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(2)])
    config = _config(tmp_path)

    def fail(path):
        raise error

    opened = sources.open_source(config, "train")
    monkeypatch.setattr(storage, "read_file", fail)
    return opened


def test_a_split_that_is_not_a_folder_is_refused(tmp_path):
    """Otherwise "train" and "val" would be trained on as two classes."""
    names = [
        f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in "01"
    ]
    image_files.write_pngs(tmp_path, names)
    config = _config(tmp_path, train_split="train+minival")
    with pytest.raises(errors.InputError, match="data.train_split: 'train.minival'"):
        sources.open_source(config, "train")
