"""A kernel launch: what it consists of, which compiled variant it takes, and which launches a caller sees.

Nothing is specialised on a value except where its divisibility decides how wide memory is read: pointers, channel
counts and strides. Kernels are chosen by `tiles.py`, never by timing. Launches are planned and started in plan.py;
`recorded` gives those of the code it encloses. On arguments of the meta device they are planned and not run, for an
architecture that need not be present.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.errors import TritonError

Kernel = Any  # what @triton.jit returns
Specialization = tuple[Any, ...]  # of one argument: (Triton's type, constexpr value or divisibility)

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Device(NamedTuple):
    """What tiles and grids depend on: compute capability * 10, and the number of streaming multiprocessors."""

    architecture: int
    processors: int


LAUNCHER_IS_KNOWN = triton.__version__.startswith("3.6.")  # what it takes, which differs from version to version
INTERPRETER = Device(90, 4)  # few processors: a program then has several tiles to walk through


class Launch(NamedTuple):
    """One kernel launch. `arguments` are the kernel's, in its order; grid, warps, stages and the most registers of a
    thread as Triton has them."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    maxnreg: int | None = None

    @property
    def specialization(self) -> tuple[Specialization, ...]:
        constants = _parameters(self.kernel.fn)
        return tuple(_specialize(name, value, constants[name]) for name, value in self.arguments.items())

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "maxnreg": self.maxnreg}

    def source(self) -> ASTSource:
        """The compiler's input: signature, constants and divisibilities."""
        return _source(self.kernel, self.specialization)

    def compile(self, architecture: int, index: int | None = None) -> Any:
        """The compiled kernel for an architecture that need not be present, or for a GPU."""
        return compile_variant(self.kernel, self.specialization, architecture, **self.options, index=index)


class _Recording(threading.local):
    """What this thread records at the moment, and the device it plans for."""

    launches: list[Launch] | None = None
    device: Device | None = None


_recording = _Recording()


@contextmanager
def recorded(device: Device | None = None) -> Iterator[list[Launch]]:
    """The launches this thread makes inside, in order, planned as for `device` if one is given; those of a recording
    inside are not among them."""
    before = _recording.launches, _recording.device
    launches: list[Launch] = []
    _recording.launches, _recording.device = launches, device or _recording.device
    try:
        yield launches
    finally:
        _recording.launches, _recording.device = before


def recording() -> list[Launch] | None:
    """Where this thread's launches are noted at the moment, if anywhere."""
    return _recording.launches


def gpu_of(x: Tensor) -> int | None:
    """The index of the GPU that x is on, if it is on one."""
    return x.get_device() if x.is_cuda else None


def device_of(x: Tensor) -> Device:
    if _recording.device is not None:
        return _recording.device
    index = gpu_of(x)
    return INTERPRETER if index is None else _device(index)


def stream_of(index: int) -> int:
    """A GPU's current stream."""
    return torch._C._cuda_getCurrentRawStream(index)


class Starter(NamedTuple):
    """What launches a compiled kernel: `launch(*grid, stream, *rest, *arguments)` is Triton's own launcher, compiled
    for this kernel. Triton's way to it, `heard(*arguments, stream=stream)`, tells the launch hooks, and takes several
    times as long, also where there are none."""

    launch: Callable[..., None]
    grid: tuple[int, int, int]
    rest: tuple[Any, ...]
    heard: Callable[..., None]

    @property
    def before(self) -> int:
        """Values that `launch` takes before the arguments."""
        return len(self.grid) + 1 + len(self.rest)


def starter(kernel: Kernel, compiled: Any, grid: tuple[int, ...]) -> Starter:
    """Loads the kernel onto the current device."""
    try:
        heard, launcher = compiled[whole(grid)], compiled.run
    except (RuntimeError, TritonError) as error:
        raise refused(kernel, error) from error
    if not LAUNCHER_IS_KNOWN:
        return Starter(heard, whole(grid), (), heard)
    assert launcher.global_scratch_size == launcher.profile_scratch_size == 0, "no kernel here asks for memory"
    of_launcher = compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl, None, None
    return Starter(launcher.launch, whole(grid), (*of_launcher, compiled.packed_metadata, None, None, None), heard)


def is_heard() -> bool:
    """Whether launches go Triton's own way: somebody, a profiler for instance, hooks them, or no other is known."""
    return not LAUNCHER_IS_KNOWN or bool(knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls)


def refused(kernel: Kernel, error: Exception) -> RuntimeError:
    """An error of loading or launching that names the kernel, which Triton's do not."""
    return RuntimeError(
        f"densenet_fast: cannot launch {kernel.__name__}: got {error}; backend='eager' needs no such kernels"
    )


def whole(grid: tuple[int, ...]) -> tuple[int, int, int]:
    """The grid with all its axes."""
    x, y, z, *_ = (*grid, 1, 1)
    return x, y, z


def _specialize(name: str, value: Any, constant: bool) -> Specialization:
    if constant or value is None:
        return "constexpr", value
    if isinstance(value, Tensor):  # a seed is read alone, whatever lies beside it
        return _TYPES[value.dtype], _divisor(value.data_ptr(), 8 if value.dtype == torch.int64 else 16)
    if isinstance(value, int):
        return "i32", _divisor(value, 8) if _is_aligned(name) else 1
    if isinstance(value, tuple):
        return tuple(_specialize(name, v, False) for v in value)
    return "fp32", 1


def _divisor(value: int, limit: int) -> int:
    """The largest power of two, at most `limit`, that divides `value`."""
    return (value | limit) & -(value | limit)


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """Names of a kernel's parameters, in order, and whether each is a constexpr."""
    return {name: p.annotation is tl.constexpr for name, p in signature(function).parameters.items()}


def _is_aligned(name: str) -> bool:
    """Whether an integer's divisibility matters: channels and strides, which make masks and rows aligned."""
    return name in ("C", "K", "G") or name.endswith("stride")


def _source(kernel: Kernel, specialization: tuple[Specialization, ...]) -> ASTSource:
    types: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, (name, item) in enumerate(zip(_parameters(kernel.fn), specialization, strict=True)):
        types[name] = _describe((i,), item, constants, attributes)
    return ASTSource(kernel, types, constants, attributes)


def _describe(path: tuple[int, ...], item: Any, constants: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    """The type of one argument for the signature; its value or divisibility goes to the dictionaries."""
    if isinstance(item[0], tuple):
        return tuple(_describe((*path, j), inner, constants, attributes) for j, inner in enumerate(item))
    kind, value = item
    if kind == "constexpr":
        constants[path] = value
    elif value > 1:
        attributes[path] = [["tt.divisibility", value]]
    return kind


@cache
def compile_variant(
    kernel: Kernel,
    specialization: tuple[Specialization, ...],
    architecture: int,
    num_warps: int,
    num_stages: int,
    maxnreg: int | None,
    index: int | None = None,
) -> Any:
    """The compiled kernel; `index` sets apart the devices it is loaded on."""
    return triton.compile(
        _source(kernel, specialization),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg},
    )


@cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.major * 10 + properties.minor, properties.multi_processor_count)
