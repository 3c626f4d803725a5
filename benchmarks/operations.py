"""Every operation of the contract as a net calls it: recorded from a real step, then checked and timed by backend.

All calls of one training step (and, for the operations that only inference has, of one inference) are kept with their
arguments. A backend runs the same calls, one by one, everything that an operation writes restored before it. On a GPU
the cache is flushed before each call, so that the bytes counted must come from memory.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densenet_fast import backends
from densenet_fast.contract import DECLARATIONS
from densenet_fast.contract.traffic import Traffic, traffic
from tests.blocks import new_channels

from .compare import Workload, build
from .memory import mean_square
from .rounds import Durations, Stopwatch
from .variants import BY_NAME

FLUSH = 512 * 2**20  # bytes, several times a data-centre GPU's cache


class Call(NamedTuple):
    """One call of an operator, in memory of its own.

    fresh: by position, the tensors that it reads and changes, as they were before.
    overwritten: positions of those, or of lists of them, that it only writes; they hold what the step has left there.
    unspecified: by position, the channels of a tensor in which it may leave anything.
    """

    args: tuple[Any, ...]
    fresh: dict[int, Tensor]
    overwritten: list[int]
    unspecified: dict[int, slice]
    traffic: Traffic

    def restore(self) -> None:
        for i, value in self.fresh.items():
            self.args[i].copy_(value)


class Recorder(TorchDispatchMode):
    """Keeps every call of a densenet_fast operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[Call]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "densenet_fast":
            return func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        written = {i: a.role for i, a in enumerate(DECLARATIONS[name].arguments) if a.role.written}
        own = tuple(_each(_copied, argument) for argument in args)
        fresh = {i: _each(torch.clone, own[i]) for i, role in written.items() if role.read and args[i] is not None}
        overwritten = [i for i, role in written.items() if not role.read and args[i] is not None]
        unspecified = {}
        if name == "block_bwd":
            *_, block, _, _, begin, end, _ = DECLARATIONS[name].gathered(args)
            unspecified[0] = new_channels(block, begin, end)
        func(*args)
        self.calls[name].append(Call(own, fresh, overwritten, unspecified, traffic(name, args)))
        return None


def _copied(tensor: Tensor) -> Tensor:
    """In memory of its own, since a call changes what others read, laid out as it is."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.new_empty(extent).as_strided(tensor.shape, tensor.stride()).copy_(tensor.detach())


def _each(function: Callable[[Tensor], Tensor], argument: Any) -> Any:
    """`function` of a tensor, or of those in a list."""
    if isinstance(argument, list):
        return [_each(function, value) for value in argument]
    return function(argument) if isinstance(argument, Tensor) else argument


def record(workload: Workload) -> dict[str, list[Call]]:
    """The calls of one step, by operation, in the order in which the net makes them."""
    step = build(BY_NAME["eager"], workload)
    with Recorder() as recorder, torch.set_grad_enabled(workload.training):
        y = step.call(step.x)
        if workload.training:
            mean_square(y).backward()
    calls = dict(recorder.calls)
    calls.pop("update_running_stats", None)  # lists of small vectors: launches, not bytes
    return calls


@torch.no_grad()
def check(
    calls: list[Call], operation: str, backend: str, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Error of a backend over all calls of an operation, relative in the L2 norm, and the error allowed: twice that of
    the eager backend in the same dtype plus one unit of rounding. Exact is the eager backend in float64."""
    exact_operator = operator("eager", operation, device, torch.float64)
    named = {"got": operator(backend, operation, device, dtype), "eager": operator("eager", operation, device, dtype)}
    off = dict.fromkeys(named, 0.0)
    size = 0.0
    for call in calls:
        exact = _results(exact_operator, call, torch.float64)
        found = {name: _results(called, call, None) for name, called in named.items()}
        for i, right in enumerate(exact):
            norm = right.norm().item() or 1.0
            size += 1
            for name, results in found.items():
                off[name] += ((results[i].double() - right).norm().item() / norm) ** 2
    error, eager = ((off[name] / size) ** 0.5 for name in named)
    return error, 2 * eager + torch.finfo(dtype).eps


def operator(backend: str, operation: str, device: torch.device, dtype: torch.dtype) -> Callable[..., None]:
    """The operator behind an operation of a backend, which takes flat arguments."""
    backends.operations(backend, device, dtype)
    return getattr(getattr(torch.ops.densenet_fast, operation), backend)


def _results(called: Callable[..., None], call: Call, dtype: torch.dtype | None) -> list[Tensor]:
    """What a call leaves in its arguments; what it should have written and has not is zero, as are gaps in memory and
    what is unspecified."""
    call.restore()
    args = [_each(lambda t: t if dtype is None or not t.is_floating_point() else t.to(dtype), a) for a in call.args]
    changed = [*call.fresh, *call.overwritten]
    for i in changed:
        args[i] = _each(torch.clone, args[i])
    for i in call.overwritten:
        _each(lambda t: t.fill_(math.nan), args[i])
    called(*args)
    for i, channels in call.unspecified.items():
        args[i][:, channels] = 0
    left = [t for i in changed for t in (args[i] if isinstance(args[i], list) else [args[i]])]
    return [t.nan_to_num() for t in left if t is not None and t.numel()]


def runner(
    calls: list[Call], operation: str, backend: str, device: torch.device, dtype: torch.dtype
) -> Callable[[], Durations]:
    """A function that makes all calls of an operation with one backend and says how long they took together."""
    run = operator(backend, operation, device, dtype)
    watch = Stopwatch(device)
    flush = torch.empty(FLUSH if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    @torch.no_grad()
    def durations() -> Durations:
        for call in calls:
            call.restore()
            flush.zero_()
            watch.mark()
            run(*call.args)
            watch.mark()
        return {"operation": sum(watch.seconds()[::2])}

    return durations


def total(calls: list[Call]) -> Traffic:
    return sum((call.traffic for call in calls), Traffic(0, 0))


def copy_bandwidth(device: torch.device, rounds: int = 7) -> float:
    """Bytes per second, read and written, of a copy many times as large as the cache."""
    size = (4 << 30) if device.type == "cuda" else (256 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device, rounds)


def matmul_rate(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> float:
    """Operations per second of PyTorch's product of two large random matrices."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _median_seconds(lambda: a @ b, device, rounds)


def _median_seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    watch = Stopwatch(device)
    run()
    watch.start()
    for _ in range(rounds):
        run()
        watch.mark()
    return sorted(watch.seconds())[rounds // 2]
