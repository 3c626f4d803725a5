"""Many launches as one: planned once, then only addresses are filled into arguments that are ready.

What tensors look like decides everything but the addresses themselves: checks, tiles, grids, compiled variants. So a
plan is a function of their looks alone. It is made on the meta device by the functions that launch single operations,
each tensor imagined at addresses of its own: an address in a launch then tells which tensor it is of, and where.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tiles
from ._common import cdiv
from .launch import (
    Device,
    Kernel,
    Launch,
    compile_variant,
    device_of,
    gpu_of,
    is_recording,
    launch,
    on,
    recorded,
    refused,
    starter,
    stream_of,
)

MOST = 128  # plans kept, those used last; a net of four blocks has twelve for each size of its images

_SPAN = 1 << 44  # imagined bytes for each tensor
_ALIGNED = 16  # bytes: how far an address decides how wide memory is read

Look = tuple[torch.dtype, torch.Size, tuple[int, ...], torch.device, int]  # the last: address modulo 16
Parameters = Sequence[Tensor | None]


def run(
    operation: str, function: Callable[..., None], tensors: Sequence[Tensor], parameters: Parameters, *constants: Any
) -> None:
    """`function(scratch, tensors, parameters, *constants)`, which launches kernels and does nothing else.

    `tensors` share no memory with each other. `parameters` are only read; each is copied if it is not contiguous in
    memory, a weight with its channels last.
    """
    x = tensors[0]
    looks = _looks(tensors), _looks(parameters)
    plan = _plan(operation, function, device_of(x), gpu_of(x), tiles.kind_of(x), *looks, constants)
    plan.run([*tensors, *parameters])


def _looks(tensors: Parameters) -> tuple[Look | None, ...]:
    return tuple(
        [None if t is None else (t.dtype, t.shape, t.stride(), t.device, t.data_ptr() % _ALIGNED) for t in tensors]
    )


@lru_cache(maxsize=MOST)
def _plan(
    operation: str,
    function: Callable[..., None],
    device: Device,
    index: int | None,  # of the GPU
    kind: str,  # of product, which PyTorch's settings have a say in
    tensors: tuple[Look, ...],
    parameters: tuple[Look | None, ...],
    constants: tuple[Any, ...],
) -> "Plan":
    looks = [*tensors, *(look and _contiguous(look) for look in parameters)]
    places = {str(look[3]) for look in looks if look}
    if len(places) > 1:
        raise RuntimeError(f"densenet_fast::{operation}: wrong device: got {sorted(places)}, expected one")
    scratch = Scratch(len(looks))
    imagined = [look and _imagined(i, look) for i, look in enumerate(looks)]
    with recorded(device) as launches:
        function(scratch, imagined[: len(tensors)], imagined[len(tensors) :], *constants)
    copied = [i for i, look in enumerate(parameters, len(tensors)) if look and look != looks[i]]
    return Plan(operation, device, index, looks, len(tensors), copied, scratch, launches)


def _contiguous(look: Look) -> Look:
    """What a parameter looks like when it is read."""
    dtype, sizes, _, device, _ = look
    x = _imagined(0, look)
    layout = _layout(x)
    if x.is_contiguous(memory_format=layout):
        return look
    return dtype, sizes, x.contiguous(memory_format=layout).stride(), device, 0


def _layout(parameter: Tensor) -> torch.memory_format:
    return torch.channels_last if parameter.dim() == 4 else torch.contiguous_format


def _imagined(i: int, look: Look) -> Tensor:
    dtype, sizes, strides, _, address = look
    nowhere = torch.empty(1 << 62, dtype=torch.uint8, device="meta").view(dtype)
    return nowhere.as_strided(sizes, strides, ((i + 1) * _SPAN + address) // dtype.itemsize)


class Scratch:
    """The memory of a call for itself: one allocation, and another of zeros, imagined as the tensors `first` and
    `first + 1`. Launches run one after the other, so what a layer has done with serves the next."""

    def __init__(self, first: int):
        self._first, self._begin = first, 0
        self.bytes, self.zeros = 0, 0

    def new_empty(self, x: Tensor, size: int | Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """As Tensor.new_empty."""
        like = x.new_empty(size, dtype=dtype)
        begin, self._begin = self._begin, self._begin + cdiv(like.nbytes, _ALIGNED) * _ALIGNED
        self.bytes = max(self.bytes, self._begin)
        return _imagined(self._first, (like.dtype, like.shape, like.stride(), like.device, begin))

    def new_zeros(self, x: Tensor, size: int) -> Tensor:
        """A float32 vector."""
        like = x.new_empty(size, dtype=torch.float32)
        begin, self.zeros = self.zeros, self.zeros + cdiv(like.nbytes, _ALIGNED) * _ALIGNED
        return _imagined(self._first + 1, (like.dtype, like.shape, like.stride(), like.device, begin))

    def reuse(self) -> None:
        """What `new_empty` gave may be given again."""
        self._begin = 0


class Pointer(NamedTuple):
    tensor: int  # its place in the plan's list
    offset: int  # bytes
    dtype: torch.dtype

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The element there."""
        memory = tensors[self.tensor].view(self.dtype)
        return memory.as_strided((1,), (1,), memory.storage_offset() + self.offset // self.dtype.itemsize)


class Plan:
    """Launches on tensors that are known by their places in a list, behind which come the scratch memory and zeros."""

    def __init__(
        self,
        operation: str,
        device: Device,
        index: int | None,
        looks: Sequence[Look | None],
        apart: int,  # how many tensors share no memory
        copied: Sequence[int],
        scratch: Scratch,
        launches: Sequence[Launch],
    ):
        self._operation, self._device, self._index, self._copied = operation, device, index, copied
        self._extents = [_extent(look) for look in looks[:apart] if look]
        self._scratch, self._zeros = scratch.bytes, scratch.zeros
        addresses = [look[4] if look else 0 for look in looks] + [0, 0]
        self._launches = [(_placed(entry, addresses), entry.specialization) for entry in launches]

    def run(self, tensors: list[Any]) -> None:
        for i in self._copied:
            tensors[i] = tensors[i].contiguous(memory_format=_layout(tensors[i]))
        place = tensors[0].device
        tensors.append(self._uninitialized(place))
        tensors.append(torch.zeros(self._zeros, dtype=torch.uint8, device=place))
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        if place.type != "meta":  # where there are no addresses
            self._check_memory(addresses)
        if self._index is None or is_recording():
            for entry, _ in self._launches:
                given: dict[str, Any] = {
                    n: v.of(tensors) if isinstance(v, Pointer) else v for n, v in entry.arguments.items()
                }
                launch(entry.kernel, entry.grid, **entry.options, **given)
            return
        with on(self._index):
            stream = stream_of(self._index)
            for kernel, start, arguments, pointers in self._ready:
                values = list(arguments)
                for i, tensor, offset in pointers:
                    values[i] = addresses[tensor] + offset
                try:
                    start(*values, stream=stream)
                except RuntimeError as error:
                    raise refused(kernel, error) from error

    def _uninitialized(self, place: torch.device) -> Tensor:
        """Scratch memory. Where algorithms must be deterministic, torch.empty would fill it, hundreds of megabytes for
        each call, though nothing in it is read before it is written. Interpreted it may: there tests see to that."""
        if self._index is None:
            return torch.empty(self._scratch, dtype=torch.uint8, device=place)
        memory = torch.UntypedStorage(self._scratch, device=place)
        return torch.empty(0, dtype=torch.uint8, device=place).set_(memory)

    def _check_memory(self, addresses: Sequence[int]) -> None:
        spans = sorted((a, a + size) for a, size in zip(addresses, self._extents, strict=False) if size)
        if any(end > begin for (_, end), (begin, _) in pairwise(spans)):
            raise RuntimeError(
                f"densenet_fast::{self._operation}: wrong memory: got tensors that share some, expected memory of its "
                "own for each that is written"
            )

    @cached_property
    def _ready(self) -> list[tuple[Kernel, Callable[..., None], tuple[Any, ...], list[tuple[int, int, int]]]]:
        """Of each launch its kernel, what starts it, its arguments in order, and which of them are addresses:
        (argument, tensor, offset)."""
        found = []
        for entry, variant in self._launches:
            kernel = compile_variant(
                entry.kernel, variant, self._device.architecture, entry.num_warps, entry.num_stages, self._index
            )
            values = tuple(entry.arguments.values())
            pointers = [(i, v.tensor, v.offset) for i, v in enumerate(values) if isinstance(v, Pointer)]
            found.append((entry.kernel, starter(entry.kernel, kernel, entry.grid), values, pointers))
        return found


def _extent(look: Look) -> int:
    """Bytes from a tensor's first element to its last."""
    dtype, sizes, strides, *_ = look
    return 0 if 0 in sizes else (1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))) * dtype.itemsize


def _placed(entry: Launch, addresses: Sequence[int]) -> Launch:
    """The launch with a `Pointer` for every imagined tensor."""

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensor, offset = divmod(value.data_ptr(), _SPAN)
        assert tensor > 0, "a tensor that is empty, or neither an argument nor scratch"  # None for what is not wanted
        return Pointer(tensor - 1, offset - addresses[tensor - 1], value.dtype)

    return entry._replace(arguments={name: placed(value) for name, value in entry.arguments.items()})
