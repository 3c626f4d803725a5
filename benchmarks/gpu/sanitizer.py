"""compute-sanitizer over every operation of our kernels at the smallest shapes: out of bounds, and races.

    python -m benchmarks.gpu.sanitizer native|triton    what it watches

Arguments are made on the CPU and copied, so that hardly a kernel but ours runs under it; without the caching allocator
every tensor has its own bounds.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch

from densenet_fast import backends
from tests.calls import Geometry, applies, make

from . import blocks, bundle, smoke
from .runner import Facts, Job, Run, work_through
from .settings import SHAPES, Settings

TOOLS = ("memcheck", "racecheck")
FOUND = 86  # the exit code of compute-sanitizer that found something
DTYPES = (torch.bfloat16, torch.float32)
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (.*)")


def sanitizer(run: Run) -> None:
    settings = run.settings
    cases = [{"tool": tool, "backend": b} for tool in TOOLS for b in settings.backends if b != "eager"]
    missing = "compute-sanitizer is not installed" if settings.on_gpu else "only on a GPU"
    if not settings.on_gpu or shutil.which("compute-sanitizer") is None:
        for case in cases:
            run.journal.line("sanitizer", **case, verdict="not run", why=missing)
        return
    jobs = [Job("sanitizer", [case], partial(start, settings)) for case in cases]
    work_through(run, jobs, len(cases), silence=run.left)


def start(settings: Settings) -> Callable[[Facts], Facts]:
    return watch


def watch(case: Facts) -> Facts:
    command = ["compute-sanitizer", "--tool", case["tool"], "--report-api-errors", "no"]
    command += ["--error-exitcode", str(FOUND), sys.executable, "-m", "benchmarks.gpu.sanitizer", case["backend"]]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout)
    told = SUMMARY.findall(result.stdout)
    if result.returncode == 0:
        return {"verdict": "right", "why": told[-1] if told else "nothing found"}
    first = next((line for line in result.stdout.splitlines() if "=========" in line and "COMPUTE" not in line), "")
    verdict = "wrong" if result.returncode == FOUND else "failed"
    summary = told[-1] if told else f"exit code {result.returncode}"
    return {"verdict": verdict, "error": f"{summary}; {first.strip('= ')}", "tail": result.stdout[-1500:]}


def main(backend: str, device: torch.device) -> None:
    """Every operation once and a block with its gradients, their results not looked at."""
    bundle.use()
    torch.set_grad_enabled(False)
    for dtype in DTYPES if device.type == "cuda" else DTYPES[1:]:
        table = backends.operations(backend, device, dtype)
        for shape in SHAPES[:2]:
            for name in smoke.NAMES:
                print(name, dtype, shape, flush=True)
                if name == blocks.NAME:
                    blocks.step(device, backend, shape, dtype)
                elif applies(name, Geometry(*shape)):
                    make(name, Geometry(*shape), dtype).copy(device=device).on(table)
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1], torch.device(sys.argv[2] if len(sys.argv) > 2 else "cuda"))
