"""Runs a piece of work in a child process that may be killed, and gives back what it wrote and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FILE_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
"""Audited events that change a directory; "open" counts where it is for writing."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal, None where it had to be stopped; and what it printed."""

    code: int | None
    out: str
    err: str


def in_child(work: Callable[[], object], *, seconds: int = 120) -> Ended:
    """Fork, run `work`, and wait for at most `seconds`. What `work` raises is shown as an interpreter would."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _become(work, out.fileno(), err.fileno())
        code = _wait(child, seconds)
        for stream in (out, err):
            stream.seek(0)
        return Ended(code, out.read(), err.read())


def _become(work: Callable[[], object], out: int, err: int) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        try:
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, seconds: int) -> int | None:
    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    except TimeoutError:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def watch_files(directory: Path, seen: Callable[[str], None]) -> None:
    """Call `seen` before every operation of this process that changes a file below `directory`; for good."""
    root = str(directory)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and any(letter in str(arguments[1] or "") for letter in "wax+")
        if (writes or event in FILE_EVENTS) and str(arguments[0]).startswith(root):
            seen(f"{event} {arguments[0]}")

    sys.addaudithook(hook)


def killed_at(number: int, directory: Path, work: Callable[[], object]) -> Callable[[], object]:
    """Return `work` with SIGKILL before its nth change of a file below `directory`."""

    def run() -> object:
        count = 0

        def seen(what: str) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        watch_files(directory, seen)
        return work()

    return run
