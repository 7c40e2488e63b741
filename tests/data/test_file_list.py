"""Lists and archives of images made here; bad ones of each kind, in one line."""

import io
import tarfile

import numpy as np
import pytest

from ev2 import errors
from ev2.data import pipeline, sources
from tests.helpers import image_files


def write_csv(path, rows, header="path,label"):
    lines = [header, *(",".join(row) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tar(path, names, mode="w"):
    """Writes images 0, 1, 2... as the members `names`, with a folder and a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo("root")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for value, name in enumerate(names):
            member = tarfile.TarInfo(name)
            content = image_files.png(value)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("root/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


NAMES = [f"{c}/{i}.png" for i in range(10) for c in "ba"]


@pytest.fixture(params=["csv", "tar"])
def listed(request, tmp_path):
    """A config of twenty images of two classes, in one list or archive."""
    path = tmp_path / f"own.{request.param}"
    if request.param == "csv":
        image_files.write_pngs(tmp_path / "files", NAMES)
        write_csv(path, [(f"files/{name}", name[0]) for name in NAMES])
    else:
        write_tar(path, [f"root/{name}" for name in NAMES])
    return image_files.make_config(source=request.param, path=str(path))


def test_images_in_any_order(listed):
    opened = sources.open_source(listed, "all")
    assert opened.class_names == ("a", "b") and len(opened) == 20
    order = np.random.RandomState(0).permutation(20)
    encoded, labels = opened.read(order)
    assert [image_files.red(e) for e in encoded] == order.tolist()
    assert labels.tolist() == [int(NAMES[i][0] == "b") for i in order]
    assert opened.name(3).endswith(f"{NAMES[3]}")


def test_a_fraction_of_each_class_is_held_out(listed):
    assert sources.is_undivided(listed)
    assert sources.describe(listed) == sources.DatasetInfo(18, 2, 2, ("a", "b"))
    found = {}
    for split in ("train", "eval"):
        opened = sources.open_source(listed, split)
        encoded, labels = opened.read(np.arange(len(opened)))
        found[split] = [image_files.red(e) for e in encoded]
        assert np.bincount(labels).tolist() == [len(opened) // 2] * 2
    assert sorted(found["train"] + found["eval"]) == list(range(20))


@pytest.mark.parametrize("kind", ["csv", "tar"])
def test_a_file_for_each_split(kind, tmp_path):
    for split, names in (("train", NAMES), ("val", ["b/0.png"])):
        if kind == "csv":
            image_files.write_pngs(tmp_path / split, names)
            rows = [(f"{split}/{name}", name[0]) for name in names]
            write_csv(tmp_path / f"{split}.csv", rows)
    if kind == "tar":
        write_tar(tmp_path / "train.tar", [f"root/{name}" for name in NAMES])
        write_tar(tmp_path / "val.tar", [f"root/{name}" for name in NAMES[:4]])
    config = image_files.make_config(source=kind, path=str(tmp_path))
    info = sources.describe(config)
    assert info.num_train_images == 20
    assert info.num_eval_images == (1 if kind == "csv" else 4)
    assert sources.open_source(config, "eval").read(np.array([0]))[1].tolist() == [1]
    assert not sources.is_undivided(config)
    with pytest.raises(errors.InputError, match="choose eval or train"):
        sources.open_source(config, "all")


def test_a_missing_file_of_a_list_is_skipped_and_named(tmp_path):
    image_files.write_pngs(tmp_path, NAMES)
    rows = [(name, name[0]) for name in [*NAMES, "b/gone.png"]]
    write_csv(tmp_path / "own.csv", rows)
    config = image_files.make_config(source="csv", path=str(tmp_path / "own.csv"))
    batches = pipeline.make_eval_data(config, image_size=8, batch_size=8, split="all")
    seen = sum(int(batch["mask"].sum()) for batch in batches)
    assert seen == 20 and batches.skipped == 1
    assert batches.skipped_paths[0].endswith("own.csv b/gone.png")
    batches.close()


def bad(kind):
    """Returns functions that write a bad file, each with the expected message."""

    def rows(*rows, **options):
        return lambda path: write_csv(path, rows, **options)

    def names(*names, **options):
        return lambda path: write_tar(path, names, **options)

    def cut(path):
        write_tar(path, NAMES)
        path.write_bytes(path.read_bytes()[:700])

    not_a_tar = "truncated, compressed or not a tar"
    return {
        "csv": [
            (rows(("1.png", "a")), "one class, 'a'"),
            (rows(), "no images"),
            (rows(("1.png", "a"), header="file,class"), "columns file, class"),
            (rows(("1.png", "a"), ("2.png", "")), "row 3 of .* has no label"),
            (rows(("", "a")), "row 2 of .* has no path"),
            (lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot read"),
        ],
        "tar": [
            (names("root/a/1.png", "root/a/2.png"), "not in a class folder"),
            (names("1.png", "a/2.png"), "'1.png' .*not in a class folder"),
            (names(), "no images"),
            (names(*NAMES, mode="w:gz"), not_a_tar),
            (lambda path: path.write_text("x" * 600), not_a_tar),
            (cut, not_a_tar),
        ],
    }[kind]


@pytest.mark.parametrize(
    "kind, number", [(k, i) for k in ("csv", "tar") for i in range(6)]
)
def test_bad_lists_are_refused_in_one_line(kind, number, tmp_path):
    write, complaint = bad(kind)[number]
    path = tmp_path / f"bad.{kind}"
    write(path)
    config = image_files.make_config(source=kind, path=str(path))
    with pytest.raises(errors.InputError, match=complaint) as raised:
        sources.describe(config)
    assert image_files.one_line(raised).startswith("data.path: ")


def test_missing_files_and_unknown_classes_are_refused(tmp_path):
    write_csv(tmp_path / "train.csv", [("1.png", "a"), ("2.png", "b")])
    for path in (tmp_path, tmp_path / "none.csv"):
        config = image_files.make_config(source="csv", path=str(path))
        with pytest.raises(errors.InputError, match="not a file and lacks train.csv"):
            sources.describe(config)
    write_csv(tmp_path / "val.csv", [("1.png", "c")])
    config = image_files.make_config(source="csv", path=str(tmp_path))
    with pytest.raises(errors.InputError, match="the class 'c'"):
        sources.describe(config)
