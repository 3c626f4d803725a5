"""Faults planted between the backend and the driver: each must be found, or refused by the driver."""

from collections.abc import Callable
from unittest.mock import patch

from triton.backends.nvidia.driver import CudaUtils
from triton.compiler import CompiledKernel

from densenet_fast.backends.triton import launch as path
from densenet_fast.backends.triton import plan

from . import step_findings
from .blocks import Block

_handle, _load, _filled = CompiledKernel.__getitem__, CudaUtils().load_binary, plan.Plan._start


def swapped(*of_launch):
    """The first two addresses of a launch in the other order, if it has two."""
    start = path.starter(*of_launch)
    if of_launch[0].__name__ == "clear_kernel":
        return start

    def launch(*values):
        before, (first, second, *rest) = values[: start.before], values[start.before :]
        start.launch(*before, second, first, *rest)

    return start._replace(launch=launch)


def without_opt_in(name, kernel, shared, device):
    return _load(name, kernel, 0, device)


def too_little_shared(self, grid):
    warps, clusters, shared = self.packed_metadata
    self.packed_metadata = warps, clusters, min(shared, 1024)
    return _handle(self, grid)


def mixed(self, index, given):
    """The first two arguments' addresses in each other's place."""
    scratch, first, second, *rest = given
    _filled(self, index, [scratch, second, first, *rest])


def launched(index: int = 0) -> list[str]:
    one = Block()
    return step_findings(one.step, index)[0]


def on_two_devices() -> list[str]:
    return launched(0) + launched(1)


def faults() -> dict[str, bool]:
    """Whether each is found."""
    compile_variant = path.compile_variant
    planted: dict[str, tuple[list, Callable[[], list[str]]]] = {
        "none": ([], lambda: [*launched(), *on_two_devices()]),
        "parameters swapped": ([patch.object(plan, "starter", swapped)], launched),
        "no opt-in to shared memory": ([patch.object(CudaUtils(), "load_binary", without_opt_in)], launched),
        "too little shared memory": ([patch.object(CompiledKernel, "__getitem__", too_little_shared)], launched),
        "a stream of another device": ([patch.object(plan, "stream_of", lambda index: 0x1001)], launched),
        "another device's function": (
            [patch.object(plan, "compile_variant", lambda *a, index, **options: compile_variant(*a, **options))],
            on_two_devices,
        ),
        "a plan that mixes tensors": ([patch.object(plan.Plan, "_start", mixed)], launched),
    }
    found = {}
    for name, (patches, check) in planted.items():
        path.compile_variant.cache_clear()
        plan.forget()
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
