"""Lists the members of tar archives and their byte offsets, without unpacking."""

import tarfile
from collections.abc import Iterator

from ev2.data import storage


def walk(path: str, start: int = 0, size: int | None = None) -> Iterator:
    """Yields the `tarfile.TarInfo` of each member, its `offset_data` counted in `path`.

    Only headers are read.

    Args:
        path: an uncompressed archive, or a file that contains one, such as another
            archive.
        start: byte of `path` at which the archive begins.
        size: its bytes; None = to the end of the file.

    Raises:
        OSError: the archive is truncated or compressed, or the file is not an archive.
        tf.errors.OpError: remote storage fails.
    """
    end = storage.size(path) if size is None else start + size
    with storage.open_file(path) as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.offset_data + member.size > end:
                        raise OSError(f"it ends inside {member.name!r}")
                    yield member
                offset = archive.offset
        except tarfile.TarError as error:
            raise OSError(str(error)) from None
        # Where a file is truncated, tarfile stops as if that were the end.
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        is_inside = offset + tarfile.BLOCKSIZE <= end
        if not is_inside or block != tarfile.NUL * tarfile.BLOCKSIZE:
            raise OSError(f"no end at byte {offset}")
