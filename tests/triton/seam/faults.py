"""Faults planted between the backend and the driver: each must be found, or refused by the driver."""

from collections.abc import Callable
from unittest.mock import patch

from triton.backends.nvidia.driver import CudaUtils
from triton.compiler import CompiledKernel

from densenet_fast.backends.triton import launch as path
from densenet_fast.backends.triton import plan

from . import step_findings
from .blocks import SINGLE, Block, plan_findings

_start, _load, _placed = CompiledKernel.__getitem__, CudaUtils().load_binary, plan._placed


def swapped(self, grid):
    """The first two addresses of a launch in the other order."""
    start = _start(self, grid)
    return lambda first, second, *rest, stream: start(second, first, *rest, stream=stream)


def without_opt_in(name, kernel, shared, device):
    return _load(name, kernel, 0, device)


def too_little_shared(self, grid):
    warps, clusters, shared = self.packed_metadata
    self.packed_metadata = warps, clusters, min(shared, 1024)
    return _start(self, grid)


def mixed(entry, addresses):
    """mean's address for var's."""
    arguments = _placed(entry, addresses).arguments
    return entry._replace(arguments={n: arguments.get("mean", v) if n == "var" else v for n, v in arguments.items()})


def launched_anew(index: int = 0) -> list[str]:
    one = Block()
    return step_findings(lambda: one.step(SINGLE), index)[0]


def planned_anew() -> list[str]:
    return plan_findings(Block())


def on_two_devices() -> list[str]:
    return launched_anew(0) + launched_anew(1)


def faults() -> dict[str, bool]:
    """Whether each is found."""
    compile_variant = path.compile_variant
    planted: dict[str, tuple[list, Callable[[], list[str]]]] = {
        "none": ([], lambda: [*launched_anew(), *planned_anew(), *on_two_devices()]),
        "parameters swapped": ([patch.object(CompiledKernel, "__getitem__", swapped)], launched_anew),
        "no opt-in to shared memory": ([patch.object(CudaUtils(), "load_binary", without_opt_in)], launched_anew),
        "too little shared memory": ([patch.object(CompiledKernel, "__getitem__", too_little_shared)], launched_anew),
        "a stream of another device": ([patch.object(path, "stream_of", lambda index: 0x1001)], launched_anew),
        "a plan's stream of another device": ([patch.object(plan, "stream_of", lambda index: 0x1001)], planned_anew),
        "another device's function": (
            [patch.object(path, "compile_variant", lambda *a: compile_variant(*a[:5]))],
            on_two_devices,
        ),
        "a plan that mixes tensors": ([patch.object(plan, "_placed", mixed)], planned_anew),
    }
    found = {}
    for name, (patches, check) in planted.items():
        path._variants.clear()
        path.compile_variant.cache_clear()
        plan._plan.cache_clear()
        for each in patches:
            each.start()
        try:
            found[name] = bool(check())
        except RuntimeError as error:
            found[name] = "driver error" in str(error)
        finally:
            for each in patches:
                each.stop()
    return found
