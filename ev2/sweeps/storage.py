"""Where trials are kept: a journal file, PostgreSQL, or a gRPC proxy before it.

A study there has one definition; another one of the same name is refused.
"""

import fcntl
import json
import os
import pathlib
import random
import socket
import tempfile
import time
import urllib.parse
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

import optuna

from ev2 import errors

_ALLOWED = "a file, postgresql://USER@HOST/DATABASE or grpc://HOST:PORT"
_CONNECT_S = 10
_DEFINITION_S = 10.0  # for whoever creates a study to say what it is
_SHOWN = 3  # differing keys in a message
_TRIES = 5  # to make the tables of a new database
_JOURNAL_HEAD = b'{"op_code":'
_PORTS = {"postgresql": 5432, "grpc": 13000}


def check(url: str) -> None:
    """Raises InputError if `url` is no storage, or does not answer.

    A file has to be writable; where there is none, its folder, or the one above that
    is there. Nothing is written.
    """
    kind, host, port = _parse(url)
    if kind == "file":
        _check_file(pathlib.Path(url))
        return
    if host.startswith("/"):  # a folder with PostgreSQL's socket
        return
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _unreachable(url, str(error.strerror or error)) from error


def connect(url: str) -> optuna.storages.BaseStorage:
    """Opens the storage; a new database gets Optuna's tables, a new file is made.

    Raises:
      InputError: it is no storage, or cannot be reached.
    """
    kind, host, port = _parse(url)
    try:
        if kind == "file":
            return _open_file(url)
        if kind == "grpc":
            return _open_proxy(host, port)
        return _open_database(url)
    except ImportError as error:
        raise errors.InputError(
            f"storage: {hidden(url)!r} needs a package ({error}); "
            "pip install 'ev2[sweep]'"
        ) from error
    except (OSError, *_database_errors()) as error:
        raise _unreachable(url, _reason(error)) from error


def hidden(url: str) -> str:
    """Returns `url` without its password."""
    parts = urllib.parse.urlsplit(url)
    if not parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return parts._replace(netloc=f"{name}:***@{host}").geturl()


def _parse(url: str) -> tuple[str, str, int]:
    """Returns "file", "postgresql" or "grpc", with the host and port of the latter."""
    if "://" not in url:
        return "file", "", 0
    try:
        parts = urllib.parse.urlsplit(url)
        kind, port = parts.scheme.partition("+")[0], parts.port
    except ValueError as error:
        raise errors.InputError(
            f"storage: {url!r}: {error}; give {_ALLOWED}"
        ) from error
    if kind not in _PORTS:
        raise errors.InputError(
            f"storage: {hidden(url)!r} is not known; give {_ALLOWED}"
        )
    query = dict(urllib.parse.parse_qsl(parts.query))  # a socket's folder is there
    host = parts.hostname or query.get("host") or "localhost"
    return kind, host, port or int(query.get("port", _PORTS[kind]))


def _check_file(path: pathlib.Path) -> None:
    home = path.absolute().parent
    while not home.exists():
        home = home.parent
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if path.exists():
            open(path, "ab").close()
        else:
            tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        raise errors.InputError(
            f"storage: {str(path)!r} cannot be written ({error.strerror}); give "
            f"{_ALLOWED}"
        ) from error


def _open_file(path: str) -> optuna.storages.BaseStorage:
    from optuna.storages import journal

    pathlib.Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        if os.path.exists(path):
            _check_first_line(path)
        lock: Any = _Lock(path)  # Optuna's type for it is not public
        backend = journal.JournalFileBackend(path, lock_obj=lock)
        return optuna.storages.JournalStorage(backend)
    except ValueError as error:
        raise errors.InputError(
            f"storage: {path!r} is no journal of trials; give another file"
        ) from error


class _Lock:
    """Lets one process at a time write to a journal, and takes back an unfinished line.

    Such a line, of a full disk or a power cut, would be written on, and then nothing
    behind it could be read. Optuna's own locks are files: they outlive a killed holder,
    and are broken after half a minute even if the holder only slept.
    """

    def __init__(self, path: str):
        self._path = path

    def acquire(self) -> bool:
        file = open(self._path, "rb+")
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel drops it with its process
        _drop_unfinished(file)
        self._file = file
        return True

    def release(self) -> None:
        self._file.close()


def _check_first_line(path: str) -> None:
    """Raises ValueError if a file that is not empty is no journal of Optuna's."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        head = file.read(len(_JOURNAL_HEAD))
    if not _JOURNAL_HEAD.startswith(head):  # shorter: its first line was cut
        raise ValueError("its first line is no operation")


def _drop_unfinished(file: BinaryIO) -> None:
    """Cuts a journal behind its last whole line; nobody else may write meanwhile."""
    if not (end := file.seek(0, os.SEEK_END)):
        return
    file.seek(end - 1)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _open_proxy(host: str, port: int) -> optuna.storages.BaseStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=port)
    proxy.wait_server_ready(timeout=_CONNECT_S)  # ConnectionError is an OSError
    return proxy


def _open_database(url: str) -> optuna.storages.BaseStorage:
    scheme, _, rest = url.partition("://")
    del scheme
    options: dict[str, Any] = {
        "pool_size": 1,
        "pool_pre_ping": True,  # a database that was restarted is found again
        "connect_args": {"connect_timeout": _CONNECT_S, "application_name": "ev2"},
    }
    return _patiently_open(f"postgresql+psycopg://{rest}", options)


def _patiently_open(url: str, options: dict[str, Any]) -> optuna.storages.RDBStorage:
    """Opens a database; who makes its tables at the same moment as we is waited for."""
    import sqlalchemy.exc

    for left in reversed(range(_TRIES)):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            if not left:
                raise
        time.sleep(random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _database_errors() -> tuple[type[Exception], ...]:
    import sqlalchemy.exc  # optuna needs it too, but only for databases

    return sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError


def _reason(error: BaseException) -> str:
    """The first line of what the database said."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def _unreachable(url: str, reason: str) -> errors.InputError:
    return errors.InputError(
        f"storage: {hidden(url)!r} cannot be reached ({' '.join(reason.split())}); "
        f"start it, or give {_ALLOWED}"
    )


def refuse_other(
    storage: optuna.storages.BaseStorage, name: str, definition: Mapping[str, Any]
) -> bool:
    """Returns whether there is a study `name`.

    Raises:
      InputError: there is one, with another definition or made by something else.
    """
    end = time.monotonic() + _DEFINITION_S
    while True:
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            return False
        there = storage.get_study_user_attrs(study_id).get("definition")
        if there is not None:
            refuse_differing(f"name: {name!r}", there, definition)
            return True
        if time.monotonic() > end:  # whoever has created it says so at once
            raise errors.InputError(
                f"name: {name!r} is a study that does not say what it is; choose "
                "another name, or remove it with `optuna delete-study`"
            )
        time.sleep(0.2)


def refuse_differing(
    what: str,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    choose: str = "another --name",
) -> None:
    """Raises InputError, with the first keys, if two definitions differ."""
    here = plain(here)
    differing = [
        f"{key}={here.get(key)!r} (there: {there.get(key)!r})"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" * (len(differing) > _SHOWN)
        raise errors.InputError(
            f"{what} has another definition there; it differs in "
            f"{', '.join(differing[:_SHOWN])}{more}; choose {choose}"
        )


def plain(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The definition as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(definition))
