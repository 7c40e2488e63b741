"""Pictures that a person names: files, folders and globs, without classes.

What cannot be read is not an error here but a picture that is missing from the result:
`unreadable_reason` then says in words what is wrong with it.
"""

import glob
import os
from collections.abc import Sequence

import numpy as np

from ev2.data import decode as image
from ev2.data import image_folder as folder
from ev2.data import storage as files

# First bytes of the kinds that `image.decode` knows, and what a whole file ends with.
_KINDS = {
    b"\xff\xd8\xff": ("JPEG", image.JPEG_END),
    b"\x89PNG\r\n\x1a\n": ("PNG", b"IEND\xaeB`\x82"),
    b"GIF8": ("GIF", b";"),
    b"BM": ("BMP", b""),
    b"RIFF": ("WebP", b""),  # and other media: its bytes 8 to 11 are "WEBP"
}


def find_images(arguments: Sequence[str]) -> list[str]:
    """Returns the paths that the arguments stand for, in their order.

    A file stands for itself, whatever its name; a folder for the pictures in it and in
    its folders, by their extensions and sorted by path, hidden ones left out; anything
    else for what it matches as a glob ("**" crosses folders), sorted. An argument that
    stands for nothing is kept as it is, for `unreadable_reason` to say so.
    """
    paths = []
    for argument in arguments:
        if os.path.lexists(argument):
            found = _expand(argument)
        else:
            matches = sorted(glob.glob(argument, recursive=True))
            found = [path for match in matches for path in _expand(match)]
        paths += found or [argument]
    return paths


def _expand(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    found = []
    seen = set()  # a link may lead back to a folder above it

    def keep_folder(error: OSError) -> None:  # that cannot be listed
        found.append(error.filename)

    for root, folders, names in os.walk(path, onerror=keep_folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(root, name)) not in seen
        ]
        found += [
            os.path.join(root, name)
            for name in names
            if not name.startswith(".") and name.lower().endswith(folder.EXTENSIONS)
        ]
    return sorted(found)


class PathSource:
    """Pictures by path, all of class 0; see `source.Source`."""

    class_names = ("picture",)

    def __init__(self, paths: Sequence[str]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Encoded pictures, b"" where a file cannot be read, and labels 0."""
        encoded = files.map_parallel(_read, [self._paths[i] for i in indices])
        return encoded, np.zeros(len(indices), np.int32)

    def name(self, index: int) -> str:
        """Path of the picture."""
        return self._paths[index]


def _read(path: str) -> bytes:
    try:
        # A pipe or a device could be read but once, or never end.
        return files.read_file(path) if os.path.isfile(path) else b""
    except OSError:
        return b""


def unreadable_reason(path: str) -> str:
    """Returns why `path` cannot be read as a picture, in a few words."""
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            return "the folder cannot be listed"
        return f"the folder holds no pictures ({', '.join(folder.EXTENSIONS)})"
    if not os.path.lexists(path):
        return "nothing matches" if glob.has_magic(path) else "no such file"
    if os.path.exists(path) and not os.path.isfile(path):
        return "not a file"
    try:
        encoded = files.read_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return _decode_problem(encoded)


def _decode_problem(encoded: bytes) -> str:
    if not encoded:
        return "the file is empty"
    for start, (kind, end) in _KINDS.items():
        is_kind = encoded.startswith(start)
        if is_kind and (kind != "WebP" or encoded[8:12] == b"WEBP"):
            whole = encoded.rstrip(b"\0").endswith(end)
            return f"the {kind} is {'damaged' if whole else 'cut short or damaged'}"
    return f"not a picture of a known kind ({', '.join(k for k, _ in _KINDS.values())})"
