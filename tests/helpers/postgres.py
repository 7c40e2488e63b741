"""A PostgreSQL of Debian's package, in a folder of its own, for the slow tests."""

import contextlib
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

_ROOMS = pathlib.Path("/usr/lib/postgresql")
_USER = "postgres"  # Debian's package makes it; initdb refuses root


def _find() -> pathlib.Path | None:
    found = sorted(_ROOMS.glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def _install() -> pathlib.Path:
    """The folder of initdb, installed if need be; skips the test where it cannot."""
    if (found := _find()) is not None:
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "postgresql"]):
        done = subprocess.run(["apt-get", "-qq", *words], env=env, capture_output=True)
        if done.returncode:
            pytest.skip(f"apt-get {words[0]} failed: {done.stderr.decode()[-200:]}")
    found = _find()
    assert found is not None
    return found


class Server:
    """A server on a port of this machine; `url` is its database."""

    def __init__(self, folder: pathlib.Path, room: pathlib.Path, port: int):
        self._folder, self._room, self._port = folder, room, port
        self.url = f"postgresql://{_USER}@127.0.0.1:{port}/postgres"
        output = self._run("postgres", "--version")
        self.version = output.split()[2]

    def _run(self, name: str, *words: str) -> str:
        # Where we are root, as the user that Debian's package has for it.
        who = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
        command = [*who, str(self._room / name), *words]
        return subprocess.run(
            command, cwd=self._folder, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def make(self) -> None:
        # No fsync: what is tested is the processes' doing, not a power cut.
        self._run("initdb", "-D", "data", "-U", _USER, "-A", "trust", "--no-sync")

    def start(self) -> None:
        options = f"-p {self._port} -h 127.0.0.1 -k {self._folder} -F"
        self._run("pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-D", "data", "-m", "fast")


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A running server, gone after the block."""
    room = _install()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ev2-postgres-") as name:
        folder = pathlib.Path(name)
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = Server(folder, room, port)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
