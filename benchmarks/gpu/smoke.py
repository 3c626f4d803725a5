"""Every operation of every backend, in every dtype and at shapes that try its edges: against float64, and twice.

Right means: off by at most twice what the eager backend is in the same dtype, plus one unit of rounding, and the same
bits both times. Calls are those of tests/calls.py, the halves of a layer among them: in memory surrounded by NaN.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from densenet_fast import backends
from tests import calls
from tests.calls import Geometry, applies

from . import blocks
from .runner import Facts, Job, Run, work_through
from .settings import Settings

NAMES = (blocks.NAME, *calls.NAMES)
# What an operation does only when it is asked to, at the second shape.
OPTIONS = {name: ({"drop_rate": 0.2},) for name in calls.NAMES if name.startswith(("conv3x3", "plain", "layer"))}
FEW = 3  # shapes of float16, and of the backend that the others are compared with


def smoke(run: Run, operations: Sequence[str] = NAMES) -> None:
    """All of it, or what has to do with some operations."""
    settings = run.settings
    jobs = [
        Job("smoke", list(cases(settings, backend, operation)), partial(start, settings))
        for backend in settings.backends
        for operation in operations
    ]
    work_through(run, jobs, settings.parallel)


def cases(settings: Settings, backend: str, operation: str) -> Iterator[Facts]:
    if operation == blocks.NAME:
        yield from blocks.cases(settings, backend)
        return
    for dtype in settings.dtypes(backend):
        few = backend == "eager" or dtype == torch.float16
        for i, shape in enumerate(settings.shapes[:FEW] if few else settings.shapes):
            if not applies(operation, Geometry(*shape)):
                continue
            name = str(dtype).removeprefix("torch.")
            for option in ({}, *(OPTIONS.get(operation, ()) if i == 1 else ())):
                told = {"option": next(iter(option))} if option else {}
                yield {"backend": backend, "operation": operation, "dtype": name, "shape": shape, **told}


def start(settings: Settings) -> Callable[[Facts], Facts]:
    torch.set_grad_enabled(False)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.deterministic = True
    return partial(check, settings.device)


def check(device: torch.device, case: Facts) -> Facts:
    """One operation, once in each precision and then again."""
    if case["operation"] == blocks.NAME:
        first, again, stock, exact = map(_joined, zip(*blocks.check(device, case), strict=True))
        return verdict(first, again, stock, exact, getattr(torch, case["dtype"]))
    dtype, name, shape = getattr(torch, case["dtype"]), case["operation"], case["shape"]
    options = next((o for o in OPTIONS.get(name, ()) if case.get("option") in o), {})
    table = backends.operations(case["backend"], device, dtype)
    eager = backends.operations("eager", device, dtype)
    torch.manual_seed(sum(shape))
    with torch.device(device):
        made = calls.make(name, Geometry(*shape), dtype, **options)
        runs = ((table, dtype), (table, dtype), (eager, dtype), (eager, torch.float64))
        first, again, stock, exact = ([*made.copy(d).on(ops).results().values()] for ops, d in runs)
    return verdict(first, again, stock, exact, dtype)


def _joined(lists: Iterable[list[Tensor]]) -> list[Tensor]:
    return [value for values in lists for value in values]


def verdict(
    first: list[Tensor], again: list[Tensor], stock: list[Tensor], exact: list[Tensor], dtype: torch.dtype
) -> Facts:
    error, limit = off(first, exact), 2 * off(stock, exact) + torch.finfo(dtype).eps
    facts = {"verdict": "right", "off": error, "limit": limit}
    if not error <= limit:
        return facts | {"verdict": "wrong", "error": f"errs by {error:.1e}, allowed {limit:.1e}"}
    if not all(same(a, b) for a, b in zip(first, again, strict=True)):
        return facts | {"verdict": "wrong", "error": "two runs differ"}
    return facts


def off(got: list[Tensor], exact: list[Tensor]) -> float:
    """Root mean square over the results of their errors, each relative in the L2 norm; NaN if anything is."""
    errors = [
        ((a.double() - e).norm() / (e.norm() + (e.norm() == 0))).item()
        for a, e in zip(got, (e.double() for e in exact), strict=True)
        if e.numel()
    ]
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


def same(a: Tensor, b: Tensor) -> bool:
    """The same bits."""
    return a.dtype == b.dtype and torch.equal(a, b)
