"""Every operation of a step timed alone against the bytes it must move, and what Nsight Compute says of the largest.

python -m benchmarks.gpu.kernels native|triton    what Nsight Compute watches
"""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from densenet_fast import backends
from densenet_fast.contract import DECLARATIONS
from tests.calls import HALVES, Geometry, make

from .. import operations
from ..rounds import take_turns
from . import blocks, bundle
from .runner import Facts, Job, Run, work_through
from .settings import Settings

# The update of running statistics is launches, not bytes.
NAMES = tuple(name for name in DECLARATIONS if name != "update_running_stats")
ROUNDS = 5
CHECKED = 3  # calls of an operation

# What is profiled: the convolutions at a layer of each of the first three blocks of DenseNet-121.
PROFILED = tuple(f"conv{kind}_{way}" for kind in ("1x1", "3x3") for way in ("fwd", "bwd"))
LAYERS = ((256, 56, 56, 160, 128, 32), (256, 28, 28, 320, 128, 32), (256, 14, 14, 640, 128, 32))
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy")


def asked(names: Sequence[str]) -> list[str]:
    """The operations behind what smoke.py names, all if it names nothing."""
    of_blocks = {blocks.NAME: ("block_fwd", "block_bwd")} | {
        name: (operation,) for name, (operation, _) in HALVES.items()
    }
    found = {operation for name in names for operation in of_blocks.get(name, (name,))}
    return [name for name in NAMES if not names or name in found]


def each_operation(run: Run, names: Sequence[str] = NAMES) -> None:
    settings = run.settings
    jobs = [
        Job("operation", [{"backend": b, "operation": name} for name in names], partial(_start, settings))
        for b in settings.backends
    ]
    work_through(run, jobs, silence=2 * settings.silence)


def _start(settings: Settings) -> Callable[[Facts], Facts]:
    device, dtype = settings.device, settings.dtype
    of_inference, of_training = (
        operations.record(settings.workload(training, settings.large)) for training in (False, True)
    )
    calls = of_inference | of_training

    def measure(case: Facts) -> Facts:
        name, backend = case["operation"], case["backend"]
        if name not in calls:
            return {"verdict": "not run", "why": "this net does not call it"}
        some = calls[name][:: max(1, len(calls[name]) // CHECKED)]
        error, limit = operations.check(some, name, backend, device, dtype)
        cost = operations.total(calls[name])
        facts = {"calls": len(calls[name]), "bytes": cost.bytes, "flops": cost.flops, "check": [error, limit]}
        if not error <= limit:
            return {"verdict": "wrong", "error": f"errs by {error:.1e}, allowed {limit:.1e}", **facts}
        turns = take_turns({name: operations.runner(calls[name], name, backend, device, dtype)}, ROUNDS)
        facts |= {"dropped": turns.dropped, "others": round(turns.others, 3)}
        return {"verdict": "measured", "seconds": turns.seconds[name]["operation"], **facts}

    return measure


def profile(run: Run) -> None:
    settings = run.settings
    cases = [{"what": "profile", "backend": b} for b in settings.backends if b != "eager"]
    if not settings.on_gpu or shutil.which("ncu") is None:
        for case in cases:
            missing = "ncu is not installed" if settings.on_gpu else "only on a GPU"
            run.journal.line("ncu", **case, verdict="not run", why=missing)
        return
    work_through(run, [Job("ncu", [case], lambda: _profile) for case in cases], silence=run.left)


def _profile(case: Facts) -> Facts:
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "details"]
    command += [word for section in SECTIONS for word in ("--section", section)]
    command += [sys.executable, "-m", "benchmarks.gpu.kernels", case["backend"]]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kernels = parse(result.stdout.splitlines())
    if not kernels:
        return {"verdict": "failed", "error": f"exit code {result.returncode}", "tail": result.stdout[-1500:]}
    return {"verdict": "measured", "kernels": kernels}


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Of Nsight Compute's CSV: each launch with its metrics, in order."""
    launches: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(line for line in lines if line.startswith('"')):
        if row.get("ID") and row.get("Metric Name"):
            launch = launches.setdefault(
                row["ID"], {"kernel": row["Kernel Name"].partition("(")[0], "grid": row["Grid Size"]}
            )
            launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())


def profiled(backend: str) -> None:
    """Each operation at each layer, once to warm up and once to be looked at."""
    bundle.use()
    torch.set_grad_enabled(False)
    device, dtype = torch.device("cuda"), torch.bfloat16
    table = backends.operations(backend, device, dtype)
    for name in PROFILED:
        for shape in LAYERS:
            with torch.device(device):
                made = make(name, Geometry(*shape), dtype)
            for watched in (False, True):
                torch.cuda.synchronize()
                if watched:
                    torch.cuda.profiler.start()
                made.on(table)
                torch.cuda.synchronize()
            torch.cuda.profiler.stop()


if __name__ == "__main__":
    profiled(sys.argv[1])
