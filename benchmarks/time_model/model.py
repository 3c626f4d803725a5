"""The time of a launch: what its programs take on the busiest multiprocessor, or longer if its bytes take longer."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from tools.gpucheck.triton import sass

from . import device, machine_code, memory, multiprocessor
from .machine_code import Code
from .memory import cdiv
from .multiprocessor import PRODUCT, Latency, Operation
from .plans import Compiled
from .programs import Programs, programs

FEW, MORE = 4, 6  # times through a loop that are simulated; of a loop that runs longer the rest is extrapolated
FROM_L2 = Latency(device.L2_LATENCY, device.L2_LATENCY)


class Kernel:
    """A variant's machine code."""

    def __init__(self, compiled: Compiled):
        usage = sass.usage(compiled.cubin)
        self.code: Code = machine_code.parse(sass.disassemble(compiled.cubin, encoded=True))
        self.warps = compiled.warps
        self.registers, self.shared = usage.registers, compiled.shared + usage.shared
        self.copies = any(i.name.startswith("LDGSTS") for i in self.code.instructions)
        self._cycles: dict[Any, float] = {}

    @cached_property
    def resident(self) -> int:
        """Programs that fit on a multiprocessor."""
        return resident(self.registers, self.warps, self.shared)

    def places(self, trips: Any) -> list[list[int]]:
        """The instructions that a program executes, of each of a scheduler's warps."""
        return [machine_code.trace(self.code, trips)] * cdiv(self.warps, device.SCHEDULERS)

    def operations(self, trips: Any, latency: Latency) -> list[list[Operation]]:
        instructions = self.code.instructions
        return [[multiprocessor.operation(instructions[i], latency) for i in each] for each in self.places(trips)]

    def cycles(self, kinds: Sequence[tuple[Any, int]], latency: Latency) -> float:
        """Of programs on one multiprocessor, so many with these trips through their loops. Beyond three times those of
        the last kind that fit, and beyond MORE trips, it goes on as it went."""
        fit, (*first, (trips, number)) = self.resident, kinds
        if number > 3 * fit:
            some = 2 * fit + number % fit
            few, two, three = (self.cycles([*first, (trips, n)], latency) for n in (some, 2 * fit, 3 * fit))
            return few + (number - some) // fit * (three - two)
        for i, (trips, number) in enumerate(kinds):
            for loop, times in trips.items():
                if times > MORE:
                    few, more = (
                        self.cycles([*kinds[:i], (trips | {loop: n}, number), *kinds[i + 1 :]], latency)
                        for n in (FEW, MORE)
                    )
                    return few + (times - FEW) * (more - few) / (MORE - FEW)
        key = tuple((self.key(trips), number) for trips, number in kinds), latency
        if key not in self._cycles:
            each = [operations for trips, n in kinds for operations in [self.operations(trips, latency)] * n]
            self._cycles[key] = multiprocessor.cycles(each, fit)
        return self._cycles[key]

    def key(self, trips: Any) -> Any:
        """The same for programs that do the same."""
        return tuple(trips.items())

    def times(self, trips: Any) -> Iterable[tuple[float, Iterable[int]]]:
        """How often a program's warp executes which instructions, on average over its warps."""
        yield 1, machine_code.trace(self.code, dict.fromkeys(trips, 1))
        for loop, times in trips.items():
            yield times - 1, range(loop.first, loop.last + 1)

    def work(self, trips: Any) -> "Work":
        """Cycles of a scheduler's tensor core, share of the shared memory and issue slots for a program's warp."""
        code, found = self.code.instructions, Work(0.0, 0.0, 0.0)
        for times, places in self.times(trips):
            for o in (multiprocessor.operation(code[i], FROM_L2) for i in places):
                tensor = o.busy if o.kind == PRODUCT or o.pipe == "tensor" else 0.0
                shared = o.shared * device.SCHEDULERS / device.SHARED_BYTES
                found = Work(found.tensor + times * tensor, found.shared + times * shared, found.issue + times)
        return found


class Work(NamedTuple):
    tensor: float
    shared: float
    issue: float


