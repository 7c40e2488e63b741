"""Reads local files through the operating system and "gs://" ones through tf.io.gfile.

Everything is read by position, so every record costs the same.
"""

import concurrent.futures
import functools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ev2 import files
from ev2.data.tensorflow import tf

ERRORS = (OSError, tf.errors.OpError)  # raised by local and remote storage
READ_THREADS = 16  # reads in flight; a read from storage waits far more than it works
MIN_READS_PER_TASK = 16  # below this, handing work to a thread costs more than a read
# Descriptors kept open by one reader; shards beyond it are opened for each read.
# Processes start with a limit of 1,024, and train and evaluation each hold a reader.
MAX_OPEN_FILES = 384


def is_remote(path: str) -> bool:
    """Returns True if the path names a storage service, such as "gs://..."."""
    return "://" in path


def list_names(folder: str) -> list[str]:
    """Returns the names in a folder, sorted. Raises one of `ERRORS`."""
    if is_remote(folder):
        return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    return sorted(os.listdir(folder))


def size(path: str) -> int:
    """Returns the size of the file, bytes."""
    return tf.io.gfile.stat(path).length if is_remote(path) else os.path.getsize(path)


def open_file(path: str) -> Any:
    """Opens the file for reading bytes at any position."""
    return tf.io.gfile.GFile(path, "rb") if is_remote(path) else open(path, "rb")


def read_file(path: str) -> bytes:
    """Returns the content of the file."""
    with open_file(path) as file:
        return file.read()


def write_file(path: str, content: bytes) -> None:
    """Writes the file atomically: a reader sees all of it or none."""
    if is_remote(path):  # an object appears when it is complete
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(content)
    else:
        files.write_atomically(path, content)


class Reader:
    """Reads byte ranges of a fixed list of files, from any number of threads.

    Descriptors stay open as long as the reader: a closed one could be given to another
    file while a thread reads.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = tuple(paths)
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._descriptors)

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Returns `length` bytes of file number `file`; fewer only at its end."""
        path = self.paths[file]
        if is_remote(path):
            with tf.io.gfile.GFile(path, "rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            descriptor = self._keep_open(file)
        if descriptor is not None:
            return os.pread(descriptor, length, offset)
        with open(path, "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), length, offset)

    def _keep_open(self, file: int) -> int | None:
        with self._lock:
            if file not in self._descriptors:
                if len(self._descriptors) >= MAX_OPEN_FILES:
                    return None
                self._descriptors[file] = os.open(self.paths[file], os.O_RDONLY)
            return self._descriptors[file]


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def map_parallel(function: Callable, items: Sequence) -> list:
    """Returns `[function(x) for x in items]`, computed by the reading threads."""
    per_task = max(MIN_READS_PER_TASK, -(-len(items) // READ_THREADS))
    tasks = [items[i : i + per_task] for i in range(0, len(items), per_task)]
    if len(tasks) <= 1:
        return [function(x) for x in items]
    done = _threads().map(lambda task: [function(x) for x in task], tasks)
    return [result for results in done for result in results]


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(READ_THREADS, "ev2-read")
