"""Launches executed as the PTX that Triton emits for sm_80, in the place of Triton's interpreter."""

import math
from collections.abc import Callable, Iterable

from densenet_fast.backends.triton.launch import Device, Launch
from densenet_fast.backends.triton.precompile import Variant
from tools.gpucheck import ptx
from tools.gpucheck.triton.compiler import Compiler

A100 = Device(80, 4)  # few processors: a program then has several tiles to walk through


def pointers(values) -> list:
    """A kernel's run-time arguments, tuples laid out flat."""
    return [leaf for v in values for leaf in (pointers(v) if isinstance(v, tuple) else [v]) if leaf is not None]


class Executor:
    """Runs launches, their programs in an order, and keeps them, with what they did."""

    def __init__(self, compiler: Compiler):
        self.compiler = compiler
        self.programs: dict[str, ptx.Launch] = {}
        self.order: Callable[[list[int]], Iterable[int]] = list
        self.done: list[tuple[Launch, ptx.Counts]] = []

    def run(self, launch: Launch) -> None:
        compiled = self.compiler.compile(Variant.of(launch, A100.architecture))
        if compiled.ptx not in self.programs:
            self.programs[compiled.ptx] = ptx.Launch(compiled.ptx, compiled.name)
        kinds = zip(launch.arguments.values(), launch.specialization, strict=True)
        given = pointers(value for value, kind in kinds if kind[0] != "constexpr")
        scratch = [None, None]  # pointers that Triton adds, to memory no kernel here uses
        program = self.programs[compiled.ptx]
        order = [*self.order([*range(math.prod(launch.grid))])]
        counts = program.run(launch.grid, 32 * launch.num_warps, given + scratch, shared=compiled.shared, order=order)
        self.done.append((launch, counts))
