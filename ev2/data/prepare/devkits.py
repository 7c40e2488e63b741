"""The development kit of ILSVRC2012: classes, and those of the validation pictures."""

import dataclasses
import io
import tarfile
import zlib

import numpy as np

from ev2 import errors
from ev2.data import storage as files
from ev2.data.tensorflow import tf

SYNSETS = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


@dataclasses.dataclass(frozen=True)
class Devkit:
    """What the kit tells; classes are WordNet ids."""

    classes: tuple[str, ...]  # in the order of their numbers in the kit
    validation: tuple[str, ...]  # class of each validation picture, by its number


def read(path: str) -> Devkit:
    """Reads `ILSVRC2012_devkit_t12.tar.gz`.

    Its numbers of classes are its own: 1 to 1,000 for the classes of the challenge,
    above them the synsets that contain others.

    Raises:
        InputError: the file cannot be read, or is not that kit.
    """
    try:
        with (
            files.open_file(path) as file,
            tarfile.open(fileobj=file, mode="r:*") as archive,
        ):
            content = {}
            for member in archive:
                for name in (SYNSETS, TRUTH):
                    if member.name.endswith(name) and member.isreg():
                        content[name] = _extract(archive, member)
        synsets = _read_synsets(content[SYNSETS])
        numbers = [int(line) for line in content[TRUTH].split()]
        validation = tuple(synsets[number] for number in numbers)
    except KeyError as error:
        missing = error.args[0]
        raise errors.InputError(
            f"devkit: {path!r} lacks {missing!r}; give ILSVRC2012_devkit_t12.tar.gz"
        ) from None
    except (
        OSError,
        EOFError,
        zlib.error,
        tarfile.TarError,
        ValueError,
        TypeError,
        IndexError,
        NotImplementedError,  # another version of MATLAB's files
        tf.errors.OpError,
    ) as error:
        raise errors.InputError(
            f"devkit: cannot read {path!r} ({error}); give ILSVRC2012_devkit_t12.tar.gz"
        ) from None
    return Devkit(tuple(synsets.values()), validation)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    return file.read()


def _read_synsets(content: bytes) -> dict[int, str]:
    """WordNet id of each class by its number in the kit."""
    import scipy.io

    rows = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    return {
        int(row["ILSVRC2012_ID"]): str(row["WNID"])
        for row in np.atleast_1d(rows)
        if int(row["num_children"]) == 0
    }
