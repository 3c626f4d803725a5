"""Steps one after another, none later than its time, and everything that is learnt written down at once.

A step is a function of the `Run`; most hand `Job`s to `work_through`, which measures their cases in forked children. A
case gives one line of $OUT/first.jsonl: what it is, a verdict, and facts. Verdicts:

    right, wrong    checked against something exact
    measured        a figure that has no right or wrong
    failed          it raised an error
    dead, hung      its process died, or was killed because it said nothing
    not run         why: no time, not installed, only on a GPU, ...
"""

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import rehearsal
from .children import Child, Lost, Main
from .settings import BUILD, Settings

GOOD = ("right", "measured", "not run")
DEATHS = 3  # of a job's children, after which its other cases are not run
LOG_LIMIT = 8 << 20  # bytes of all children's output that are kept

ERROR = re.compile(r"[Ee]rror\b|^planted")  # what a lost child's last words are found by

Facts = dict[str, Any]


class Journal:
    """The file to which every line goes as it comes, and the terminal, which sees what is not as it should."""

    def __init__(self, path: Path, start: float):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.start = start
        self.lines: list[Facts] = []
        self._file = path.open("w")

    def line(self, kind: str, **facts: Any) -> None:
        line = {"kind": kind, "at": round(time.monotonic() - self.start, 2), **facts}
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()  # a line that is written is not lost
        if kind != "step" and facts.get("verdict", "right") not in ("right", "measured"):
            self.tell(f"{named(line)}: {facts['verdict']}: {why(line)}")

    def close(self) -> None:
        self._file.close()

    def tell(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", flush=True)


def named(line: Facts) -> str:
    """What a line is about, in words."""
    keys = ("backend", "net", "operation", "option", "what", "dtype", "shape", "variant", "workload", "tool", "kernel")
    shown = ("x".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for k in keys if (v := line.get(k)))
    return " ".join([line["kind"], *shown])


def why(line: Facts) -> str:
    """The reason of a verdict, on one line."""
    text = line.get("error") or line.get("why") or ""
    told = [said for said in (line.get("tail") or "").splitlines() if said.strip()]
    if told:
        text += f" | {next((said for said in reversed(told) if ERROR.search(said)), told[-1]).strip()}"
    return text[:240]


class Job(NamedTuple):
    """Cases that one child works through; behind a death the next child goes on.

    kind: of their lines. start: called in the child; gives the function that measures a case.
    """

    kind: str
    cases: Sequence[Facts]
    start: Callable[[], Callable[[Facts], Facts]]


class Run:
    """Settings, the clock, the journal, and every child that lives."""

    def __init__(self, settings: Settings, limit: float, command: str):
        self.settings = settings
        self.start = time.monotonic()
        self.limit = limit
        self.until = self.start + limit  # of the present step
        self.delay = 0.0  # by which all steps end later than planned
        self.facts: Facts = {}  # what one step has learnt for others
        self.over: str | None = None  # why nothing more is worth running
        self.journal = Journal(settings.out / f"{command}.jsonl", self.start)
        self._log = settings.out / f"{command}-log.txt"
        self._log.unlink(missing_ok=True)
        self._children: list[Child] = []
        self._numbers = itertools.count()
        self._logged = 0

    @property
    def left(self) -> float:
        """Seconds until the present step must end."""
        return self.until - time.monotonic()

    def postpone(self, seconds: float) -> None:
        """Let this step and all behind it end later than planned; the whole run does not."""
        self.delay += seconds
        self.until = min(self.until + seconds, self.start + self.limit)

    def child(self, name: str, main: Main) -> Child:
        log = BUILD / "log" / f"{next(self._numbers):03}-{name.replace('/', '-').replace(' ', '-')}.txt"
        self._children.append(Child(name, main, log))
        return self._children[-1]

    def end(self, child: Child) -> None:
        """Kill what is left of a child, and keep what it printed."""
        if child in self._children:
            self._children.remove(child)
            child.kill()
            with contextlib.suppress(OSError):
                text = child.log.read_bytes()[-200_000:]
                if text and self._logged < LOG_LIMIT:
                    with self._log.open("ab") as file:
                        self._logged += file.write(b"== " + child.log.stem.encode() + b"\n" + text + b"\n")

    def close(self) -> None:
        for child in list(self._children):
            self.end(child)
        self.journal.close()


class Step(NamedTuple):
    """until: seconds after the start by which it must have ended; what it leaves is the next one's."""

    name: str
    run: Callable[[Run], None]
    until: float


LEAST = 1.0  # seconds that a step needs to begin


def run_steps(run: Run, steps: Iterable[Step]) -> None:
    """All steps, in order; one that raises costs itself alone."""
    for step in steps:
        run.until = run.start + min(step.until + run.delay, run.limit)
        if run.over or run.left < LEAST:
            run.journal.line("step", step=step.name, verdict="not run", why=run.over or "no time", seconds=0.0)
            continue
        run.journal.tell(f"{step.name}: until {run.until - run.start:.0f} s")
        begun, first = time.monotonic(), len(run.journal.lines)
        error = {}
        try:
            step.run(run)
        except Exception as failure:
            error = {"error": f"{type(failure).__name__}: {failure}", "tail": traceback.format_exc()[-1000:]}
        verdicts = {line["verdict"] for line in run.journal.lines[first:] if "verdict" in line}
        verdict = "failed" if error else "wrong" if verdicts - set(GOOD) else "right"
        took = round(time.monotonic() - begun, 1)
        run.journal.line("step", step=step.name, verdict=verdict, seconds=took, **error)
        run.journal.tell(f"{step.name}: {verdict}, {took} s")


class _Progress:
    """How far a job has come."""

    def __init__(self, job: Job):
        self.job, self.next, self.deaths = job, 0, 0
        self.told = False  # whether the child has said itself that the case was its last
        self.child: Child | None = None
        self.heard = 0.0

    @property
    def done(self) -> bool:
        return self.child is None and self.next >= len(self.job.cases)

    @property
    def case(self) -> Facts:
        return self.job.cases[self.next]


def work_through(run: Run, jobs: Sequence[Job], parallel: int = 1, silence: float | None = None) -> None:
    """Measure every case of every job, in at most `parallel` children at a time; what no time is left for is not run.

    silence: seconds without a word after which a child is taken for hung.
    """
    silence = silence or run.settings.silence
    waiting = [_Progress(job) for job in jobs]
    working: list[_Progress] = []
    while (waiting or working) and run.left > 0:
        while waiting and len(working) < parallel:
            progress = waiting.pop(0)
            label = named({"kind": progress.job.kind, **(progress.case if progress.job.cases else {})})
            progress.child = run.child(label, partial(_measure, progress.job, progress.next, run.settings))
            progress.heard = time.monotonic()
            working.append(progress)
        wait([p.child.pipe for p in working if p.child], timeout=min(0.1, max(0.0, run.left)))
        for progress in list(working):
            if _hear(run, progress, silence):
                working.remove(progress)
                if not progress.done:
                    waiting.insert(0, progress)
    for progress in (*working, *waiting):
        if progress.child is not None:
            run.end(progress.child)
        _skip_rest(run, progress, "no time")


def _hear(run: Run, progress: _Progress, silence: float) -> bool:
    """Write down what a child has said; whether it has ended."""
    child = progress.child
    assert child is not None
    try:
        while child.pipe.poll():
            message = child.receive(time.monotonic())
            if message is None:
                return _ended(run, progress)
            progress.heard = time.monotonic()
            progress.told = message["verdict"] == "dead"
            run.journal.line(progress.job.kind, **progress.case, **message)
            progress.next += 1
        if time.monotonic() - progress.heard > silence:
            raise child.lost("hung", f"nothing for {silence:.0f} s")
    except Lost as lost:
        progress.deaths += 1
        if progress.next < len(progress.job.cases) and not progress.told:
            facts = {"verdict": lost.verdict, "why": lost.why, "tail": lost.tail}
            run.journal.line(progress.job.kind, **progress.case, **facts)
            progress.next += 1
        if progress.deaths >= DEATHS:
            _skip_rest(run, progress, f"{DEATHS} of its processes were lost")
        return _ended(run, progress)
    return False


def _ended(run: Run, progress: _Progress) -> bool:
    assert progress.child is not None
    run.end(progress.child)
    progress.child = None
    return True


def _skip_rest(run: Run, progress: _Progress, reason: str) -> None:
    for case in progress.job.cases[progress.next :]:
        run.journal.line(progress.job.kind, **case, verdict="not run", why=reason)
    progress.next = len(progress.job.cases)


def _measure(job: Job, first: int, settings: Settings, pipe: Connection) -> None:
    """The child's work: the cases from `first` on, one message for each."""
    if not settings.on_gpu:
        torch.set_num_threads(1)  # children work beside each other
    measure = job.start()
    for case in job.cases[first:]:
        rehearsal.strike(job.kind, case)
        try:
            facts = measure(case)
        except Exception as error:
            traceback.print_exc()
            facts = {
                "verdict": "failed",
                "error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            }
            if settings.on_gpu and not _context_lives():
                pipe.send(facts | {"verdict": "dead"})
                sys.exit("the CUDA context is lost")
        pipe.send(facts)


def _context_lives() -> bool:
    """Whether this process can still use the GPU; after an illegal access it cannot."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


@contextlib.contextmanager
def interrupted(run: Run):
    """SIGTERM and SIGINT end the run as if its time were over: the summary is still written."""

    def stop(*_: object) -> None:
        run.limit = time.monotonic() - run.start
        run.until = time.monotonic()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        run.close()


def environment() -> None:
    """Where compilers put their caches, for this process and all below it: build/ alone."""
    for name in ("inductor", "triton", "log", "reference", "tmp", "cuda"):
        (BUILD / name).mkdir(parents=True, exist_ok=True)
    for log in (BUILD / "log").iterdir():
        log.unlink()
    os.environ.update(
        TORCHINDUCTOR_CACHE_DIR=str(BUILD / "inductor"),
        TRITON_CACHE_DIR=str(BUILD / "triton"),
        CUDA_CACHE_PATH=str(BUILD / "cuda"),
        TMPDIR=str(BUILD / "tmp"),
        PYTHONUNBUFFERED="1",
    )
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    os.environ.pop("TRITON_INTERPRET", None)
