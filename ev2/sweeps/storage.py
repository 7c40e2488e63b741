"""Opens the database that the workers of a study share.

SQLite (one file) serves the workers of one machine, PostgreSQL any number of machines.
"""

import pathlib
import random
import time
from typing import Any

import optuna
import sqlalchemy
import sqlalchemy.event
import sqlalchemy.exc

from ev2 import errors, files

FAULTS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
_ALLOWED = "a file for workers of one machine, or postgresql://USER@HOST/DATABASE"
_LOCK_S, _CONNECT_S = 60, 10  # to wait for a lock of SQLite, for PostgreSQL to answer
_OUTAGE_S = 600.0  # to wait for a restart of PostgreSQL
_ATTEMPTS = 5  # to create the tables, which several workers may do at once
_MAGIC = b"SQLite format 3\0"


def check(url: str) -> sqlalchemy.URL:
    """Returns the SQLAlchemy URL of a storage argument; writes nothing.

    Raises:
        InputError: it is neither PostgreSQL nor a writable path of SQLite.
    """
    try:
        parsed = sqlalchemy.make_url(url if "://" in url else f"sqlite:///{url}")
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise errors.InputError(f"storage: {error}; give {_ALLOWED}") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not parsed.database:
        name = hide_password(url)
        raise errors.InputError(f"storage: {name!r} is not supported; give {_ALLOWED}")
    path = pathlib.Path(parsed.database)
    files.check_writable("storage", path.parent)
    if path.is_dir() or path.exists() and path.read_bytes()[:16] not in (b"", _MAGIC):
        raise errors.InputError(
            f"storage: {url!r} is not an SQLite database; give {_ALLOWED}"
        )
    return parsed


def hide_password(url: str) -> str:
    """Returns a storage argument with *** for its password."""
    return sqlalchemy.make_url(url).render_as_string() if "://" in url else url


def connect(url: str, **options: Any) -> optuna.storages.RDBStorage:
    """Opens the storage, and creates missing files and tables.

    Args:
        url: see `check`.
        **options: options of `optuna.storages.RDBStorage`.

    Raises:
        InputError: the storage is not supported or cannot be reached.
    """
    parsed = check(url)
    is_file = parsed.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {"timeout": _LOCK_S, "isolation_level": None}
    if is_file:
        path = pathlib.Path(parsed.database or "").absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        options["engine_kwargs"] = {"connect_args": arguments}
    else:
        arguments = {"connect_timeout": _CONNECT_S, "application_name": "ev2"}
        options["engine_kwargs"] = {"connect_args": arguments, "pool_size": 1}
        options["engine_kwargs"]["pool_pre_ping"] = True
    try:
        storage = _open(parsed.render_as_string(False), options)
    except (ImportError, *FAULTS) as error:
        raise errors.InputError(
            f"storage: {hide_password(url)!r} cannot be reached ({explain(error)}); "
            f"start it, or give {_ALLOWED}; drivers: pip install 'ev2[sweep]'"
        ) from error
    if is_file:
        sqlalchemy.event.listen(storage.engine, "begin", _begin_immediately)
    else:
        sqlalchemy.event.listen(storage.engine, "do_connect", _connect_patiently)
    return storage


def _open(url: str, options: dict[str, Any]) -> optuna.storages.RDBStorage:
    for remaining in reversed(range(_ATTEMPTS)):
        try:
            return optuna.storages.RDBStorage(url, **options)
        except sqlalchemy.exc.DBAPIError as error:
            kinds = sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError
            # Another worker is creating the tables.
            is_race = isinstance(error, kinds) or "already exists" in str(error)
            if not (is_race and remaining):
                raise
        time.sleep(random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _begin_immediately(connection: sqlalchemy.Connection) -> None:
    """Takes SQLite's write lock before a transaction reads.

    SQLite has no row locks: otherwise two workers could read a waiting trial and both
    start it.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _connect_patiently(dialect, record, args, kwargs) -> Any:
    """Reconnects to PostgreSQL, waiting for its restart."""
    del record
    end = time.monotonic() + _OUTAGE_S
    while True:
        try:
            return dialect.connect(*args, **kwargs)
        except dialect.loaded_dbapi.OperationalError:
            if time.monotonic() > end:
                raise
        time.sleep(random.uniform(0.5, 1.5))


def explain(error: BaseException) -> str:
    """Returns the first line of the database's message."""
    while cause := getattr(error, "orig", None) or error.__cause__:
        error = cause
    return (str(error).strip() or type(error).__name__).splitlines()[0]
