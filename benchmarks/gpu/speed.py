"""Images per second: training and inference of whole nets, the ceilings of the machine, what a step keeps."""

import time
from collections.abc import Callable, Sequence
from functools import partial

from .. import operations
from ..compare import build, weigh
from ..variants import BASELINE, BY_NAME
from .runner import Facts, Job, Run, work_through
from .settings import Settings
from .workers import Worker, compare_in_turns

COMPILE = "compile"
TRAINING = (BASELINE, "torchvision-graph", COMPILE, "native", "native-graph", "triton", "triton-graph", "eager")
UNCOMPILED = tuple(name for name in TRAINING if name != COMPILE)
OURS = (BASELINE, "native", "native-graph", "triton", "triton-graph")
OTHER_NETS = (BASELINE, "native-graph", "triton-graph", "native", "resnet50", "vovnet39")
EFFICIENT = ("torchvision-efficient", "native-efficient", "triton-efficient")


def begin_compiling(run: Run) -> None:
    """torch.compile's child begins now, beside what is checked, and takes its turns later."""
    if not run.settings.on_gpu:
        run.journal.line("outcome", variant=COMPILE, verdict="not run", why="only on a GPU: minutes on a CPU")
        return
    worker = Worker(run, COMPILE)
    run.facts.setdefault("workers", {})[COMPILE] = worker
    worker.begin(True, run.settings.large, run.limit)


def wait_for_compiling(run: Run) -> None:
    """Until it is ready or the step's time is over; then it is given up, lest it disturb what is timed."""
    worker = run.facts.get("workers", {}).get(COMPILE)
    while worker is not None and worker.preparing and not worker.child.pipe.poll(min(0.5, max(0.0, run.left))):
        if run.left <= 0:
            lost = worker.child.lost("hung", "not compiled in time")
            facts = {"variant": COMPILE, "workload": f"training {run.settings.large}", "batch": run.settings.large}
            run.journal.line(
                "outcome", **facts, training=True, suffix="", verdict="not run", why=lost.why, tail=lost.tail
            )
            run.facts["workers"].pop(COMPILE).end()
            return


def ceilings(run: Run) -> None:
    cases = [{"what": "copy_bytes_per_s"}, {"what": "matmul_flops_per_s"}]
    work_through(run, [Job("ceiling", cases, partial(_ceilings, run.settings))])


def _ceilings(settings: Settings) -> Callable[[Facts], Facts]:
    def measure(case: Facts) -> Facts:
        if case["what"] == "copy_bytes_per_s":
            rate = operations.copy_bandwidth(settings.device)
        else:
            rate = operations.matmul_rate(settings.device, settings.dtype)
        return {"verdict": "measured", "per_s": rate}

    return measure


def training_large(run: Run, names: Sequence[str] = TRAINING) -> None:
    compiling = COMPILE in run.facts.get("workers", {})
    compare_in_turns(run, True, run.settings.large, [name for name in names if name != COMPILE or compiling])
    if COMPILE in run.facts.get("workers", {}):
        run.facts["workers"].pop(COMPILE).end()  # another batch would be compiled anew


def the_rest(run: Run) -> None:
    """Training at the other batches, inference at all, and two other nets; each gets its share of what time is left."""
    s = run.settings
    plan = [(True, s.middle), (False, s.large), (False, s.middle), (True, s.small), (False, s.one)]
    end = run.until
    for i, (training, batch) in enumerate(plan):
        run.until = time.monotonic() + (end - time.monotonic()) / (len(plan) + 1 - i)
        compare_in_turns(run, training, batch, UNCOMPILED)
    run.until = end
    compare_in_turns(run, True, s.large, OTHER_NETS, suffix="-other-nets")
    dismiss(run)


def dismiss(run: Run) -> None:
    for worker in run.facts.pop("workers", {}).values():
        worker.end()


def memory(run: Run) -> None:
    """What the variants that are not timed keep, and at most need."""
    names = [name for name in EFFICIENT if BY_NAME[name].backend in (None, *run.settings.backends)]
    cases = [{"variant": name, "batch": run.settings.large} for name in names]
    work_through(run, [Job("memory", [case], partial(_memory, run.settings)) for case in cases])


def _memory(settings: Settings) -> Callable[[Facts], Facts]:
    def measure(case: Facts) -> Facts:
        weight = weigh(build(BY_NAME[case["variant"]], settings.workload(True, case["batch"])))
        return {"verdict": "measured", "live": weight.live, "peak": weight.peak}

    return measure
