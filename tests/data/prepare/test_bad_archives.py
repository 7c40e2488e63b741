"""Archives, flags and folders that `ev2 prepare` refuses, each in one line."""

import re
import sys

import pytest

from tests.helpers import archives, command_line

pytest.importorskip(
    "apache_beam", reason="Apache Beam is missing: pip install 'ev2[prepare]'"
)
# Beam's own modules use what newer Pythons and packages drop.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def imagenet1k(tmp_path_factory):
    """The folder of the archives."""
    folder = tmp_path_factory.mktemp("imagenet1k")
    archives.make_imagenet1k(folder)
    return folder


def _cut_inner(folder):
    """Truncates the archive of the last class inside an intact archive."""
    inner = {n: archives.tar({f"{n}_1.JPEG": b"x" * 900}) for n in archives.CLASSES}
    inner["n02099601"] = inner["n02099601"][:1024]
    members = {f"{name}.tar": content for name, content in inner.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(archives.tar(members))


def _replace(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _shorten(name, size):
    return lambda folder: _replace(name, (folder / name).read_bytes()[:size])(folder)


TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
OTHERS = {"n02099601": 1, "n01440764": 2, "n99999999": 3}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_shorten(TRAIN, -9000), "train: the archive .* is truncated"),
        (_shorten(TRAIN, 512), "train: .* is truncated"),
        (_cut_inner, "train: the archive 'n02099601' in .* is truncated"),
        (_replace(TRAIN, b"\x1f\x8b123"), "unpack it first: gunzip"),
        (_replace(TRAIN, b"text" * 300), "not a tar archive"),
        (_replace(TRAIN, archives.tar({"a.JPEG": b"1"})), "train: .* holds 0 classes"),
        (lambda folder: (folder / TRAIN).unlink(), "does not exist"),
        (_shorten(VALIDATION, 4000), "validation: the archive .* is truncated"),
        (
            _replace(VALIDATION, archives.tar({"ILSVRC2012_val_00000001.JPEG": b"1"})),
            "has 1 images and the devkit the classes of 8",
        ),
        (
            _replace(VALIDATION, archives.tar({"ILSVRC2012_val_00000009.JPEG": b"1"})),
            "is not one of the 8 images",
        ),
        (_shorten(DEVKIT, 300), "devkit: .* is truncated or not a tar"),
        (_replace(DEVKIT, b"no"), "devkit: .* is truncated or not a tar"),
        (_replace(DEVKIT, archives.tar({"data/other": b"1"})), "lacks 'meta.mat'"),
        (
            _replace(DEVKIT, archives.devkit(OTHERS, ["n99999999"] * 8)),
            "devkit: .* they differ in 'n01443537' and 1 more",
        ),
    ],
)
def test_bad_archives_are_refused_before_anything_is_written(
    spoil, message, tmp_path, capsys
):
    archives.make_imagenet1k(tmp_path)
    spoil(tmp_path)
    assert archives.prepare_imagenet1k(tmp_path, tmp_path / "out") == 2
    assert re.search(message, command_line.error_line(capsys))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minival_images=30"], "minival_images: 30, but there are 30"),
        (["--minival_images=-1"], "minival_images: -1"),
        (["--shard_mb=0"], "shard_mb: 0"),
        (["--workers=-1"], "workers: -1"),
        (["--runner=Typo"], "runner, beam: 'Typo'"),
        (["--devkit="], "validation and devkit"),
        (["--train=", "--validation=", "--devkit="], "give train"),
    ],
)
def test_bad_flags_are_refused(options, message, imagenet1k, tmp_path, capsys):
    assert archives.prepare_imagenet1k(imagenet1k, tmp_path / "out", *options) == 2
    assert message in command_line.error_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["imagenet21k", "--source=/nowhere.tar"], "'/nowhere.tar' does not exist"),
        (["folder", "--source=/nowhere"], "source: '/nowhere' is not a folder"),
        (["folder", "--source=/"], "is inside the source '/'"),
    ],
)
def test_bad_sources_are_refused(argv, message, tmp_path, capsys):
    argv = ["prepare", *argv, f"--out={tmp_path}/out"]
    assert message in command_line.refuse(capsys, *argv)


def test_nothing_is_overwritten(imagenet1k, tmp_path, capsys):
    done = tmp_path / "done"
    assert archives.prepare_imagenet1k(imagenet1k, done) == 0
    before = archives.contents(done)
    assert archives.prepare_imagenet1k(imagenet1k, done) == 2
    assert "is finished; nothing is overwritten" in capsys.readouterr().err
    assert archives.contents(done) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "own").write_text("precious")
    assert archives.prepare_imagenet1k(imagenet1k, mine) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert archives.contents(mine) == {"own": b"precious"}


def test_a_full_disk_is_refused_before_writing(
    imagenet1k, tmp_path, monkeypatch, capsys
):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert archives.prepare_imagenet1k(imagenet1k, tmp_path / "out") == 2
    assert "GB are free in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_beam_the_package_is_named(imagenet1k, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert archives.prepare_imagenet1k(imagenet1k, tmp_path / "out") == 2
    assert "pip install 'ev2[prepare]'" in command_line.error_line(capsys)