def resident(registers: int, warps: int, shared: int) -> int:
    """Programs of so many registers of a thread, warps and bytes of shared memory that fit on a multiprocessor: its
    registers are given out 256 at a time, and each scheduler has a fourth of them."""
    of_scheduler = device.REGISTERS // device.SCHEDULERS // (cdiv(registers * 32, 256) * 256)
    by_registers = min(of_scheduler * device.SCHEDULERS, device.WARPS) // warps
    return max(1, min(by_registers, device.SHARED // (shared + device.RESERVED), device.PROGRAMS))


class Bounds(NamedTuple):
    """Seconds of a launch, or of several."""

    dram: float  # what the bytes take
    l2: float
    tensor: float  # what the tensor cores, shared memory and issue slots of all multiprocessors take, evenly used
    shared: float
    issue: float
    programs: float  # what the busiest multiprocessor takes, simulated: with all latencies, and with the tail
    time: float


class Backend(NamedTuple):
    """What differs between those whose kernels are modelled."""

    kernel: Callable[[Any], Kernel]  # of a variant
    programs: Callable[[Any, Any], list[Programs]]  # of a launch and its kernel
    moved: Callable[[Any], memory.Moved]  # by a launch


TRITON = Backend(Kernel, lambda launch, kernel: programs(launch, kernel.code), memory.moved)


def bounds(launch: Any, kernel: Kernel, backend: Backend = TRITON) -> Bounds:
    moved, kinds = backend.moved(launch), backend.programs(launch, kernel)
    far = device.GLOBAL_LATENCY if moved.dram else device.L2_LATENCY
    # What is read again comes from the L1 cache, unless it is copied past it.
    new = 1.0 if kernel.copies else moved.new
    latency = Latency(new * far + (1 - new) * device.L1_LATENCY, far)
    taken = kernel.cycles(_on_busiest(kinds), latency) + max(_merging(kernel, kind) for kind in kinds)
    work = [(kind.number * cdiv(kernel.warps, device.SCHEDULERS), kernel.work(kind.trips)) for kind in kinds]
    evenly = [sum(warps * w[i] for warps, w in work) / device.PROCESSORS / device.CLOCK for i in range(3)]
    dram, l2, simulated = moved.dram / device.DRAM, moved.l2 / device.L2, taken / device.CLOCK
    return Bounds(dram, l2, *evenly, simulated, max(dram, l2, simulated) + device.LAUNCH)


def _on_busiest(kinds: Sequence[Programs]) -> list[tuple[Any, int]]:
    """How many of each kind the multiprocessor has that has most, if they are dealt out in turn."""
    found: list[tuple[Any, int]] = []
    begin = 0  # programs dealt out so far
    for kind in kinds:
        end = begin + kind.number
        found.append((kind.trips, max(1, cdiv(end, device.PROCESSORS) - cdiv(begin, device.PROCESSORS))))
        begin = end
    return found


def _merging(kernel: Kernel, kind: Programs) -> float:
    """Cycles for which the last program to arrive goes on when all others have ended."""
    if kind.last is None:
        return 0.0
    with_it, without = (kernel.cycles([(trips, 1)], FROM_L2) for trips in (kind.last, kind.trips))
    return with_it - without


class Line(NamedTuple):
    """The launches of one kernel in a step."""

    kernel: str
    launches: int
    bounds: Bounds
    resident: float  # programs that fit on a multiprocessor, and waves of as many on all: means over the launches
    waves: float
    by_operation: dict[str, float]  # of the time


def lines(step: Any, backend: Backend = TRITON) -> list[Line]:
    """Longest first."""
    kernels = [backend.kernel(variant) for variant in step.variants]
    by_kernel: dict[str, list[Any]] = defaultdict(list)
    for launch in step.launches:
        by_kernel[launch.kernel].append(launch)
    found = []
    for name, launches in by_kernel.items():
        each = [bounds(launch, kernels[launch.variant], backend) for launch in launches]
        fits = [kernels[launch.variant].resident for launch in launches]
        waves = [launch.programs / device.PROCESSORS / fit for launch, fit in zip(launches, fits, strict=True)]
        by_operation: dict[str, float] = defaultdict(float)
        for launch, one in zip(launches, each, strict=True):
            by_operation[launch.operation] += one.time
        means = fmean(fits), fmean(waves)
        found.append(Line(name.removesuffix("_kernel"), len(each), total(each), *means, dict(by_operation)))
    return sorted(found, key=lambda line: -line.bounds.time)


def total(each: Iterable[Bounds]) -> Bounds:
    return Bounds(*map(sum, zip(*each, strict=True)))
