"""The way from an operation to its kernels: launches planned once, into which every call fills addresses.

What tensors look like decides everything but the addresses themselves: checks, tiles, grids, compiled variants. So a
plan is a function of the looks and the numbers of a call. The operation's own function makes it on the meta device,
where each argument has memory of its own: what a launch is given there tells which argument it is of, and where
(`Slot`). Nothing waits for the device, so a step can be captured in a CUDA graph.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from ...contract import DECLARATIONS
from . import tiles
from ._common import cdiv, clear_kernel
from .launch import (
    Device,
    Kernel,
    Launch,
    Starter,
    compile_variant,
    device_of,
    gpu_of,
    is_heard,
    recording,
    refused,
    starter,
    stream_of,
)
from .memory import Extent, Memory

MOST = 512  # plans kept, those used last: a net of four blocks has some thirty for each size of its images

_ALIGNED = 16  # bytes: how far an address decides how wide memory is read
_STREAM = 0  # its place in the list of values from which launches take theirs
_SCRATCH = 0  # its place in a plan's list of values: scratch memory, arguments, copies of some, numbers
_BEFORE = 1 << 40  # bytes that are imagined before scratch memory, for counters
_COUNTERS = 512  # bytes, of which there are whole multiples: memory behind them is aligned as the allocator aligns it

Look = tuple[torch.dtype, torch.Size, tuple[int, ...], torch.device]


class Slot(NamedTuple):
    """What an argument of a launch is of: a part of a tensor, or a number."""

    place: int  # in the plan's list of values; numbers are counted from its end
    offset: int = 0  # bytes
    dtype: torch.dtype = torch.uint8
    sizes: Sequence[int] = ()
    strides: Sequence[int] = ()

    def of(self, values: Sequence[Any]) -> Any:
        whole = values[self.place]
        if not isinstance(whole, Tensor):
            return whole
        memory = whole.view(self.dtype)
        return memory.as_strided(self.sizes, self.strides, memory.storage_offset() + self.offset // self.dtype.itemsize)


class planned:
    """An operation of the contract, made of a function that plans it: one with the same arguments behind a `Planner`,
    which checks them, launches, and does nothing else.

    `varying` is an argument, a list of numbers, that the plan does not depend on: the function gets slots for them.
    """

    def __init__(self, operation: str, varying: str = ""):
        self.operation, self._declared = operation, DECLARATIONS[operation]
        self._kinds = [("varying" if a.name == varying else a.type.replace("?", "")) for a in self._declared.arguments]

    def __call__(self, function: Callable[..., None]) -> Callable[..., None]:
        self._function = function
        return self._declared.flattening(self._run)

    def _run(self, *arguments: Any) -> None:
        tensors: list[Any] = []
        numbers: Sequence[float] = ()
        constants: list[Any] = []  # on which the plan depends; the lengths of lists among them
        for kind, value in zip(self._kinds, arguments, strict=True):
            if kind == "Tensor":
                tensors.append(value)
            elif kind == "Tensor[]":
                tensors += value
                constants.append(len(value))
            elif kind == "varying":
                numbers = value
                constants.append(len(value))
            else:
                constants.append(tuple(value) if isinstance(value, list) else value)
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        looks = tuple([None if t is None else (t.dtype, t.shape, t.stride(), t.device) for t in tensors])
        alignments = tuple([address % _ALIGNED for address in addresses])
        x = tensors[0]
        plan = _plan(self, device_of(x), gpu_of(x), tiles.kind_of(x), tuple(constants), looks, alignments)
        plan.run(tensors, addresses, numbers)

    def plan_with(self, planner: "Planner", constants: Sequence[Any]) -> None:
        """Let the function plan."""
        kinds, values, place = iter(self._kinds), iter(constants), _SCRATCH
        arguments: list[Any] = []
        for _, record, inner in self._declared.parameters:
            for name, _, role, written in inner:
                kind = next(kinds)
                value = 1 if kind == "Tensor" else next(values)
                if kind == "varying":
                    arguments.append([Slot(i - value) for i in range(value)])
                elif kind.startswith("Tensor"):
                    # Parameters, many and small, are read, and nobody looks whether they share memory.
                    apart = written or (record is None and kind == "Tensor")
                    found = [planner.argument(place + 1 + i, name, apart, written, role.over) for i in range(value)]
                    place += value
                    arguments.append(found[0] if kind == "Tensor" else found)
                else:
                    arguments.append(list(value) if isinstance(value, tuple) else value)
        self._function(planner, *self._declared.gathered(arguments))


@lru_cache(maxsize=MOST)
def _plan(
    operation: planned,
    device: Device,
    index: int | None,  # of the GPU
    kind: str,  # of product, which PyTorch's settings have a say in
    constants: tuple[Any, ...],
    looks: tuple[Look | None, ...],
    alignments: tuple[int, ...],  # of the addresses
) -> "Plan":
    planner = Planner(operation.operation, device, kind, looks, alignments)
    operation.plan_with(planner, constants)
    planner.clear()
    return Plan(planner, index)


def forget() -> None:
    """Make all plans anew, from changed tiles."""
    _plan.cache_clear()


class Planner:
    """What an operation's function plans with: its launches, and memory for itself, in one allocation.

    Launches run one after the other, so the memory that a layer or a half has done with serves the next (`reuse`), but
    for what is kept (`keep`). Counters lie before the rest.
    """

    def __init__(
        self, operation: str, device: Device, kind: str, looks: Sequence[Look | None], alignments: Sequence[int]
    ):
        self.operation, self.device, self.kind = operation, device, kind
        self.launches: list[tuple[Launch, tuple[Any, ...]]] = []  # of slots; and what its variant is specialised on
        self.before = 0  # bytes of counters
        self.extents: list[Extent] = []
        self.copies: list[tuple[Slot, torch.memory_format]] = []
        self.scratch = 0  # bytes
        self.free = 0  # the first byte of scratch memory that may be given
        self._looks, self._alignments = looks, alignments
        self._alive: list[Tensor] = []  # a storage that is freed would lend its identity to another
        self._memory: dict[int, tuple[int, int]] = {}  # of a storage, the place of its tensor and where that begins
        self._kept = 0, 0  # bytes of scratch memory, from and to
        self._whole = self._imagined(_SCRATCH, torch.uint8, (0,), (1,), _BEFORE)

    @property
    def precision(self) -> str:
        return tiles.PRECISION[self.kind]

    def tile(self, operation: str, outputs: int) -> tiles.Tile:
        return tiles.choose(operation, self.device, self.kind, outputs)

    def argument(self, place: int, name: str, apart: bool, written: bool, over: str = "") -> Tensor | None:
        """The argument at a place. Those that must lie `apart` share no memory with any of them that is written, unless
        that may be written `over` them."""
        look = self._looks[place - 1]
        if look is None:
            return None
        dtype, sizes, strides, device = look
        expected = next(look[3] for look in self._looks if look is not None)
        if device != expected:
            self.refuse(f"device of {name}", device, expected)
        if apart and 0 not in sizes:
            self.extents.append(Extent.of(name, place, written, dtype, sizes, strides, over))
        return self._imagined(place, dtype, sizes, strides, self._alignments[place - 1])

    def contiguous(self, x: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """x, which is only read, or its copy in dense memory."""
        if x.is_contiguous(memory_format=layout):
            return x
        self.copies.append((self._slot(x), layout))
        strides = x.contiguous(memory_format=layout).stride()
        return self._imagined(len(self._looks) + len(self.copies), x.dtype, x.shape, strides)

    def empty(self, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scratch memory, uninitialised."""
        begin, size = self.free, cdiv(prod(sizes) * dtype.itemsize, _ALIGNED) * _ALIGNED
        if begin < self._kept[1] and self._kept[0] < begin + size:
            begin = self._kept[1]
        self.free = begin + size
        self.scratch = max(self.scratch, self.free)
        return self._scratch(begin, sizes, dtype)

    def reuse(self, begin: int = 0) -> None:
        """What `empty` gave from byte `begin` on may be given again."""
        self.free = begin

    def keep(self, x: Tensor | None) -> None:
        """What `empty` gave for x is not given again until something else, or None, is kept."""
        begin = 0 if x is None else self._slot(x).offset
        self._kept = begin, begin + (0 if x is None else cdiv(x.nbytes, _ALIGNED) * _ALIGNED)

    def counters(self, n: int) -> Tensor:
        """Zeros, which every launch leaves as it found them: they are the same for all."""
        aligned = cdiv(n * torch.int32.itemsize, _ALIGNED) * _ALIGNED
        self.before = max(self.before, cdiv(aligned, _COUNTERS) * _COUNTERS)
        return self._scratch(-aligned, (n,), torch.int32)

    def clear(self) -> None:
        """Before the first launch the counters are made zeros."""
        if n := self.before // torch.int32.itemsize:
            self.launch(clear_kernel, (cdiv(n, 1024),), num_warps=4, counters=self.counters(n), n=n, BLOCK=1024)
            self.launches.insert(0, self.launches.pop())

    def _scratch(self, begin: int, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
        strides = [prod(sizes[i + 1 :]) for i in range(len(sizes))]
        return self._whole.view(dtype).as_strided(sizes, strides, (_BEFORE + begin) // dtype.itemsize)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        *,
        num_warps: int,
        num_stages: int = 1,
        maxnreg: int | None = None,
        **arguments: Any,
    ) -> None:
        """Plan a launch. `arguments` in the kernel's order; None for what is not wanted."""
        entry = Launch(kernel, grid, _each(_number, arguments), num_warps, num_stages, maxnreg)
        self.launches.append((entry._replace(arguments=_each(self._slot, arguments)), entry.specialization))

    def refuse(self, what: str, got: object, expected: object) -> NoReturn:
        raise RuntimeError(f"densenet_fast::{self.operation}: wrong {what}: got {got}, expected {expected}")

    def _imagined(
        self, place: int, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int], begin: int = 0
    ) -> Tensor:
        """A tensor in memory of its own, `begin` bytes behind an aligned address."""
        nowhere = torch.empty(1 << 62, dtype=torch.uint8, device="meta")
        self._memory[nowhere.untyped_storage()._cdata] = place, begin
        self._alive.append(nowhere)
        return nowhere.view(dtype).as_strided(sizes, strides, begin // dtype.itemsize)

    def _slot(self, value: Any) -> Any:
        """A slot for an imagined tensor; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        place, begin = self._memory[value.untyped_storage()._cdata]
        return Slot(place, value.data_ptr() - begin, value.dtype, value.shape, value.stride())


def _each(change: Callable[[Any], Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a launch, changed, those in tuples one by one."""
    return {n: tuple(map(change, v)) if type(v) is tuple else change(v) for n, v in arguments.items()}


def _number(value: Any) -> Any:
    return 0.0 if isinstance(value, Slot) else value


class Plan:
    """An operation's launches, for tensors that look alike."""

    def __init__(self, planner: Planner, index: int | None):
        self.operation, self._device, self._index = planner.operation, planner.device, index
        self._launches, self._memory, self._copies = planner.launches, Memory(planner.extents), planner.copies
        self._before, self.scratch = planner.before, planner.before + planner.scratch  # bytes

    def run(self, tensors: Sequence[Any], addresses: Sequence[int], numbers: Sequence[float]) -> None:
        device = tensors[0].device
        if device.type != "meta":  # where there are no addresses
            self._check_memory(addresses)
        scratch = self._uninitialized(device) if self.scratch else None
        copies = [slot.of([None, *tensors]).contiguous(memory_format=layout) for slot, layout in self._copies]
        if self._index is None or recording() is not None:
            memory = None if scratch is None else scratch[self._before :]
            self._note_or_interpret([memory, *tensors, *copies, *numbers], device)
        if self._index is not None:
            first = 0 if scratch is None else scratch.data_ptr() + self._before
            self._start(self._index, [first, *addresses, *[copy.data_ptr() for copy in copies], *numbers])

    def _check_memory(self, addresses: Sequence[int]) -> None:
        if self._memory.is_apart(addresses):
            return
        if (found := self._memory.shared(addresses)) is not None:
            written, other = found
            raise RuntimeError(
                f"densenet_fast::{self.operation}: wrong memory of {written.name}: got memory that {other.name} "
                "shares, expected memory of its own"
            )

    def _uninitialized(self, device: torch.device) -> Tensor:
        """Scratch memory. Where algorithms must be deterministic, torch.empty would fill it, hundreds of megabytes for
        each call, though nothing in it is read before it is written. Interpreted it may: there tests see to that."""
        if self._index is None:
            return torch.empty(self.scratch, dtype=torch.uint8, device=device)
        memory = torch.UntypedStorage(self.scratch, device=device)
        return torch.empty(0, dtype=torch.uint8, device=device).set_(memory)

    def _note_or_interpret(self, values: Sequence[Any], device: torch.device) -> None:
        """Launch by launch, with tensors as arguments."""
        noted = recording()
        for planned, _ in self._launches:
            entry = planned._replace(
                arguments=_each(lambda v: v.of(values) if isinstance(v, Slot) else v, planned.arguments)
            )
            if noted is not None:
                noted.append(entry)
            if self._index is None and device.type != "meta":
                if device.type != "cpu" or not isinstance(entry.kernel, InterpretedFunction):
                    raise RuntimeError(f"wrong device: got {device}, expected cuda, or cpu with TRITON_INTERPRET=1")
                entry.kernel[entry.grid](**entry.arguments)

    def _start(self, index: int, given: Sequence[Any]) -> None:
        """given: addresses and numbers, by place."""
        with on(index):
            ready = self._ready
            values = list(ready.values)
            values[_STREAM] = stream = stream_of(index)
            for i, place, offset in ready.slots:
                values[i] = given[place] + offset
            for i, each in ready.tuples:
                values[i] = each(values)
            heard = is_heard()
            for kernel, launch, taken, start in ready.launches:
                try:
                    if heard:
                        start.heard(*taken(values)[start.before :], stream=stream)
                    else:
                        launch(*taken(values))
                except RuntimeError as error:
                    raise refused(kernel, error) from error

    @cached_property
    def _ready(self) -> "Ready":
        ready, known = Ready([None], [], [], []), dict[Any, int]()

        def place(value: Any) -> int:
            """Where among the values a launch finds its argument."""
            is_slot = type(value) is Slot
            key = (value.place, value.offset) if is_slot else (type(value), value)
            i = known.setdefault(key, len(ready.values))
            if i == len(ready.values):
                ready.values.append(value)
                if is_slot:
                    ready.slots.append((i, value.place, value.offset))
            return i

        def place_each(value: tuple[Any, ...]) -> int:
            each = itemgetter(*map(place, value))
            ready.tuples.append((len(ready.values), each))
            ready.values.append(value)
            return ready.tuples[-1][0]

        for entry, variant in self._launches:
            architecture = self._device.architecture
            kernel = compile_variant(entry.kernel, variant, architecture, **entry.options, index=self._index)
            start = starter(entry.kernel, kernel, entry.grid)
            arguments = [place_each(v) if type(v) is tuple else place(v) for v in entry.arguments.values()]
            places = [*map(place, start.grid), _STREAM, *map(place, start.rest), *arguments]
            ready.launches.append((entry.kernel, start.launch, itemgetter(*places), start))
        return ready


class Ready(NamedTuple):
    """Compiled launches that take their arguments from a common list of values."""

    values: list[Any]  # the stream; constants; anything where a slot or a tuple is to be filled in
    slots: list[tuple[int, int, int]]  # (index, place, offset)
    tuples: list[tuple[int, Callable[[Any], tuple[Any, ...]]]]  # (index, what takes it from the values)
    launches: list[tuple[Kernel, Callable[..., None], Callable[[Any], tuple[Any, ...]], Starter]]


def on(index: int) -> AbstractContextManager[object]:
    """Inside, a GPU is the current one."""
    return nullcontext() if index == torch.cuda.current_device() else torch.cuda.device(index)
