"""The gcloud executable: runs it, or prints it; why it failed, in one line."""

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ev2 import errors

_TAIL_LINES = 20  # of stderr, kept to find the reason of a failure in


class CloudError(RuntimeError):
    """Cloud refused or a worker failed: one line for people, exit code 1."""


class GcloudError(CloudError):
    """gcloud itself failed, with the reason that it gives.

    Attributes:
      not_found: whether it was because what was asked for does not exist.
    """

    def __init__(self, message: str, *, not_found: bool = False):
        super().__init__(message)
        self.not_found = not_found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gcloud:
    """Runs gcloud; with `dry_run` it prints the commands and runs nothing.

    Every call says what a dry run assumes as the answer.
    """

    dry_run: bool = False

    def ask(self, *args: str, assume: str = "", stdin: bytes | None = None) -> str:
        """Runs `gcloud ARGS`, with `stdin` if given, and returns its stdout.

        Raises:
          InputError: there is no gcloud.
          GcloudError: it failed.
        """
        if self.dry_run:
            print(shlex.join(["gcloud", *args]))
            return assume
        done = subprocess.run(
            [_find(), *args],
            input=b"" if stdin is None else stdin,
            capture_output=True,
        )
        if done.returncode:
            reason = _reason(done.stderr.decode(errors="replace"))
            raise GcloudError(
                f"gcloud {' '.join(args[:4])}: {reason}",
                not_found="NOT_FOUND" in reason or "not found" in reason.lower(),
            )
        return done.stdout.decode()

    def watch(
        self,
        *args: str,
        on_bytes: Callable[[bytes], None],
        limit_s: float | None = None,
    ) -> int | None:
        """Runs `gcloud ARGS` and yields its stdout line by line.

        Its stderr goes to ours.

        Args:
          on_bytes: takes what was read.
          limit_s: seconds after which gcloud and its ssh processes are ended.

        Returns:
          gcloud's exit code; None if the limit ended it. 0 in a dry run.
        """
        if self.dry_run:
            print(shlex.join(["gcloud", *args]))
            return 0
        process = subprocess.Popen(
            [_find(), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that ssh, its child, can be ended with it
        )
        with _ended(process, limit_s) as expired:
            assert process.stdout is not None
            while chunk := os.read(process.stdout.fileno(), 2**16):
                on_bytes(chunk)
            code = process.wait()
        return None if expired.is_set() else code

    def pause(self, seconds: float, why: str) -> None:
        """Waits, and says why; a dry run only says so."""
        if self.dry_run:
            print(f"# {why}: waits {seconds:g} s")
        else:
            say(f"{why}; waiting {seconds:g} s")
            time.sleep(seconds)

    def note(self, text: str) -> None:
        """Prints progress; in a dry run as a comment among the commands."""
        if self.dry_run:
            print(f"# {text}")
        else:
            say(text)


def say(text: str) -> None:
    """Writes one line about the launch to stderr; stdout is the job's."""
    print(f"tpu: {text}", file=sys.stderr, flush=True)


def _find() -> str:
    found = shutil.which("gcloud")
    if found is None:
        raise errors.InputError(
            "gcloud: not found on PATH; install the Google Cloud CLI and run "
            "gcloud auth login"
        )
    return found


@contextlib.contextmanager
def _ended(
    process: subprocess.Popen, limit_s: float | None
) -> Iterator[threading.Event]:
    """Ends the process group after `limit_s`, setting the event, or after the block."""
    expired = threading.Event()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def expire() -> None:
        expired.set()
        kill()

    timer = threading.Timer(
        threading.TIMEOUT_MAX if limit_s is None else limit_s, expire
    )
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        kill()
        process.communicate()


def _reason(stderr: str) -> str:
    """The line of gcloud's stderr that says what went wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = lines[-_TAIL_LINES:] or ["failed and did not say why"]
    first = next((i for i, x in enumerate(lines) if x.startswith("ERROR:")), -1)
    text = re.sub(r"^ERROR: (\(gcloud[.\w-]*\) ?)?", "", lines[first])
    # What follows may be a block of JSON: "{", ..., "message": "why", "}".
    found = re.search(r'"message": "(.+?)",?$', stderr, re.MULTILINE)
    if text.endswith(("{", ":")) and found:
        text = f"{text.rstrip('{').strip()} {found[1]}"
    return " ".join(text.split())
