"""Forked children, each in its own process group: what dies or hangs in one costs that child alone.

The parent has imported everything heavy and never touches CUDA, so a child is ready at once and may use the GPU. It
answers over a pipe; what it prints goes to a file, whose last lines say why a child was lost.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h
TAIL = 2000  # characters of a lost child's output that are kept

Main = Callable[[Connection], None]


class Lost(Exception):
    """A child that will not answer. verdict: "dead" or "hung"; why: how it ended; tail: what it printed last."""

    def __init__(self, verdict: str, why: str, tail: str):
        super().__init__(f"{verdict}: {why}")
        self.verdict, self.why, self.tail = verdict, why, tail


class Child:
    """A process that runs `main` with its end of a pipe, and then ends."""

    def __init__(self, name: str, main: Main, log: Path):
        self.name, self.log = name, log
        self.pipe, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks beside threads, which all sleep
            self.pid = os.fork()
        if self.pid == 0:
            self.pipe.close()
            _become(main, theirs, log)
        theirs.close()
        with contextlib.suppress(OSError):  # whoever is first
            os.setpgid(self.pid, self.pid)
        self.code: int | None = None  # as waitpid tells it, once it has ended

    def receive(self, until: float) -> Any:
        """The child's next message, or None if it has ended in good order; waits until `until` (time.monotonic).

        Raises:
            Lost: it died, or said nothing in time and was killed.
        """
        try:
            if self.pipe.poll(max(0.0, until - time.monotonic())):
                return self.pipe.recv()
        except (EOFError, OSError):
            return self._ended()
        raise self.lost("hung", "no answer in time")

    def _ended(self) -> None:
        """Nothing if it ended well."""
        deadline = time.monotonic() + 5
        while not self._reap() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.code == 0:
            self.kill()
            return
        code = None if self.code is None else os.waitstatus_to_exitcode(self.code)
        if code is None:
            raise self.lost("hung", "it closed its pipe and did not end")
        raise self.lost("dead", f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def lost(self, verdict: str, why: str) -> Lost:
        self.kill()
        return Lost(verdict, why, tail(self.log))

    def _reap(self) -> bool:
        if self.code is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = code
        return self.code is not None

    def kill(self) -> None:
        """End the child and all that it started."""
        for pid in descendants(self.pid) if self.code is None else ():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self.pipe.close()
        deadline = time.monotonic() + 2  # one inside a driver's call may not end at once
        while not self._reap() and time.monotonic() < deadline:
            time.sleep(0.01)


def _become(main: Main, pipe: Connection, log: Path) -> NoReturn:
    """The child's life."""
    status = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        faulthandler.enable(file=2)
        main(pipe)
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def descendants(pid: int) -> list[int]:
    """Processes that `pid` has started, directly or not, in whatever group or session they are."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    left = [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def tail(log: Path) -> str:
    """The end of what a child has printed; of a crash, where Python's report of it begins."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    crash = text.rfind("Fatal Python error")
    return (text[-TAIL:] if crash < 0 else text[max(0, crash - TAIL // 4) :][:TAIL]).strip()
