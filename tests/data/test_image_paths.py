"""Image files found in folders and by globs."""

import os

from ev2.data import image_paths


def test_find_images(tmp_path):
    for name in ("a/2.JPG", "a/1.png", "a/b/0.webp", "a/notes.txt", "a/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a/.git").mkdir()
    (tmp_path / "a/.git/x.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "[1].png").write_bytes(b"x")

    def found(*arguments):
        paths = image_paths.find_images([str(tmp_path / a) for a in arguments])
        return [os.path.relpath(path, tmp_path) for path in paths]

    assert found("**/*.webp") == ["a/b/0.webp"]
    os.symlink(tmp_path / "a", tmp_path / "a/b/again")  # a circle
    assert found("a") == ["a/1.png", "a/2.JPG", "a/b/0.webp"]
    assert found("a/notes.txt", "a/1.png") == ["a/notes.txt", "a/1.png"]
    assert found("a/*.txt", "[1].png") == ["a/notes.txt", "[1].png"]
    assert found("a/[b]") == ["a/b/0.webp", "a/b/again/1.png", "a/b/again/2.JPG"]
    assert found("empty", "x*", "gone") == ["empty", "x*", "gone"]
    reasons = [
        image_paths.unreadable_reason(str(tmp_path / n))
        for n in ("empty", "x*", "gone")
    ]
    assert [reason[:15] for reason in reasons] == [
        "the folder hold",
        "nothing matches",
        "no such file",
    ]
