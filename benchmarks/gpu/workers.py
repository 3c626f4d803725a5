"""A variant in a child of its own: prepared for one workload after another, taking turns with the other variants.

Between its turns a child keeps no activations, so that all fit on one card; only those in CUDA graphs keep their pools.
"""

import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

import torch

from .. import machine
from ..compare import Known, Outcome, Reference, Step, Workload, prepare
from ..rounds import lasting
from ..variants import BY_NAME
from . import rehearsal
from .children import Lost
from .runner import Facts, Run
from .settings import BUILD, Settings

ROUNDS = 3
SHARE = 0.6  # of a comparison's time at most for getting ready
PREPARATION = 45.0  # seconds for one variant
TURN = 5.0  # seconds that a turn may take however late it is


class Worker:
    """The parent's end."""

    def __init__(self, run: Run, variant: str):
        self.run, self.variant = run, variant
        self.child = run.child(f"worker {variant}", lambda pipe: serve(variant, run.settings, pipe))
        self.preparing: tuple[bool, int] | None = None  # asked for, and not answered yet

    def begin(self, training: bool, batch: int, limit: float) -> None:
        """Ask it to get ready, and go on."""
        self.preparing = training, batch
        self._send("prepare", (training, batch, limit))

    def ready(self, training: bool, batch: int, until: float) -> Facts:
        """Its outcome, without durations."""
        if self.preparing != (training, batch):
            self.begin(training, batch, until - time.monotonic())
        self.preparing = None
        return self._answer(until)

    def turn(self, facts: Facts, until: float) -> dict[str, float]:
        self._send("turn", facts)
        return self._answer(until)

    def rest(self, until: float) -> None:
        """Let go of the workload."""
        self._send("rest", None)
        self._answer(until)

    def end(self) -> None:
        self.run.end(self.child)

    def _send(self, *message: Any) -> None:
        try:
            self.child.pipe.send(message)
        except OSError:  # it has died; receiving tells how
            return

    def _answer(self, until: float) -> Any:
        found = self.child.receive(until)
        if found is None:
            raise self.child.lost("dead", "it ended before it was asked to")
        return found


def compare_in_turns(run: Run, training: bool, batch: int, variants: Iterable[str], suffix: str = "") -> None:
    """Lines "outcome" and "turn" of every variant, by workload; the first should be the baseline. suffix: what sets a
    comparison apart from another of the same workload."""
    workload = f"{'training' if training else 'inference'} {batch}{suffix}"
    workers: dict[str, Worker] = run.facts.setdefault("workers", {})
    told = {"workload": workload, "training": training, "batch": batch, "suffix": suffix}
    begun, allotted = time.monotonic(), run.left
    names = list(variants)
    ready = []
    for i, name in enumerate(names):
        case = {**told, "variant": name}
        if time.monotonic() - begun > SHARE * allotted:
            if name in workers and workers[name].preparing:
                workers.pop(name).end()
            run.journal.line("outcome", **case, verdict="not run", why="no time")
            continue
        if name not in workers:
            workers[name] = Worker(run, name)
        for other in names[i + 1 : i + 2] if i else ():  # from the first one's results on two get ready at a time
            if other not in workers:
                workers[other] = Worker(run, other)
            if workers[other].preparing is None:
                workers[other].begin(training, batch, PREPARATION)
        try:
            outcome = workers[name].ready(training, batch, min(run.until, time.monotonic() + PREPARATION))
        except Lost as lost:
            _lose(run, workers, name, "outcome", case, lost)
            continue
        run.journal.line("outcome", **case, **outcome)
        if outcome["verdict"] == "right":
            ready.append(name)
        elif outcome["verdict"] != "not run":
            workers.pop(name).end()  # its CUDA context may be lost
    round_took = 0.0
    for number in range(ROUNDS):
        round_begun = time.monotonic()
        if run.left < round_took:
            break
        for name in list(ready):
            if run.left < -TURN:
                break
            case = {**told, "variant": name, "round": number}
            try:
                seconds = workers[name].turn(case, time.monotonic() + max(TURN, run.left))
                run.journal.line("turn", **case, verdict="measured", seconds=seconds)
                _show(run, case, seconds)
            except Lost as lost:
                ready.remove(name)
                _lose(run, workers, name, "turn", case, lost)
        round_took = time.monotonic() - round_begun
    for name in ready:
        try:
            workers[name].rest(time.monotonic() + 5)
        except Lost:
            workers.pop(name).end()


def _lose(run: Run, workers: dict[str, Worker], name: str, kind: str, case: Facts, lost: Lost) -> None:
    workers.pop(name).end()
    run.journal.line(kind, **case, verdict=lost.verdict, why=lost.why, tail=lost.tail)


def _show(run: Run, case: Facts, seconds: dict[str, float]) -> None:
    if case["round"] == 0:
        rate = case["batch"] / max(seconds.values())
        run.journal.tell(f"{case['workload']}: {case['variant']} {rate:.0f} images/s")


def serve(variant: str, settings: Settings, pipe: Connection) -> None:
    """The child's end, until the pipe closes."""
    if settings.on_gpu:
        torch.backends.cudnn.benchmark = True  # as `pytest benchmarks/` does: every net finds its fastest kernels
    else:
        torch.set_num_threads(1)
        machine.keep_freed_memory()
    step: Step | None = None
    while True:
        try:
            request, argument = pipe.recv()
        except EOFError:
            return
        if request == "prepare":
            training, batch, limit = argument
            step = None
            outcome, step = _prepare(variant, settings.workload(training, batch), limit)
            pipe.send(told(outcome))
        elif request == "turn":
            rehearsal.strike("turn", argument)
            assert step is not None
            step()  # its memory is allocated, the clocks are up
            pipe.send(lasting(step, settings.least))
        else:
            step = None
            pipe.send({})
        if settings.on_gpu:
            torch.cuda.empty_cache()


def _prepare(name: str, workload: Workload, limit: float) -> tuple[Outcome, Step | None]:
    """With what another child knows of the stock net's results, or else leaving it to the others."""
    variant = BY_NAME[name]
    family = "stock" if variant.family == "ours" else variant.family
    path = BUILD / "reference" / f"{workload.mode}-{workload.batch}-{family}.pt"
    known: Known = torch.load(path, map_location=workload.device) if path.exists() else {}
    try:
        return prepare(variant, Reference(workload, known), limit)
    finally:
        if known and not path.exists():
            part = path.with_suffix(f".{name}")
            torch.save({key: value for key, value in known.items() if key[1] == 0}, part)
            part.replace(path)


def told(outcome: Outcome) -> Facts:
    """An outcome as the facts of a line."""
    verdict = "not run" if outcome.missing else "failed" if outcome.error else "right"
    if outcome.error and any(not error <= limit for error, limit in outcome.check.values()):
        verdict = "wrong"
    facts: Facts = {"verdict": verdict, "check": outcome.check, "why": outcome.missing, "error": outcome.error}
    if outcome.memory is not None:
        facts |= {"live": outcome.memory.live, "peak": outcome.memory.peak}
    return facts
