"""Processes of compilers beside each other, as many as processors and memory allow; only what has changed runs."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .surroundings import INSTALL_COMPILER, Missing

GIB = 2**30
SAID = 12  # last lines of a compiler that are kept


class Job(NamedTuple):
    """A compiler that makes `built` of `source`, a path in the folder `root` in which it runs; and beside it a list of
    the files that it read (`built`.d), what it said (`built`.said), and what `built` was made of (`built`.made)."""

    root: Path
    source: Path
    built: Path
    command: tuple[str, ...]  # but for files
    compiler: str  # its version

    def is_done(self) -> bool:
        """Whether the same compiler and command made `built` of files with the same content, in whichever folder."""
        made = Path(f"{self.built}.made")
        try:
            return self.built.exists() and made.read_text() == self._made_of()
        except OSError:  # a file that is no longer there
            return False

    def run(self) -> None:
        """
        Raises:
            Missing: the compiler failed.
        """
        if self.is_done():
            return
        self.built.parent.mkdir(parents=True, exist_ok=True)
        self.built.unlink(missing_ok=True)
        files = ("-MD", "-MF", f"{self.built}.d", "-c", str(self.source), "-o", str(self.built))
        what = f"{os.path.basename(self.command[0])} failed on {self.source}"
        said = run([*self.command, *files], what, self.root)
        Path(f"{self.built}.said").write_text(said)
        Path(f"{self.built}.made").write_text(self._made_of())

    def _made_of(self) -> str:
        read = _prerequisites(Path(f"{self.built}.d").read_text())
        return json.dumps([self.compiler, self.command, str(self.source), {f: _digest(self.root / f) for f in read}])


def _digest(file: Path) -> str:
    status = file.stat()
    return _digest_of(file, status.st_mtime_ns, status.st_size)


@functools.cache
def _digest_of(file: Path, *_: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def run(command: Sequence[str], what: str, folder: Path | None = None) -> str:
    """What a command, in a folder, said.

    Raises:
        Missing: it failed.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise Missing(f"{what}: {error}", INSTALL_COMPILER) from None
    if done.returncode != 0:
        killed = done.returncode < 0 or "Killed signal" in done.stdout
        raise Missing(
            f"{what}: it was killed, for want of memory perhaps" if killed else what,
            "set MAX_JOBS=1" if killed else "see to what the compiler says",
            "\n".join(done.stdout.rstrip().splitlines()[-SAID:]),
        )
    return done.stdout


def run_all(jobs: Sequence[Job], gib_each: float) -> None:
    """Run them beside each other; the first failure ends all.

    Args:
        gib_each: memory that one of them takes at its peak, in GiB.

    Raises:
        Missing: a compiler failed.
    """
    failures: list[Missing] = []

    def attempt(job: Job) -> None:
        try:
            if not failures:
                job.run()
        except Missing as missing:
            failures.append(missing)

    with ThreadPoolExecutor(number_of_jobs(gib_each)) as pool:
        list(pool.map(attempt, jobs))
    if failures:
        raise failures[0]


def number_of_jobs(gib_each: float) -> int:
    """MAX_JOBS, or one for each processor but no more than memory allows, of which a tenth stays free."""
    asked = os.environ.get("MAX_JOBS")
    if asked:
        if not asked.isdigit() or int(asked) == 0:
            sys.exit(f"MAX_JOBS: got {asked!r}, expected the number of compilers that may run beside each other")
        return int(asked)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory()
    return processors if free is None else max(1, min(processors, int(0.9 * free / (gib_each * GIB))))


def free_memory() -> int | None:
    """Bytes that can be had, of the machine or of the container; None where it is not told."""
    found = []
    try:
        told = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        found += [int(told[1]) * 1024] if told else []
    except OSError:
        pass
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found, default=None)


def _prerequisites(makefile: str) -> list[str]:
    """Of the one rule that a compiler's -MD writes; blanks in names are escaped."""
    _, _, names = makefile.replace("\\\n", " ").partition(": ")
    return [name.replace("\\ ", " ").replace("$$", "$") for name in re.split(r"(?<!\\)\s+", names.strip()) if name]
