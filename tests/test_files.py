"""python -m pytest tests/test_files.py

Atomic writes: a path holds the old content or the new, and never a part.
"""

import pytest
from etils import epath

from ev2 import errors, files


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    write = epath.Path.write_bytes

    def write_half(target, content):
        write(target, content[:2])
        raise OSError("no space")

    monkeypatch.setattr(type(epath.Path(path)), "write_bytes", write_half)
    with pytest.raises(OSError, match="no space"):
        files.write_atomically(path, b"new content")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_path_appears_when_the_block_ends(is_folder, tmp_path):
    path = tmp_path / "new" / "path"
    with files.atomic_path(path) as temporary:
        if is_folder:
            temporary.mkdir()
        (temporary / "a" if is_folder else temporary).write_bytes(b"content")
        assert not path.exists()
    assert (path / "a" if is_folder else path).read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("is_folder", [False, True])
def test_nothing_is_left_if_the_block_raises(is_folder, tmp_path):
    with pytest.raises(OSError, match="no space"):
        with files.atomic_path(tmp_path / "path") as temporary:
            if is_folder:
                temporary.mkdir()
            (temporary / "a" if is_folder else temporary).write_bytes(b"part")
            raise OSError("no space")
    assert not list(tmp_path.iterdir())


def test_an_existing_path_is_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(errors.InputError, match="out: .* exists and is left"):
            files.check_new("out", path)
    with pytest.raises(FileExistsError):
        with files.atomic_path(tmp_path / "late") as temporary:
            temporary.write_bytes(b"ours")
            (tmp_path / "late").write_bytes(b"another's")
    assert (tmp_path / "late").read_bytes() == b"another's"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "late"}


def test_an_unwritable_path_is_refused_by_its_nearest_parent(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.InputError, match="out: .*Not a directory in .*file'"):
        files.check_writable("out", tmp_path / "file" / "a" / "b")
    files.check_writable("out", tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
