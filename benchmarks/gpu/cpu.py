"""The CPU kernels against the number of threads: a machine with a GPU has more cores than those at hand. By name only,
since nothing may run beside what is timed on the GPU: `python -m benchmarks.gpu again cpu`."""

import os
from collections.abc import Callable

import torch

from .. import machine
from ..compare import build
from ..rounds import lasting
from ..variants import BASELINE, BY_NAME
from .runner import Facts, Job, Run, work_through
from .settings import Settings

WORK = ((False, 1), (False, 8), (True, 8))  # training, batch
THREADS = (1, 2, 4, 8, 16)
LEAST = 0.5  # seconds


def cpu(run: Run) -> None:
    """Images per second of torchvision and ours, in turns; each number of threads in a child of its own."""
    counts = [n for n in THREADS if n <= (os.cpu_count() or 1)]
    jobs = [Job("cpu", list(_cases(threads)), lambda: _start(run.settings)) for threads in reversed(counts)]
    work_through(run, jobs, silence=2 * run.settings.silence)


def _cases(threads: int) -> list[Facts]:
    return [
        {"threads": threads, "workload": f"{'training' if training else 'inference'} {batch}", "variant": variant}
        | {"training": training, "batch": batch}
        for training, batch in WORK
        for variant in (BASELINE, "native")
    ]


def _start(settings: Settings) -> Callable[[Facts], Facts]:
    machine.keep_freed_memory()
    on_cpu = settings._replace(device=torch.device("cpu"), dtype=torch.float32)

    def measure(case: Facts) -> Facts:
        torch.set_num_threads(case["threads"])
        step = build(BY_NAME[case["variant"]], on_cpu.workload(case["training"], case["batch"]))
        step()
        seconds = lasting(step, LEAST if settings.on_gpu else settings.least)
        return {"verdict": "measured", "images_per_s": case["batch"] / max(seconds.values())}

    return measure
