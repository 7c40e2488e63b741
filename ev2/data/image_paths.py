"""Finds and reads images by path: files, folders and globs, without classes.

An unreadable path is not an error: its image is missing from the result, and
`unreadable_reason` explains why.
"""

import glob
import os
from collections.abc import Sequence

import numpy as np

from ev2.data import decode, image_folder, storage

# First bytes of the formats that `decode.decode` reads, and last bytes of a whole file.
_FORMATS = {
    b"\xff\xd8\xff": ("JPEG", decode.JPEG_END),
    b"\x89PNG\r\n\x1a\n": ("PNG", b"IEND\xaeB`\x82"),
    b"GIF8": ("GIF", b";"),
    b"BM": ("BMP", b""),
    b"RIFF": ("WebP", b""),  # and other media: its bytes 8 to 11 are "WEBP"
}


def find_images(arguments: Sequence[str]) -> list[str]:
    """Returns the image paths of all arguments, in their order.

    A file is taken whatever its name. A folder is searched with its subfolders for
    visible files with the extension of an image, sorted by path. Anything else is a
    glob ("**" crosses folders), sorted. An argument without a match is kept, for
    `unreadable_reason`.
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
    paths = []
    seen = set()  # a link may lead back to a folder above it

    def keep_unreadable_folder(error: OSError) -> None:
        paths.append(error.filename)

    walk = os.walk(path, onerror=keep_unreadable_folder, followlinks=True)
    for root, folders, names in walk:
        seen.add(os.path.realpath(root))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(root, name)) not in seen
        ]
        images = filter(image_folder.is_image_name, names)
        paths += [os.path.join(root, name) for name in images]
    return sorted(paths)


class PathSource:
    """Images by path, all of class 0; see `sources.Source`."""

    class_names = ("image",)

    def __init__(self, paths: Sequence[str]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `sources.Source.read`; b"" for an unreadable file."""
        encoded = storage.map_parallel(_read, [self._paths[i] for i in indices])
        return encoded, np.zeros(len(indices), np.int32)

    def name(self, index: int) -> str:
        """Returns the path of the image."""
        return self._paths[index]


def _read(path: str) -> bytes:
    try:
        # Reading a pipe or a device might never end.
        return storage.read_file(path) if os.path.isfile(path) else b""
    except OSError:
        return b""


def unreadable_reason(path: str) -> str:
    """Returns the reason in a few words why `path` cannot be read as an image."""
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            return "the folder cannot be listed"
        return f"the folder holds no images ({', '.join(image_folder.EXTENSIONS)})"
    if not os.path.lexists(path):
        return "nothing matches" if glob.has_magic(path) else "no such file"
    if os.path.exists(path) and not os.path.isfile(path):
        return "not a file"
    try:
        encoded = storage.read_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not encoded:
        return "the file is empty"
    for start, (name, end) in _FORMATS.items():
        matches = encoded.startswith(start)
        if matches and (name != "WebP" or encoded[8:12] == b"WEBP"):
            whole = encoded.rstrip(b"\0").endswith(end)
            return f"the {name} is {'damaged' if whole else 'cut short or damaged'}"
    known = ", ".join(name for name, _ in _FORMATS.values())
    return f"not an image of a known format ({known})"
