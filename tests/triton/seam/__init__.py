"""Steps of real nets through Triton's own driver class, utilities and compiled launchers, down to the driver, which is
that of tools/gpucheck/driver. `python -m tests.triton.seam`, in its `environment`, prints as JSON the findings of each
part: none where what reached the driver is what was planned.

What PyTorch would say of GPUs is said here: tensors are on the CPU and count as on GPU `GPU.index`; a thread's current
device is 0 until it is set, and setting it makes the device's context current.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from densenet_fast import backends
from densenet_fast.backends.triton import launch as path
from densenet_fast.backends.triton import plan
from tools.gpucheck.driver import Driver, Launched

DRIVER = Driver()
LAUNCH_ONLY = frozenset({"cuCtxGetCurrent", "cuLaunchKernelEx"})  # what a CUDA graph can capture
HOST_READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}


class GPU(threading.local):
    """Of this thread: the GPU that all tensors are on, and the current device."""

    index = 0
    current = 0


_gpu = GPU()


class _CurrentDevice:
    """torch.cuda.device."""

    def __init__(self, index: int):
        self.index = index

    def __enter__(self) -> None:
        self.before, _gpu.current = _gpu.current, self.index
        DRIVER.context = self.index + 1

    def __exit__(self, *_: object) -> None:
        _gpu.current = self.before
        DRIVER.context = self.before + 1


def stand_in() -> None:
    torch.cuda.current_device = lambda: _gpu.current
    torch.cuda.device = _CurrentDevice
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch._C._cuda_getCurrentRawStream = lambda index: 0x1000 + index
    path._device = lambda index: path.Device(90, 132)
    path.gpu_of = plan.gpu_of = lambda x: None if x.is_meta else _gpu.index
    backends.why_unavailable = lambda *_: None
    driver.set_active(CudaDriver())


@contextmanager
def on_gpu(index: int) -> Iterator[None]:
    before, _gpu.index = _gpu.index, index
    try:
        yield
    finally:
        _gpu.index = before


class HostReads(TorchDispatchMode):
    """Names of the operators that read a tensor's data on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.found += [name] * (name in HOST_READS)
        return func(*args, **(kwargs or {}))


def flat(values: Any, kinds: Any) -> Iterator[tuple[Any, str]]:
    """(value, Triton's type) of each run-time argument, tuples laid out."""
    for value, kind in zip(values, kinds, strict=True):
        if isinstance(kind[0], tuple):
            yield from flat(value, kind)
        elif kind[0] != "constexpr":
            yield value, kind[0]


def encoded(value: Any, kind: str) -> bytes:
    """An argument as a kernel reads it."""
    if kind.startswith("*"):
        return struct.pack("<Q", value.data_ptr())
    return struct.pack("<i" if kind == "i32" else "<f", value)


def expected(launch: path.Launch, index: int) -> Launched:
    """What the driver of GPU `index` must get."""
    given = [encoded(*item) for item in flat(launch.arguments.values(), launch.specialization)]
    scratch = [bytes(8)] * 2  # pointers that Triton adds, to memory no kernel here uses
    block, shared = (32 * launch.num_warps, 1, 1), launch.compile(90, index).metadata.shared
    rest = 0, 0x1000 + index, threading.get_ident(), index + 1, 0
    return Launched(launch.kernel.__name__, path.whole(launch.grid), block, shared, *rest, (*given, *scratch))


def differences(launched: list[Launched], wanted: list[Launched]) -> list[str]:
    if len(launched) != len(wanted):
        return [f"{len(launched)} launches, expected {len(wanted)}"]
    return [
        f"{got.kernel}: {field} {value!r}, expected {other!r}"
        for got, want in zip(launched, wanted, strict=True)
        for field, value, other in zip(Launched._fields, got, want, strict=True)
        if value != other
    ]


def without_addresses(launches: list[path.Launch], launched: list[Launched]) -> list[Launched]:
    """The launches with the alignment of each address in its place, as other tensors of the same net have it."""
    found = []
    for launch, got in zip(launches, launched, strict=True):
        kinds = [kind for _, kind in flat(launch.arguments.values(), launch.specialization)]
        shown = [bytes([p[0] % 16]) if k.startswith("*") else p for p, k in zip(got.parameters, kinds, strict=False)]
        found.append(got._replace(parameters=tuple(shown), thread=0))
    return found


def step_findings(step: Callable[[], None], index: int = 0) -> tuple[list[str], list[path.Launch], list[Launched]]:
    """A step launch by launch against its arguments; the launches, and what the driver got."""
    with on_gpu(index):
        DRIVER.forget()
        with path.recorded() as launches:
            step()
        launched = DRIVER.launches()
        return differences(launched, [expected(launch, index) for launch in launches]), launches, launched


def again_findings(
    step: Callable[[], None],
    before: list[path.Launch],
    launched: list[Launched],
    index: int = 0,
    calls: frozenset[str] = LAUNCH_ONLY,
) -> list[str]:
    """The same step another time, blocks from their plans: it launches the same, makes no other calls of the driver
    than `calls`, and reads nothing on the host."""
    with on_gpu(index):
        DRIVER.forget()
        with HostReads() as reads:
            step()
        again, called = DRIVER.launches(), {*DRIVER.calls()}
    if len(again) != len(launched):
        return [f"{len(again)} launches, expected {len(launched)}"]
    found = differences(without_addresses(before, again), without_addresses(before, launched))
    return found + [f"calls {call}" for call in sorted(called - calls)] + [f"reads by {r}" for r in reads.found]
